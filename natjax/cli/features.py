"""`natjax features`: pooled features or feature maps of images, written to an .npz file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from natjax.cli._config import read_config
from natjax.cli._images import Run, add_image_arguments, compiled, find_checkpoint, find_images, load_processor
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
    from natjax import models
    from natjax_convert import Checkpoint

    out = Path(args.out)
    if not out.absolute().parent.is_dir():  # said before the work, not after it
        raise FileNotFoundError(f"{args.out}: there is no such folder to write into.")
    if out.is_dir():
        raise IsADirectoryError(f"{args.out}: is a folder; give a file to write, such as {out / 'features.npz'}.")
    checkpoint, config = find_checkpoint(args.model), read_config(args.config)
    if args.stages is None:
        names: tuple[str, ...] = ("pooled",)
        model = models.NatModel.from_pretrained(checkpoint, config=config)
        forward = compiled(model, lambda outputs: (outputs.pooler_output,))
    else:
        opened = Checkpoint.open(checkpoint, config=config)
        names = opened.config.stage_names if args.stages == "all" else tuple(args.stages.split(","))
        model = models.NatBackbone.from_pretrained(opened, out_features=names)
        forward = compiled(model, lambda outputs: tuple(outputs.feature_maps))
    processor = load_processor(checkpoint, model.config.num_channels)
    images = Run(find_images(args.images), processor, forward, args.batch_size)
    rows = list(images)
    if not rows:
        complain("error: no image could be read; nothing was written")
        return 1
    _write(out, names, rows)
    return 1 if images.skipped else 0


def _write(out: Path, names: tuple[str, ...], rows: list) -> None:
    import numpy as np

    arrays: dict[str, Any] = {"images": np.array([path for path, _ in rows])}
    for i, name in enumerate(names):
        shapes = {features[i].shape for _, features in rows}
        if len(shapes) > 1:
            raise ValueError(
                f"feature maps differ in size ({sorted(shapes)}) and fit no one array; give images of one size."
            )
        arrays[name] = np.stack([features[i] for _, features in rows])
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{printable(str(out))}: features of {len(rows)} image(s)")
    print_table(("array", "shape", "type"), [(name, list(a.shape), a.dtype) for name, a in arrays.items()], indent="  ")
