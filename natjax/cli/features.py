"""`natjax features`: pooled features or feature maps of images, written to an .npz file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from natjax.atomic import replacing
from natjax.cli._config import read_given
from natjax.cli._images import add_image_arguments, find_images, run_pipeline
from natjax.cli._output import complain, print_table
from natjax.errors import printable
from natjax.hub import locate

HELP = "write features of images to an .npz file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_image_arguments(parser)
    parser.add_argument("--out", default="features.npz", metavar="FILE", help="file to write (default: features.npz)")
    parser.add_argument(
        "--stages",
        metavar="NAMES",
        help="feature maps instead of pooled features: 'all', or names with commas, as in stage2,stage4 (also: stem)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the features and says what was written; returns 1 where an image was skipped."""
    out = Path(args.out)
    if not out.absolute().parent.is_dir():  # said before the work, not after it
        raise FileNotFoundError(f"{args.out}: there is no such folder to write into.")
    if out.is_dir():
        raise IsADirectoryError(f"{args.out}: is a folder; give a file to write, such as {out / 'features.npz'}.")
    skipped: list[tuple[str, str]] = []
    checkpoint = locate(args.model)
    paths = find_images(args.images, skipped)
    pipe = _pipeline(args, checkpoint)
    rows: list[tuple[str, dict[str, Any]]] = []
    for path, features in run_pipeline(pipe, paths, skipped):
        rows.append((path, features if args.stages else {"pooled": features}))
        _check_size(rows)
    if not rows:
        complain("error: no image could be read; nothing was written")
        return 1
    _write(out, rows)
    return 1 if skipped else 0


def _pipeline(args: argparse.Namespace, checkpoint: Path) -> Any:
    from natjax.pipelines import pipeline

    stages: Any = args.stages
    if stages not in (None, "all"):
        stages = [name.strip() for name in stages.split(",")]
    config, processor = read_given(args.config)
    try:
        return pipeline(
            "image-feature-extraction",
            checkpoint,
            config=config,
            processor=processor,
            batch_size=args.batch_size,
            stages=stages,
            report=complain,
        )
    except ValueError as error:
        if str(error).startswith("stages "):
            raise ValueError(f"--{error}") from error
        raise


def _check_size(rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Refuses features of another size than the first image's as soon as they come: one array holds all of one name."""
    (first, expected), (path, features) = rows[0], rows[-1]
    for name in features:
        if features[name].shape != expected[name].shape:
            raise ValueError(
                f"feature maps differ in size: {name} is {list(expected[name].shape)} for {first} and "
                f"{list(features[name].shape)} for {path}. Give images of one size, or have the model's image processor resize "
                "or crop all to one."
            )


def _write(out: Path, rows: list[tuple[str, dict[str, Any]]]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {"images": np.array([path for path, _ in rows])}
    for name in rows[0][1]:
        arrays[name] = np.stack([features[name] for _, features in rows])
    with replacing(out) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    print(f"{printable(str(out))}: features of {len(rows)} image(s)")
    print_table(("array", "shape", "type"), [(name, list(a.shape), a.dtype) for name, a in arrays.items()], indent="  ")
