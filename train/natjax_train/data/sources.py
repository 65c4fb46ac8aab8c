"""Where images come from: folders of classes, sharded records, and the handwritten digits that come with scikit-learn.

A source is a sequence: `len(source)`, and `source[i]` is {"image": the bytes of an image file, or uint8 [H, W, C], "label": int}.
It has `class_names`, and `name(i)` says which image that is; `class_counts` and `notes` say what was found. Sources hold no open
files, so that worker processes can take them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from natjax import image_files
from natjax.errors import ImageError
from natjax.labels import composed
from natjax.text import first_few

SPLITS = {"train": ("train",), "val": ("val", "validation")}  # what their folders may be called


class Source(Protocol):
    """What the input pipeline reads."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes, in the order of their numbers."""
        ...

    @property
    def class_counts(self) -> tuple[int, ...] | None:
        """Returns the number of images of every class, or None where it is not known."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns sentences about what was found, for people: what was skipped, images that lie deeper than expected."""
        ...

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns an image and its label."""
        ...

    def name(self, index: int) -> str:
        """Returns which image that is, for people."""
        ...


class ImageFolder:
    """Images in one folder per class, as torchvision's ImageFolder has them; classes are numbered in the order of their names.

    Which files are images, `natjax.image_files` decides. Names of classes are in Unicode's composed form (NFC), whatever form the
    file system keeps, and compared in it.

    Args:
        directory: holds the folders of the classes.
        class_names: what the classes must be; None takes them from the folders.

    Attributes:
        directory: as given.

    Raises:
        ImageError: there is no such folder, it has no classes, other ones or one twice, holds no images or cannot be read.
    """

    def __init__(self, directory: str | os.PathLike, class_names: Sequence[str] | None = None):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ImageError(f"{self.directory} is no folder.")
        folders, skipped = _scan(self.directory)
        loose = skipped.pop("image", 0)
        if not folders:
            raise ImageError(f"{self.directory} has no folders in it; it should have one for each class.")
        self.class_names = tuple(folders if class_names is None else class_names)
        numbers = {composed(name): i for i, name in enumerate(self.class_names)}
        if unknown := [name for name in folders if name not in numbers]:
            raise ImageError(f"{self.directory} has classes that training has not: {first_few(unknown)}.")
        # No class takes the images of another one, or of another split, by a link.
        visited = set(map(image_files.folder_id, (self.directory, *self.directory.resolve().parents)))
        for folder in folders.values():
            key = image_files.folder_id(self.directory / folder)
            if key in visited:
                raise ImageError(
                    f"{self.directory / folder} leads to the folder of another class or to one above; each class needs its own."
                )
            visited.add(key)
        # One array of bytes and one of numbers: a list of a million strings is slow to hand to a process.
        paths, labels, deep = [], [], Counter()
        for name, folder in folders.items():
            found = image_files.find_images(self.directory / folder, visited)
            skipped += found.skipped
            for path in map(os.fsencode, (os.path.relpath(path, self.directory) for path in found.paths)):
                paths.append(path)
                labels.append(numbers[name])
                deep[name] += path.count(os.fsencode(os.sep)) > 1
        if not paths:
            also = f"; skipped {image_files.describe(skipped)}" if skipped else ""
            raise ImageError(
                f"{self.directory} has no images in its folders (.jpg, .png, .tif, .webp or else that Pillow reads){also}."
            )
        self._paths, self._labels = np.array(paths), np.array(labels, np.int32)
        self.class_counts = class_counts(self._labels, self.class_names)
        self.notes = tuple(f"{self.directory}: {note}" for note in _notes(skipped, loose, +deep))

    @property
    def labels(self) -> np.ndarray:
        """The classes of all images by number, int32 [images]."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Path(self.name(index)).read_bytes(), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self.directory / os.fsdecode(self._paths[index]))


class Digits:
    """scikit-learn's 8 x 8 handwritten digits: 1437 to train with, 360 held out.

    Args:
        split: "train" or "val".

    Raises:
        ImportError: scikit-learn is not installed.
    """

    class_names = tuple("0123456789")

    def __init__(self, split: str):
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError:
            raise ImportError("The digits come with scikit-learn: pip install scikit-learn.") from None
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        parts = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
        self._images, self._labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
        self._split = split
        self.notes: tuple[str, ...] = ()
        self.class_counts = class_counts(self._labels, self.class_names)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """Returns the number of an image."""
        return f"digit {index} of {self._split}"


def split_folders(directory: str | os.PathLike, split: str) -> list[Path]:
    """Returns the folders of a split, "train" or "val", that a data set has; the first of them is used.

    Raises:
        ImageError: the folder cannot be read.
    """
    return [Path(directory, name) for name in SPLITS[split] if _is_folder(Path(directory, name))]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # Python 3.13 and older raise where a parent cannot be entered
        raise ImageError(f"{path}: the folder cannot be read: {error.strerror or error}.") from None


def class_folders(directory: Path) -> tuple[str, ...]:
    """Returns the names of the classes that a folder has folders for, composed (NFC) and in order.

    Raises:
        ImageError: the folder cannot be read, or names two folders alike.
    """
    return tuple(_scan(directory)[0])


def _scan(directory: Path) -> tuple[dict[str, str], Counter[str]]:
    """Returns a folder's class folders by the composed names of the classes, in order, and what else it holds, by kind."""
    folders: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    suffixes = image_files.image_suffixes()
    for entry in image_files.entries(directory):
        kind = image_files.kind_of(entry, suffixes)
        if kind != "folder":
            skipped[kind if kind == "image" or kind.startswith("hidden") else "file beside the class folders"] += 1
        elif (name := composed(entry.name)) in folders:
            raise ImageError(
                f"{directory} has two folders for the class {name}, which differ in their Unicode form only "
                f"({folders[name]!a}, {entry.name!a}); make them one."
            )
        else:
            folders[name] = entry.name
    return {name: folders[name] for name in sorted(folders)}, skipped


def class_counts(labels: np.ndarray, class_names: Sequence[str]) -> tuple[int, ...]:
    """Returns the number of images of every class, of the labels of all."""
    return tuple(np.bincount(labels, minlength=len(class_names)).tolist())


def _notes(skipped: Counter[str], loose: int, deep: Counter[str]) -> Iterator[str]:
    if loose:
        what, belong, are = ("image", "belongs", "is") if loose == 1 else ("images", "belong", "are")
        yield f"{loose:,} {what} beside the class folders {belong} to no class and {are} left out"
    if skipped:
        yield f"skipped {image_files.describe(skipped)}"
    if deep:
        found = [f"{count:,} in {name}" for name, count in deep.most_common()]
        yield f"images of subfolders are pooled in their class folder: {first_few(found)}"
