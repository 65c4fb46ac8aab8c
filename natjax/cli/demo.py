"""`natjax demo`: a first run without downloads."""

from __future__ import annotations

import argparse

HELP = "try natjax on a small built-in model, without any download"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder to write into (default: demo)")


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration."""
    from natjax import demo

    return demo.run(args.out)
