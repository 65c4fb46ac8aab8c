"""Which files are images: one rule for training, evaluation, records and the command line.

A file is an image if its suffix is one that the installed Pillow opens. Hidden files and folders are skipped at every depth,
and so are the leftovers of operating systems and network storage. What is skipped is counted by kind. Nothing is decoded here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import PIL.Image

from natjax.errors import ImageError
from natjax.images import AVIF_READER, HEIC_READER, readable_formats

# Leftovers beside dot files: macOS archives, Windows, ext4, and the thumbnails and bins of Synology and QNAP.
_LEFTOVERS = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__pycache__"),
}
_HEIC = (".heic", ".heics", ".heif", ".heifs", ".hif")
_HINTS = dict.fromkeys((f"{suffix} file" for suffix in _HEIC), f"{HEIC_READER} reads them") | {
    f"{suffix} file": f"{AVIF_READER} reads them" for suffix in (".avif", ".avifs", ".webp")
}
_KINDS = 6  # that a description names


@dataclasses.dataclass(frozen=True)
class FoundImages:
    """What a folder holds.

    Attributes:
        paths: of the images: those of a folder in the order of their names, then those of its subfolders.
        skipped: how many of what else, by kind: {"hidden file": 3, ".txt file": 2}.
    """

    paths: list[str]
    skipped: Counter[str]


def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of image files, in lower case and with their dot."""
    formats = {*readable_formats(), "MPO"}  # photographs of several views, which Pillow opens as JPEG
    return frozenset(suffix for suffix, name in PIL.Image.registered_extensions().items() if name in formats)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is none of a data set: it is hidden, or a leftover of some system."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def entries(folder: str | os.PathLike) -> list[os.DirEntry[str]]:
    """Returns what a folder holds, in the order of the names.

    Raises:
        natjax.ImageError: it cannot be read, or names its files without letting them be opened.
    """
    try:
        os.stat(os.path.join(folder, "."))  # a folder may be listed and yet not be entered
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def find_images(folder: str | os.PathLike, visited: set[tuple[int, int]] | None = None) -> FoundImages:
    """Finds the images of a folder and its subfolders, links followed.

    Args:
        folder: where to look.
        visited: folders that are not entered, by `folder_id`; those that were entered are added. The folder's parents are
            never entered, so that links that lead back end.

    Raises:
        natjax.ImageError: the folder or one of its subfolders cannot be read.
    """
    visited = set() if visited is None else visited
    visited |= set(map(folder_id, Path(folder).resolve().parents))
    visited.discard(folder_id(folder))
    found, suffixes = FoundImages([], Counter()), image_suffixes()
    waiting = [os.fspath(folder)]
    while waiting:
        current = waiting.pop()
        if (key := folder_id(current)) in visited:
            found.skipped["folder that links lead to again"] += 1
            continue
        visited.add(key)
        subfolders = []
        for entry in entries(current):
            kind = kind_of(entry, suffixes)
            if kind == "folder":
                subfolders.append(entry.path)
            elif kind == "image":
                found.paths.append(entry.path)
            else:
                found.skipped[kind] += 1
        waiting += reversed(subfolders)
    return found


def kind_of(entry: os.DirEntry[str], suffixes: Collection[str]) -> str:
    """Returns "folder" or "image", or in words what else it is: "hidden folder", ".txt file".

    Args:
        entry: something in a folder.
        suffixes: of images, see `image_suffixes`.

    Raises:
        natjax.ImageError: it is a link that cannot be followed for want of permission.
    """
    hidden = is_hidden(entry.name)
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:
        if isinstance(error, PermissionError) and not hidden:
            raise _unreadable(entry.path, error) from error
        is_folder = is_file = False  # a link to itself
    if hidden:
        return "hidden folder" if is_folder else "hidden file"
    if is_folder:
        return "folder"
    if not is_file:
        return "broken link" if entry.is_symlink() else "special file"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in suffixes:
        return "image"
    if not suffix:
        return "file without a suffix"
    return f"{suffix} file" if suffix[1:].isalnum() and len(suffix) <= 10 else "file of an unknown suffix"


def folder_id(folder: str | os.PathLike) -> tuple[int, int]:
    """Returns device and number of a folder, which are the same whichever link leads there.

    Raises:
        natjax.ImageError: it cannot be read.
    """
    try:
        stat = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return stat.st_dev, stat.st_ino


def describe(skipped: Mapping[str, int]) -> str:
    """Returns what was skipped in words, the most frequent first: "3 hidden files, 1 .txt file"."""
    return ", ".join(_descriptions(Counter(skipped)))


def _descriptions(skipped: Counter[str]) -> Iterator[str]:
    kinds = skipped.most_common()
    for kind, count in kinds[:_KINDS]:
        words = kind if count == 1 else re.sub(r"\b(file|folder|link)(?= |$)", r"\1s", kind, count=1)
        hint = f" ({_HINTS[kind]})" if kind in _HINTS else ""
        yield f"{count:,} {words}{hint}"
    if others := sum(count for _, count in kinds[_KINDS:]):
        yield f"{others:,} of other kinds"


def _unreadable(path: str | os.PathLike, error: OSError) -> ImageError:
    return ImageError(f"{os.fspath(path)}: the folder cannot be read: {error.strerror or error}.")
