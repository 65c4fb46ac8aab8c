"""Whether classes and splits are what they look like: data that cannot be meant are refused, and what is odd is said."""

from __future__ import annotations

from natjax.errors import ImageError
from natjax_train.data.sources import Source

_NAMED = 5  # classes that a message names
_NO_CLASSES = {
    *("train", "training", "val", "valid", "validation", "test", "testing", "eval", "dev"),
    *("images", "image", "imgs", "img", "data", "dataset", "pictures", "photos"),
}  # what folders are called that hold classes, or images of all classes


def check_training(source: Source) -> None:
    """Checks the classes of the training images.

    Raises:
        ImageError: there are fewer than two, they are splits of a data set rather than classes, or some have no images.
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
            f"The training images have one class, {', '.join(names)}, and there is nothing to learn from that; a classifier "
            f"needs two or more, each with a folder of its own.{deeper}"
        )
    if all(name.lower() in _NO_CLASSES for name in names):
        raise ImageError(f"The classes of the training images are {', '.join(names)}, which are none.{deeper}")
    if empty := _empty(source):
        raise ImageError(
            f"Classes without training images: {empty}. Add images to their folders or remove these, in train/ and val/."
        )


def remarks(validation: Source) -> list[str]:
    """Returns what is odd about the classes of the validation images, in sentences."""
    if missing := _empty(validation):
        return [f"Classes without validation images: {missing}. What is measured says nothing of them."]
    return []


def _empty(source: Source) -> str:
    """Returns the names of the classes without images."""
    counts = source.class_counts or ()
    names = [name for name, count in zip(source.class_names, counts, strict=False) if not count]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
