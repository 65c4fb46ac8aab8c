"""`natjax explore`: a web page that shows what every token of an image attends to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from natjax.atomic import check_writable, replacing
from natjax.cli._config import read_given
from natjax.cli._images import add_model_arguments
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import complain
from natjax.hub import locate
from natjax.text import printable

HELP = "write a web page that shows what every part of an image attends to"
_TOO_LARGE = "the attention weights do not fit into memory. Give a smaller image, or leave --full-size out."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    add_model_arguments(parser)
    parser.add_argument("--full-size", action="store_true", help="take the image as large as it is")
    parser.add_argument("--out", default="explorer.html", metavar="FILE", help="page to write (default: explorer.html)")


def run(args: argparse.Namespace) -> int:
    """Writes the page and says how large it is."""
    check_writable(args.out)  # to be known before the work, not after it
    checkpoint = locate(args.model)
    from natjax.explorer import make_page
    from natjax.images import pixel_limit
    from natjax.pipelines import pipeline

    config, processor = read_given(args.config)
    pipe = pipeline(
        "image-feature-extraction",
        checkpoint,
        config=config,
        processor=processor,
        full_size=args.full_size,
        report=complain,
    )
    model_name = os.path.basename(os.path.normpath(args.model))
    with explain_out_of_memory(_TOO_LARGE), pixel_limit(args.max_pixels):
        page = make_page(pipe.model, pipe.processor, args.image, model_name=model_name)
    with replacing(args.out) as unfinished:
        Path(unfinished).write_text(page, encoding="utf-8")
    print(f"{printable(args.out)}: {len(page) / 1e6:.1f} MB; open it in a web browser")
    return 0
