"""`natjax convert`: a checkpoint from one format into another."""

from __future__ import annotations

import argparse
import json

from natjax.cli._output import printable

HELP = "convert a checkpoint between formats"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("src", metavar="SRC", help="checkpoint to read: a folder, .safetensors, .bin or .pth")
    parser.add_argument("dst", metavar="DST", help="folder (hf) or file (shilabs) to write")
    parser.add_argument("--to", choices=("hf", "shilabs"), default="hf", help="format to write (default: hf)")
    parser.add_argument("--config", metavar="NAME|FILE", help="the model, where SRC has no config.json")
    parser.add_argument(
        "--dilations", type=_json, metavar="JSON", help="one list per level, as in [[1,8],[1,4],[1,2],[1,1]]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DST")


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    from natjax_convert import convert

    report = convert(
        args.src, args.dst, config=args.config, dilations=args.dilations, to=args.to, overwrite=args.overwrite
    )
    print(printable(str(report)))
    return 0


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
