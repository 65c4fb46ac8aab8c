"""Images with masks: for every image a map of the classes of its pixels.

    DATA/classes.txt                          names of the classes, one a line, in the order of their numbers
    DATA/images/{train,val}/NAME.jpg          any image file, in subfolders too
    DATA/masks/{train,val}/NAME.png           the same path but for the suffix; its numbers (palette or grey) are classes

255 is ignored. `reduce_zero_label` is for data such as ADE20K, whose 0 stands for no class: it is ignored, and 1 is the first
class. ADE20K's own folders (annotations, training, validation) are found too. `inspect` reads every mask once, before anything
is learnt from them: some milliseconds each, on all cores.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax import image_files, labels
from natjax.errors import ImageError, MaskError
from natjax.images import decode_mask, upright_size
from natjax.labels import composed
from natjax.segmentation.palettes import read_palette
from natjax.text import counted, first_few

if TYPE_CHECKING:
    from jaxtyping import Int32, UInt8

IGNORED = 255
CLASSES = "classes.txt"
IMAGES, MASKS = ("images",), ("masks", "annotations")  # what the folders may be called
SPLITS = {"train": ("train", "training"), "val": ("val", "validation")}
_BEYOND = 254  # in tables: there is no such class
_MOST_CLASSES = 254
_SECONDS_BETWEEN_REPORTS = 10.0
# What can be wrong with masks.
_NO_CLASSES, _SIZE, _NUMBERS = "of no classes", "of another size than the image", "with numbers beyond the classes"


class MaskFolder:
    """The images of a folder and their masks.

    An item is {"image": bytes of a file, "mask": uint8 [H, W] of class numbers, 255 for what is ignored}.

    Args:
        images: folder of the images.
        masks: folder of their masks.
        class_names: in the order of their numbers, 254 at most.
        reduce_zero_label: whether 0 is ignored and 1 is the first class.

    Attributes:
        sizes: height and width of every mask, 0 where it or its image cannot be read; int32 [images, 2], by `inspect`.
        class_counts: images in which each class is, by `inspect`.
        notes: sentences about what was found.

    Raises:
        MaskError: images without masks, masks without images, no masks at all, or too many classes.
        ImageError: a folder is missing or cannot be read.
    """

    def __init__(self, images: Path, masks: Path, class_names: Sequence[str], *, reduce_zero_label: bool = False):
        check_count(len(class_names), str(masks))
        self.directory, self._masks = images, masks
        self.class_names, self._reduce = tuple(class_names), reduce_zero_label
        self._table = _table_of(len(self.class_names), reduce_zero_label)
        image_of, skipped = _by_stem(images)
        mask_of, others = _by_stem(masks)
        if not image_of:
            raise ImageError(f"{images} has no images in it (.jpg, .png, .tif, .webp or else that Pillow reads).")
        if not mask_of:
            raise MaskError(f"{masks} has no masks in it: it should hold a PNG for every image in {images}.")
        lonely = [image_of[stem] for stem in image_of if stem not in mask_of]
        spare = [mask_of[stem] for stem in mask_of if stem not in image_of]
        if lonely or spare:
            found = [
                f"{counted(len(names), one)} in {folder} without {other}: {first_few(names)}"
                for names, one, folder, other in (
                    (lonely, "image", images, "a mask"),
                    (spare, "mask", masks, "an image"),
                )
                if names
            ]
            raise MaskError(f"{'; '.join(found)}. A mask has the path of its image but for the suffix.")
        self._pairs = np.array([(os.fsencode(image_of[stem]), os.fsencode(mask_of[stem])) for stem in sorted(image_of)])
        self.notes: tuple[str, ...] = ()
        if kinds := skipped + others:
            self.notes = (f"{images} and {masks}: skipped {image_files.describe(kinds)}",)
        self.sizes: Int32[np.ndarray, "N 2"] = np.zeros((len(self._pairs), 2), np.int32)
        self.class_counts: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Path(self.name(index)).read_bytes(), "mask": self._mask(index)}

    def name(self, index: int) -> str:
        """Returns the path of an image."""
        return str(self.directory / os.fsdecode(self._pairs[index, 0]))

    def mask_name(self, index: int) -> str:
        """Returns the path of an image's mask."""
        return str(self._masks / os.fsdecode(self._pairs[index, 1]))

    @property
    def palette(self) -> UInt8[np.ndarray, "L 3"] | None:
        """Colours of the classes, of the first mask; None where it has none, or not one for every class."""
        try:
            colours = read_palette(self.mask_name(0)).colours
        except (OSError, ValueError):
            return None
        if (colours == np.arange(len(colours))[:, None]).all():  # what Pillow writes where nobody chose any
            return None
        colours = colours[int(self._reduce) :][: len(self.class_names)]
        return colours if len(np.unique(colours, axis=0)) == len(self.class_names) else None

    def part(self, indices: Sequence[int], notes: tuple[str, ...]) -> MaskFolder:
        """Returns some of the images as a source of their own."""
        part = object.__new__(MaskFolder)
        part.__dict__.update(self.__dict__, _pairs=self._pairs[list(indices)], notes=notes, class_counts=None)
        part.sizes = np.zeros((len(indices), 2), np.int32)
        return part

    def inspect(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Reads all masks and the sizes of all images.

        Args:
            report: called with the progress, every ten seconds.

        Raises:
            MaskError: some have colours, other sizes than their images or numbers beyond the classes; or all pixels are ignored.
            ImageError: none can be read.
        """
        problems: dict[str, list[str]] = {}
        counts = np.zeros(256, np.int64)
        unreadable, shown = [], time.monotonic()
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for index, (size, has, kind, problem) in enumerate(pool.map(self._inspected, range(len(self)))):
                self.sizes[index], counts[has] = size, counts[has] + 1
                if kind:
                    problems.setdefault(kind, []).append(problem)
                elif problem:
                    unreadable.append(problem)
                if time.monotonic() - shown > _SECONDS_BETWEEN_REPORTS:
                    shown = time.monotonic()
                    report(f"checked {index + 1:,} of {len(self):,} masks")
        if problems:
            found = [f"{counted(len(names), 'mask')} {kind}: {first_few(names)}" for kind, names in problems.items()]
            raise MaskError(f"{'; '.join(found)}.{self._advice(problems)}")
        if len(unreadable) == len(self):
            raise ImageError(
                f"None of the {len(self):,} images in {self.directory} can be read: {first_few(unreadable, 3)}."
            )
        if unreadable:
            what = counted(len(unreadable), "image")
            self.notes = (*self.notes, f"{what} that cannot be read, or whose masks cannot: {first_few(unreadable, 3)}")
        self.class_counts = tuple(counts[: len(self.class_names)].tolist())
        if not any(self.class_counts):
            also = " and 0" if self._reduce else ""
            raise MaskError(
                f"The {len(self):,} masks in {self._masks} have no pixel of a class, only {IGNORED}{also}, which is ignored: "
                f"write the numbers of {CLASSES} into them."
            )

    def _inspected(self, index: int) -> tuple[tuple[int, int], list[int], str, str]:
        """Returns a mask's size and classes, what is wrong with it ("" for what cannot be read) and in which of them."""
        name = self.mask_name(index)
        try:
            raw = decode_mask(name)
            size = upright_size(self.name(index))
        except MaskError as error:
            return (0, 0), [], _NO_CLASSES, str(error).rstrip(".")
        except (ImageError, OSError) as error:
            return (0, 0), [], "", str(error).rstrip(".")
        if size != raw.shape:
            return (0, 0), [], _SIZE, f"{name} ({_size(raw.shape)}, image {_size(size)})"
        present = np.unique(self._table[np.flatnonzero(np.bincount(raw.ravel(), minlength=256))]).tolist()
        if _BEYOND in present:
            return (0, 0), [], _NUMBERS, f"{name} (as {raw[self._table[raw] == _BEYOND].max()})"
        return size, [number for number in present if number != IGNORED], "", ""

    def _mask(self, index: int) -> UInt8[np.ndarray, "H W"]:
        mask = self._table[decode_mask(self.mask_name(index))]
        if (mask == _BEYOND).any():  # changed since it was inspected, or never inspected
            raise MaskError(f"{self.mask_name(index)}: has numbers beyond the {len(self.class_names)} classes.")
        return mask

    def _advice(self, kinds: Collection[str]) -> str:
        if _NUMBERS not in kinds:
            return ""
        first, last = (1, len(self.class_names)) if self._reduce else (0, len(self.class_names) - 1)
        without = "" if self._reduce else "; where 0 stands for no class, as in ADE20K, give --reduce-zero-label"
        return (
            f" The {len(self.class_names)} classes have the numbers {first} to {last}, and {IGNORED} is ignored: mend the "
            f"masks or {CLASSES}{without}."
        )


def _table_of(count: int, reduce_zero_label: bool) -> UInt8[np.ndarray, "256"]:
    """Returns what every number of a mask stands for: a class, `IGNORED`, or `_BEYOND` where there is no such class."""
    table = np.full(256, _BEYOND, np.uint8)
    first = int(reduce_zero_label)
    table[first : first + count] = np.arange(count)
    table[: first or 0] = IGNORED
    table[IGNORED] = IGNORED
    return table


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _by_stem(folder: Path) -> tuple[dict[str, str], Counter[str]]:
    """Returns the paths of a folder's images within it, by their path without suffix, and what else it holds, by kind."""
    found = image_files.find_images(folder)
    paths: dict[str, str] = {}
    for path in (os.path.relpath(path, folder) for path in found.paths):
        stem = os.path.splitext(path)[0]
        if stem in paths:
            raise ImageError(
                f"{folder} has {paths[stem]} and {path}, and a mask belongs to one image: rename or remove one."
            )
        paths[stem] = path
    return paths, found.skipped


def check_count(count: int, whose: str) -> None:
    """Checks that masks can tell classes apart.

    Raises:
        MaskError: there are too many.
    """
    if count > _MOST_CLASSES:
        raise MaskError(
            f"{whose} has {count} classes; there can be {_MOST_CLASSES} at most: masks are bytes, of which {IGNORED} is ignored "
            f"and {_BEYOND} stands for no class. Merge some."
        )


def class_names(spec: str | None) -> tuple[str, ...] | None:
    """Returns the names that a recipe's `classes` stands for, or None where they are to be read from the data.

    Raises:
        ImageError: see `read_classes`.
    """
    if spec is None:
        return None
    published = {"ade20k": labels.ade20k, "cityscapes": labels.cityscapes}
    return published[spec]() if spec in published else read_classes(Path(spec))


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads the names of classes, one a line; empty lines are left out.

    Raises:
        ImageError: there is no such file, it is no text, or names a class twice, or not two to 254.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}. It should hold the names of the classes, one "
            "a line, in the order of their numbers in the masks."
        ) from None
    names = tuple(composed(name) for line in lines if (name := line.strip()))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ImageError(f"{path} names {first_few(twice)} more than once; each class needs a name of its own.")
    if len(names) < 2:
        raise ImageError(f"{path} has {counted(len(names), 'name')}; a segmenter needs two classes at least.")
    check_count(len(names), str(path))
    return names


