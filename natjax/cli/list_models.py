"""`natjax list`: the models natjax knows by name."""

from __future__ import annotations

import argparse

from natjax.cli._output import complain, print_json, print_table

HELP = "list the models natjax knows by name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only names that match, as in 'dinat*'")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prints the names with the published size and accuracy; returns 1 where none matches."""
    import natjax
    from natjax.model_info import PUBLISHED

    names = natjax.list_models(args.pattern)
    rows = [(name, *published_figures(PUBLISHED.get(name)).values()) for name in names]
    if args.json:
        print_json([{"name": name, **published_figures(PUBLISHED.get(name))} for name in names])
    elif names:
        head = ("name", "params (M)", "GFLOPs", "top-1 (%)")
        print_table(head, [["-" if cell is None else cell for cell in row] for row in rows])
    if not names:
        complain(f"error: no model matches {args.pattern!r}; `natjax list` shows all")
    return 0 if names else 1


def published_figures(published: object) -> dict[str, float | None]:
    """Returns the authors' figures of a model, None where they gave none."""
    return {name: getattr(published, name, None) for name in ("params_millions", "gflops", "top1")}
