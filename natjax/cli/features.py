"""`natjax features`: pooled features or feature maps of images, written to an .npz file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from natjax.atomic import replacing
from natjax.cli._config import read_config
from natjax.cli._images import add_image_arguments, find_checkpoint, find_images, run_pipeline
from natjax.cli._output import complain, print_table, printable

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
    from natjax.pipelines import pipeline

    out = Path(args.out)
    if not out.absolute().parent.is_dir():  # said before the work, not after it
        raise FileNotFoundError(f"{args.out}: there is no such folder to write into.")
    if out.is_dir():
        raise IsADirectoryError(f"{args.out}: is a folder; give a file to write, such as {out / 'features.npz'}.")
    stages = args.stages if args.stages in (None, "all") else args.stages.split(",")
    pipe: Any = pipeline(
        "image-feature-extraction",
        find_checkpoint(args.model),
        config=read_config(args.config),
        batch_size=args.batch_size,
        stages=stages,
        report=complain,
    )
    skipped: list[tuple[str, str]] = []
    rows = list(run_pipeline(pipe, find_images(args.images), skipped))
    if not rows:
        complain("error: no image could be read; nothing was written")
        return 1
    if stages is None:
        rows = [(path, {"pooled": features}) for path, features in rows]
    _write(out, rows)
    return 1 if skipped else 0


def _write(out: Path, rows: list[tuple[str, dict[str, Any]]]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {"images": np.array([path for path, _ in rows])}
    for name in rows[0][1]:
        shapes = {features[name].shape for _, features in rows}
        if len(shapes) > 1:
            raise ValueError(
                f"feature maps differ in size ({sorted(shapes)}) and fit no one array; give images of one size."
            )
        arrays[name] = np.stack([features[name] for _, features in rows])
    with replacing(out) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    print(f"{printable(str(out))}: features of {len(rows)} image(s)")
    print_table(("array", "shape", "type"), [(name, list(a.shape), a.dtype) for name, a in arrays.items()], indent="  ")
