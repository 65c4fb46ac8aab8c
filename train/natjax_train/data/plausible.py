"""Whether classes and splits are what they look like: implausible data are refused, and what is odd is said."""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict

from natjax.errors import ImageError
from natjax.text import first_few
from natjax_train.data.coco_images import CocoImages
from natjax_train.data.masks import MaskFolder
from natjax_train.data.sources import ImageFolder, Source
from natjax_train.data.split import Part

_NO_CLASSES = {
    *("train", "training", "val", "valid", "validation", "test", "testing", "eval", "dev"),
    *("images", "image", "imgs", "img", "data", "dataset", "pictures", "photos"),
}  # what folders are called that hold classes, or images of all classes


def check_training(source: Source) -> None:
    """Checks the classes of the training images.

    Raises:
        ImageError: see `check_classes`; or some have no images.
    """
    check_classes(source)
    if empty := _empty(source):
        raise ImageError(
            f"Classes without training images: {empty}. Add images to their folders or remove these, in train/ and val/."
        )


def check_classes(source: Source) -> None:
    """Checks the classes of images that are to be told apart.

    Raises:
        ImageError: there are fewer than two, or they are splits of a data set rather than classes.
    """
    names = source.class_names
    where = f" The first image is {source.name(0)}." if len(source) else ""
    deeper = (
        f" Is the data set one folder too deep? Its classes should lie in train/ and val/ themselves.{where}"
        if any(name.lower() in _NO_CLASSES for name in names) or any("subfolders" in note for note in source.notes)
        else where
    )
    if len(names) < 2:
        raise ImageError(
            f"The images have one class, {', '.join(names)}, and there is nothing to learn from that; a classifier "
            f"needs two or more, each with a folder of its own.{deeper}"
        )
    if all(name.lower() in _NO_CLASSES for name in names):
        raise ImageError(f"The classes of the images are {', '.join(names)}, which name no classes.{deeper}")


def check_splits(training: Source, validation: Source) -> None:
    """Checks that the validation images are others than the training images.

    Raises:
        ImageError: both splits are one folder.
    """
    files = ImageFolder | MaskFolder | CocoImages
    if not (isinstance(training, files) and isinstance(validation, files)):
        return
    first = [os.path.relpath(source.name(0), source.directory) for source in (training, validation)]  # parts share none
    if training.directory.resolve() == validation.directory.resolve() and first[0] == first[1]:
        raise ImageError(
            f"{training.directory} and {validation.directory} are one folder: the model would be measured on the images that "
            "it learns. Give validation images of their own, or leave val/ out and let --val-fraction 0.1 hold out a tenth."
        )


def remarks(validation: Source, training: Source | None = None) -> list[str]:
    """Returns what is odd about validation images, and what they have in common with training images, in sentences.

    Args:
        validation: the images.
        training: of the same run; None where nothing is trained.
    """
    found = []
    if missing := _empty(validation):
        found.append(f"Classes without validation images: {missing}. What is measured says nothing of them.")
    alike = defaultdict(list)
    for name in validation.class_names:
        alike["".join(re.sub(r"[_-]", " ", name.casefold()).split())].append(name)
    if twice := [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]:
        found.append(f"Classes whose names differ only by case or spaces: {first_few(twice)}. Are they one class?")
    if training is not None and (shared := _shared(training, validation)):
        found.append(
            f"{len(shared):,} of the {len(validation):,} validation images are training images too, as links lead to the same "
            f"files ({shared[0]}): what is measured is too good by that."
        )
    return found


def _shared(training: Source, validation: Source) -> list[str]:
    """Returns the names of validation images that are files of the training images, by whatever links."""
    files = ImageFolder | Part | MaskFolder | CocoImages
    if not (isinstance(training, files) and isinstance(validation, files)):
        return []  # those of records and digits are no files

    @functools.cache  # there are few folders
    def resolved(folder: str) -> str:
        return os.path.realpath(folder)

    def file(name: str, is_link: bool) -> str:
        folder, last = os.path.split(name)
        return os.path.realpath(name) if is_link else os.path.join(resolved(folder), last)

    names = [validation.name(i) for i in range(len(validation))]
    links = list(map(os.path.islink, names))
    pooled = any(links)
    # A million training images are asked whether they are links only where validation images are.
    learnt = {file(name, pooled and os.path.islink(name)) for name in map(training.name, range(len(training)))}
    return [name for name, is_link in zip(names, links, strict=True) if file(name, is_link) in learnt]


def _empty(source: Source) -> str:
    """Returns the names of the classes without images."""
    counts = source.class_counts or ()
    return first_few([name for name, count in zip(source.class_names, counts, strict=False) if not count])
