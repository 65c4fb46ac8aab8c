"""`natjax convert`: a checkpoint from one format into another."""

from __future__ import annotations

import argparse
import json
from typing import Any

from natjax.cli._config import read_config
from natjax.cli._output import complain, printable

HELP = "convert a checkpoint between formats"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("src", metavar="SRC", help="checkpoint to read: a folder, .safetensors, .bin or .pth")
    parser.add_argument("dst", metavar="DST", help="folder (hf) or file (shilabs) to write")
    parser.add_argument("--to", choices=("hf", "shilabs"), default="hf", help="format to write (default: hf)")
    parser.add_argument("--config", metavar="NAME|FILE", help="the model, where SRC has no config.json")
    parser.add_argument(
        "--dilations",
        type=_dilations,
        metavar="JSON",
        help="of each layer by level: [[1,8,1],[1,4]]; 'none' for NAT",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at DST")


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    from natjax.configuration import PROCESSOR_NAME
    from natjax_convert import convert

    config = read_config(args.config)
    report = convert(args.src, args.dst, config=config, dilations=args.dilations, to=args.to, overwrite=args.overwrite)
    config = report.config
    print(f"{printable(args.src)} ({report.source} {report.kind}) -> {printable(args.dst)} ({args.to})")
    print(f"  {config.model_type}, {config.num_labels} class(es), depths {'-'.join(map(str, config.depths))}")
    if report.default_processor:
        complain(
            f"{printable(args.src)} comes without a {PROCESSOR_NAME}: wrote ImageNet's (224 pixels, crop 0.875); replace it if "
            "the model was trained otherwise"
        )
    print(f"  {report.tensors} tensors, {report.parameters:,} parameters, {report.seconds:.1f} s")
    return 0


def _dilations(text: str) -> Any:
    try:
        return text if text == "none" else json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be 'none' or JSON: {error}") from error
