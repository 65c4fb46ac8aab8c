"""Which source a data set is: the digits, an image folder or records."""

from __future__ import annotations

import os
from pathlib import Path

from natjax.errors import ImageError
from natjax.text import first_few
from natjax_train.data.sources import SPLITS, Digits, ImageFolder, Source, class_folders, split_folders
from natjax_train.data.split import Part
from natjax_train.data.split import split as split_folder


def open_source(spec: str | os.PathLike, split: str, *, val_fraction: float | None = None, seed: int = 0) -> Source:
    """Opens a split of a data set.

    Args:
        spec: "digits", whatever lies in the current folder; or a folder with `train` and `val` (or `validation`), each an
            image folder or records made by `natjax_train.data.records`.
        split: "train" or "val".
        val_fraction: of an image folder without `val`: part of the images of every class that are held out for validation.
            Its classes may lie in `train` or in the folder itself.
        seed: of the choice of these.

    Raises:
        ImageError: there is no such data, or the classes of the two splits differ.
        ValueError: there is no such split, or `val_fraction` is given and the data have a validation split.
        ImportError: a package that reads these data is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val'; got {split!r}.")
    if val_fraction is not None:
        return _parts(spec, val_fraction, seed)[split]
    if spec == "digits":
        digits = Digits(split)
        if os.path.exists(spec):
            digits.notes = (
                "digits is natjax's own data set here, not the folder of that name: ./digits is the folder",
            )
        return digits
    _check_folder(spec)
    folder, training = (_split_folder(Path(spec), kind) for kind in (split, "train"))
    # Imported here: `python -m natjax_train.data.records` warns if it is imported before.
    from natjax_train.data import records

    if folder is None:
        raise ImageError(_no_split(Path(spec), split, training))
    # Evaluation numbers its classes as training does, even if some of them have no images there.
    names = None if split == "train" or training is None else _class_names(training)
    source = records.Records(folder) if records.is_records(folder) else ImageFolder(folder, names)
    if names is not None and source.class_names != names:
        raise ImageError(f"The records in {folder} are of other classes than those in {training}.")
    if others := split_folders(Path(spec), split)[1:]:
        source.notes = (*source.notes, f"{spec} has {folder.name}/ and {others[0].name}/: {folder.name}/ is used")
    return source


def open_splits(spec: str | os.PathLike, *, val_fraction: float | None = None, seed: int = 0) -> tuple[Source, Source]:
    """Opens the training and the validation split of a data set; arguments and errors are those of `open_source`."""
    if val_fraction is None:
        return open_source(spec, "train"), open_source(spec, "val")
    parts = _parts(spec, val_fraction, seed)
    return parts["train"], parts["val"]


def _parts(spec: str | os.PathLike, val_fraction: float, seed: int) -> dict[str, Part]:
    """Returns the parts "train" and "val" of an image folder without `val`."""
    if spec == "digits":
        raise ValueError("The digits have a validation split of their own: leave val_fraction out.")
    _check_folder(spec)
    if validation := _split_folder(Path(spec), "val"):
        raise ValueError(f"{validation} is there: leave val_fraction out, which splits data that have no such folder.")
    whole = _split_folder(Path(spec), "train") or Path(spec)
    from natjax_train.data import records

    if records.is_records(whole):
        raise ImageError(f"{whole}: val_fraction splits image folders, and these are records: split before packing.")
    return split_folder(ImageFolder(whole), val_fraction, seed)


def _check_folder(spec: str | os.PathLike) -> None:
    if not Path(spec).is_dir():
        what = "is a file" if Path(spec).exists() else "no such folder"
        raise ImageError(f"{spec}: {what}; give a folder that holds train/ and val/, or 'digits'.")


def _split_folder(directory: Path, split: str) -> Path | None:
    return next(iter(split_folders(directory, split)), None)


def _no_split(directory: Path, split: str, training: Path | None) -> str:
    found = class_folders(directory)
    holds = f"; it holds {first_few(found)}" if found else ""
    wanted = " or ".join(f"{name}/" for name in SPLITS[split])
    what = f"{directory} has no {wanted}: it should hold train/ and val/, each with one folder per class{holds}."
    if split == "train" and _split_folder(directory, "val"):
        return what
    beside = training or directory
    return (
        f"{what} natjax train --val-fraction 0.1 holds out a tenth of the images in {beside} for validation, and natjax eval "
        "measures such a run on these."
    )


def _class_names(directory: Path) -> tuple[str, ...]:
    from natjax_train.data import records

    if records.is_records(directory):
        return records.Records(directory).class_names
    return class_folders(directory)
