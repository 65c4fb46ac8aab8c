"""What `classify`, `features`, `segment` and `detect` share: which images go through which model, progress, skipped images.

Images that cannot be read are named on stderr and skipped; the others go on.
"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator, Sequence
from typing import Any

from natjax.cli._arguments import positive_int
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress, complain
from natjax.errors import ImageError

_TOO_LARGE = (
    "the images do not fit into memory. Take fewer at a time (--batch-size), or smaller ones; classify, features and segment can "
    "split an image over more devices (--mesh space=N)."
)


def add_image_arguments(parser: argparse.ArgumentParser, batch_size: int = 8) -> None:
    """Adds the arguments that say which images go through which model."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_model_arguments(parser)
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=batch_size,
        metavar="N",
        help="images per step (default: %(default)s)",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which model it is, and how large images may be."""
    parser.add_argument(
        "--model",
        metavar="M",
        help="checkpoint: a folder, a file, a run's folder, a name of `natjax list` or a Hugging Face id; needed "
        "(digits is a small classifier of handwritten digits)",
    )
    parser.add_argument("--config", metavar="NAME|FILE", help="the model's architecture, where M has no config.json")
    parser.add_argument(
        "--max-pixels",
        type=positive_int,
        metavar="N",
        help="refuse larger images, which may be decompression bombs (default: Pillow's limit, 89478485)",
    )


def find_images(arguments: Sequence[str], skipped: list[tuple[str, str]] | None = None) -> list[str]:
    """Returns the files that arguments mean: files as they are, and the images of folders, of their subfolders, and of patterns.

    What folders hold beside images is counted on stderr.

    Args:
        arguments: files, folders and patterns.
        skipped: receives folders without images and the reason, if given.

    Raises:
        ImageError: a folder cannot be read.
    """
    paths: list[str] = []
    skipped = [] if skipped is None else skipped
    for argument in arguments:
        if glob.has_magic(argument) and not os.path.exists(argument):
            matches = sorted(glob.glob(argument)) or [argument]  # Windows leaves patterns to the command
        else:
            matches = [argument]
        for path in matches:
            paths += _of_folder(path, skipped) if os.path.isdir(path) else [path]
    return paths


def _of_folder(folder: str, skipped: list[tuple[str, str]]) -> list[str]:
    from natjax import image_files  # Pillow is not for --help

    found = image_files.find_images(folder)
    others = image_files.describe(found.skipped)
    if not found.paths:
        reason = f"{folder}: no images in this folder{f'; it holds {others}' if others else ', which is empty'}."
        complain(f"skipped {reason}")
        skipped.append((folder, reason))
    elif others:
        complain(f"{folder}: skipped {others}")
    return found.paths


def run_pipeline(
    pipe: Any, paths: list[str], skipped: list[tuple[str, str]], max_pixels: int | None
) -> Iterator[tuple[str, Any]]:
    """Yields (path, output) of images on their way through a pipeline; lists (path, reason) of those that cannot be read."""
    from natjax.images import pixel_limit  # Pillow is not for --help

    with explain_out_of_memory(_TOO_LARGE), pixel_limit(max_pixels), Progress(len(paths), "images") as progress:

        def skip(index: int, error: ImageError) -> None:
            skipped.append((paths[index], str(error)))
            progress.complain(f"skipped {error}")

        for done, (index, output) in enumerate(pipe.stream(paths, skip), 1):
            yield paths[index], output
            progress.update(done + len(skipped))
