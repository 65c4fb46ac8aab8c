"""`natjax features`: pooled features or feature maps of images, written to an .npz file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from natjax.atomic import check_writable, replacing
from natjax.cli._config import read_given
from natjax.cli._images import add_image_arguments, find_images, run_pipeline
from natjax.cli._mesh import add_mesh_arguments, image_sharding
from natjax.cli._output import complain, print_table
from natjax.hub import locate
from natjax.text import counted, printable

HELP = "write features of images to an .npz file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_image_arguments(parser)
    add_mesh_arguments(parser)
    parser.add_argument("--out", default="features.npz", metavar="FILE", help="file to write (default: features.npz)")
    parser.add_argument(
        "--stages",
        metavar="NAMES",
        help="feature maps instead of pooled features: 'all', or names with commas, as in stage2,stage4 (also: stem)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the features and says what was written; returns 1 where an image was skipped."""
    check_writable(args.out)  # to be known before the work, not after it
    skipped: list[tuple[str, str]] = []
    checkpoint = locate(args.model)
    paths = find_images(args.images, skipped)
    pipe = _pipeline(args, checkpoint)
    rows: list[tuple[str, dict[str, Any]]] = []
    for path, features in run_pipeline(pipe, paths, skipped, args.max_pixels):
        rows.append((path, features if args.stages else {"pooled": features}))
        _check_size(rows)
    if not rows:
        complain("error: no image could be read; nothing was written")
        return 1
    _write(args.out, rows)
    return 1 if skipped else 0


def _pipeline(args: argparse.Namespace, checkpoint: Path) -> Any:
    from natjax.pipelines import pipeline

    stages: Any = args.stages
    if stages not in (None, "all"):
        stages = [name.strip() for name in stages.split(",")]
    config, processor = read_given(args.config)
    return pipeline(
        "image-feature-extraction",
        checkpoint,
        config=config,
        processor=processor,
        batch_size=args.batch_size,
        full_size=args.full_size,
        sharding=image_sharding(args.mesh),
        stages=stages,
        report=complain,
    )


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


def _write(out: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {"images": np.array([path for path, _ in rows])}
    for name in rows[0][1]:
        arrays[name] = np.stack([features[name] for _, features in rows])
    with replacing(out) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    print(f"{printable(out)}: features of {counted(len(rows), 'image')}")
    print_table(("array", "shape", "type"), [(name, list(a.shape), a.dtype) for name, a in arrays.items()], indent="  ")
