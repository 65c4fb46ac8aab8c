"""Data sets with COCO's annotations, in one of three layouts:

DATA/annotations/instances_{train,val}2017.json   as COCO is downloaded, with the images in
DATA/{train,val}2017/                              or in images/{train,val}2017/

DATA/annotations/{train,val}.json                  natjax's own, with the images in
DATA/images/{train,val}/

DATA/{train,valid}/_annotations.coco.json          as Roboflow exports it, the images beside it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from natjax.errors import ImageError
from natjax_train.data.coco_images import CocoImages
from natjax_train.data.coco_json import read_annotations

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
# Where annotations are, and where their images may be.
_LAYOUTS = (
    ("annotations/instances_{}2017.json", ("{}2017", "images/{}2017")),
    ("annotations/{}.json", ("images/{}",)),
    ("{}/_annotations.coco.json", ("{}",)),
)


def open_coco(spec: str | os.PathLike, split: str, class_names: Sequence[str] | None = None) -> CocoImages:
    """Opens a split of a data set with COCO's annotations; `inspect` is left to the caller.

    Args:
        spec: folder, see above.
        split: "train" or "val".
        class_names: what the classes must be, in the order of their numbers; None takes them from the annotations.

    Raises:
        ImageError: there is no such data, or the annotations are refused, see `read_annotations`.
        ImportError: faster-coco-eval is not installed.
    """
    directory = Path(spec)
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "no such folder"
        raise ImageError(f"{spec}: {what}; give a folder that holds {_examples(split)}.")
    found = _annotation_files(directory, split)
    if not found:
        held_out = " --val-fraction 0.1 holds out a tenth of the training images." if split == "val" else ""
        raise ImageError(f"{directory} has no annotations for {split}: {_examples(split)}.{held_out}")
    path, folders = found[0]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ImageError(f"{path} has no images: there is no {' or '.join(f'{folder}/' for folder in folders)}.")
    source = CocoImages(read_annotations(path, class_names), folder)
    if len(found) > 1:
        source.notes = (f"{directory} has {path} and {found[1][0]}: {path} is used",)
    return source


def has_split(spec: str | os.PathLike, split: str) -> bool:
    """Returns whether a data set has annotations for a split, "train" or "val"."""
    return bool(_annotation_files(Path(spec), split))


def _annotation_files(directory: Path, split: str) -> list[tuple[Path, list[Path]]]:
    """Returns the files of annotations that there are for a split, each with the folders that its images may be in."""
    wanted = (
        (directory / path.format(name), [directory / folder.format(name) for folder in folders])
        for path, folders in _LAYOUTS
        for name in SPLITS[split]
    )
    return [(path, folders) for path, folders in wanted if path.is_file()]


def _examples(split: str) -> str:
    name = SPLITS[split][0]
    examples = [f"{path} and {folders[0]}/".format(name, name) for path, folders in _LAYOUTS[:2]]
    return f"{', or '.join(examples)}, or what Roboflow exports"
