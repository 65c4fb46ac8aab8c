"""`natjax push`: uploads a model to the Hugging Face Hub."""

from __future__ import annotations

import argparse

from natjax.cli._output import complain
from natjax.text import printable

HELP = "upload a model to the Hugging Face Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", metavar="RUN|DIR", help="folder of a run or of a model")
    parser.add_argument("hub_id", metavar="OWNER/NAME", help="where to; made where there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(args: argparse.Namespace) -> int:
    """Uploads, and says where the model is."""
    from natjax import hub, run_files

    address = hub.push(args.model, args.hub_id, private=args.private)
    if not (hub.locate(args.model) / run_files.CARD).is_file():
        complain(f"{printable(args.model)} has no {run_files.CARD}: write a model card at {address}")
    print(address)
    return 0
