"""What `segment` and `detect` share: the pictures that they write, one or more for each image, into a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.atomic import check_writable, replacing

if TYPE_CHECKING:
    import PIL.Image


def picture_names(paths: list[str], endings: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names of what is written for each image: its own, with each of the endings: NAME.png, NAME_overlay.png.

    No name is given twice, whatever capitals: another image of the same name becomes NAME_2.png.
    """
    taken: set[str] = set()
    names: dict[str, list[str]] = {}
    for path in paths:
        if path in names:
            continue
        stem, number = Path(path).stem, 1
        while True:
            unique = stem if number == 1 else f"{stem}_{number}"
            wanted = [f"{unique}{ending}" for ending in endings]
            if not taken & {name.casefold() for name in wanted}:
                break
            number += 1
        taken |= {name.casefold() for name in wanted}
        names[path] = wanted
    return names


def picture_folder(out: str, names: dict[str, list[str]]) -> Path:
    """Makes the folder and checks that it can be written, to be known before the work.

    Args:
        out: the folder.
        names: what is written for each image, see `picture_names`.

    Raises:
        OSError: it cannot.
        ValueError: one of the images would be overwritten.
    """
    folder, written = Path(out), [name for several in names.values() for name in several]
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{out}: is a file; give a folder to write into.")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / (written[0] if written else "picture.png"))
    inputs = {os.path.realpath(image) for image in names}
    for name in written:
        if os.path.realpath(folder / name) in inputs:
            raise ValueError(
                f"{folder / name}: is one of the images, and would be overwritten. Give another folder, --out DIR."
            )
    return folder


def write_picture(path: Path, picture: PIL.Image.Image, **options: Any) -> None:
    """Writes a picture, or leaves what there was.

    Args:
        path: of the file.
        picture: the picture.
        **options: of Pillow's `save`, its format among them.
    """
    with replacing(path) as unfinished:
        picture.save(unfinished, **options)
