"""`natjax list`: the models natjax knows by name."""

from __future__ import annotations

import argparse
from typing import Any

from natjax.cli._output import complain, print_json, print_table

HELP = "list the models natjax knows by name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only names that match, as in 'dinat*'")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prints the names with size and published figures; returns 1 where none matches."""
    from natjax.presets import PRESETS, list_models
    from natjax_convert.shapes import count_parameters

    names = list_models(args.pattern)
    models: list[dict[str, Any]] = [
        {
            "name": name,
            "parameters": count_parameters(PRESETS[name].config),
            "image_size": PRESETS[name].image_size,
            "published_gmacs": PRESETS[name].gmacs,
            "published_top1": PRESETS[name].top1,
            "hub_id": PRESETS[name].hub_id,
            "address": PRESETS[name].address,
            "license": PRESETS[name].license,
        }
        for name in names
    ]
    if args.json:
        print_json(models)
    elif models:
        rows = [
            (
                m["name"],
                f"{m['parameters'] / 1e6:.1f} M",
                m["image_size"],
                m["published_gmacs"],
                "-" if m["published_top1"] is None else m["published_top1"],
            )
            for m in models
        ]
        print_table(("name", "parameters", "pixels", "GMACs", "top-1 (%)"), rows)
        print("\nGMACs (papers call them GFLOPs) and ImageNet-1k top-1 are the published ones.")
        licences = ", ".join(dict.fromkeys(m["license"] for m in models))
        print(f"--model NAME takes the published weights from the Hugging Face Hub ({licences}),")
        print("or says what to download where they are not there. natjax info NAME and natjax")
        print("list --json say where they are.")
    if not models:
        complain(f"error: no model matches {args.pattern!r}; `natjax list` shows all")
    return 0 if models else 1