def open_masks(
    spec: str | os.PathLike, split: str, class_names: Sequence[str] | None = None, *, reduce_zero_label: bool = False
) -> MaskFolder:
    """Opens a split of a data set of masks; `inspect` is left to the caller.

    Args:
        spec: folder with images/ and masks/.
        split: "train" or "val"; "" is all of a folder without such parts, or its training part.
        class_names: of the data; None reads them from classes.txt.
        reduce_zero_label: see `MaskFolder`.

    Raises:
        MaskError, ImageError: see `MaskFolder`.
    """
    directory = Path(spec)
    if not directory.is_dir():
        raise ImageError(
            f"{spec}: {'is a file' if directory.exists() else 'no such folder'}; give a folder that holds images/ "
            "and masks/."
        )
    folders = []
    for names, what in ((IMAGES, "images"), (MASKS, "masks")):
        top = _first(directory, names)
        if top is None:
            raise (MaskError if what == "masks" else ImageError)(
                f"{directory} has no {what}/: it should hold images/ and masks/, each with train/ and val/, and {CLASSES}."
            )
        within = _first(top, SPLITS[split or "train"])
        if within is None and split:
            held_out = " --val-fraction 0.1 holds out a tenth of the images for validation." if split == "val" else ""
            raise (MaskError if what == "masks" else ImageError)(f"{top} has no {split}/ in it.{held_out}")
        folders.append(within or top)
    own = read_classes(directory / CLASSES) if class_names is None or (directory / CLASSES).is_file() else class_names
    names = own if class_names is None else class_names
    if len(names) != len(own):
        raise MaskError(
            f"{directory / CLASSES} names {len(own)} classes, --classes (in a recipe, classes) {len(names)}: leave one of them "
            "out."
        )
    return MaskFolder(*folders, names, reduce_zero_label=reduce_zero_label)


def has_split(spec: str | os.PathLike, split: str) -> bool:
    """Returns whether a data set of masks has a folder of images for a split."""
    return any(_first(Path(spec, name), SPLITS[split]) for name in IMAGES)


def _first(directory: Path, names: Sequence[str]) -> Path | None:
    return next((directory / name for name in names if (directory / name).is_dir()), None)
