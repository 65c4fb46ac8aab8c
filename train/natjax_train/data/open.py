"""Which source a data set is: the digits, an image folder or records."""

from __future__ import annotations

import os
from pathlib import Path

from natjax.errors import ImageError
from natjax_train.data.sources import Digits, ImageFolder, Source, class_folders

SPLITS = {"train": ("train",), "val": ("val", "validation")}


def open_source(spec: str | os.PathLike, split: str) -> Source:
    """Opens a split of a data set.

    Args:
        spec: "digits"; or a folder with `train` and `val` (or `validation`), each an image folder or records made by
            `natjax_train.data.records`.
        split: "train" or "val".

    Raises:
        ImageError: there is no such data, or the classes of the two splits differ.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val'; got {split!r}.")
    if str(spec) == "digits":
        return Digits(split)
    if not Path(spec).is_dir():
        raise ImageError(f"{spec}: no such folder; give one that holds train/ and val/, or 'digits'.")
    folder, training = (_split_folder(Path(spec), kind) for kind in (split, "train"))
    if folder is None:
        wanted = " or ".join(f"{name}/" for name in SPLITS[split])
        raise ImageError(f"{spec} has no {wanted}: it should hold train/ and val/, each with one folder per class.")
    # Evaluation numbers its classes as training does, even if some of them have no images there.
    names = None if split == "train" or training is None else _class_names(training)
    # Imported here: `python -m natjax_train.data.records` warns if it is imported before.
    from natjax_train.data import records

    if not records.is_records(folder):
        return ImageFolder(folder, names)
    source = records.Records(folder)
    if names is not None and source.class_names != names:
        raise ImageError(f"The records in {folder} are of other classes than those in {training}.")
    return source


def _split_folder(directory: Path, split: str) -> Path | None:
    return next((directory / name for name in SPLITS[split] if (directory / name).is_dir()), None)


def _class_names(directory: Path) -> tuple[str, ...]:
    from natjax_train.data import records

    if records.is_records(directory):
        return records.Records(directory).class_names
    return class_folders(directory)
