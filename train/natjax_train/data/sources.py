"""Where images come from: folders of classes, sharded records, and the handwritten digits that come with scikit-learn.

A source is a sequence: `len(source)`, and `source[i]` is {"image": the bytes of an image file, or uint8 [H, W, C], "label": int}.
It has `class_names`, and `name(i)` says which image that is. Sources hold no open files, so that worker processes can take them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from natjax.errors import ImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


class Source(Protocol):
    """What the input pipeline reads."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes, in the order of their numbers."""
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

    Args:
        directory: holds the folders of the classes.
        class_names: what the classes must be; None takes them from the folders.

    Raises:
        ImageError: there is no such folder, it has no classes or other ones, or holds no images.
    """

    def __init__(self, directory: str | os.PathLike, class_names: Sequence[str] | None = None):
        self._directory = Path(directory)
        if not self._directory.is_dir():
            raise ImageError(f"{self._directory} is no folder.")
        found = class_folders(self._directory)
        if not found:
            raise ImageError(f"{self._directory} has no folders in it; it should have one for each class.")
        self.class_names = tuple(found if class_names is None else class_names)
        if unknown := sorted(set(found) - set(self.class_names)):
            raise ImageError(f"{self._directory} has classes that training has not: {', '.join(unknown[:5])}.")
        numbers = {name: i for i, name in enumerate(self.class_names)}
        # One array of bytes and one of numbers: a list of a million strings is slow to hand to a process.
        paths, labels = [], []
        for name in found:
            for path in _images(self._directory / name):
                paths.append(os.fsencode(os.path.relpath(path, self._directory)))
                labels.append(numbers[name])
        if not paths:
            raise ImageError(f"{self._directory} has no images in its folders ({', '.join(EXTENSIONS)}).")
        self._paths, self._labels = np.array(paths), np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Path(self.name(index)).read_bytes(), "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self._directory / os.fsdecode(self._paths[index]))


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

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index], "label": int(self._labels[index])}

    def name(self, index: int) -> str:
        """Returns the number of an image."""
        return f"digit {index} of {self._split}"


def class_folders(directory: Path) -> tuple[str, ...]:
    """Returns the names of a folder's folders, in order."""
    return tuple(sorted(e.name for e in os.scandir(directory) if e.is_dir() and not e.name.startswith(".")))


def _images(directory: Path) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(directory, followlinks=True):
        subfolders.sort()
        found += [os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(EXTENSIONS)]
    return found
