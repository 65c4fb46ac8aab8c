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
    from natjax.presets import list_models

    models = [_facts(name) for name in list_models(args.pattern)]
    if args.json:
        print_json(models)
    elif models:
        _print(models)
    if not models:
        complain(f"error: no model matches {args.pattern!r}; `natjax list` shows all")
    return 0 if models else 1


def _facts(name: str) -> dict[str, Any]:
    """Returns what is known of a preset."""
    from natjax.presets import ALL_PRESETS, SEGMENTATION_PRESETS
    from natjax_convert.shapes import count_parameters

    preset, segments = ALL_PRESETS[name], name in SEGMENTATION_PRESETS
    accuracy = (
        {"published_miou": preset.miou, "published_miou_multi_scale": preset.miou_multi_scale} if segments else {}
    )
    return {
        "name": name,
        "task": "semantic segmentation" if segments else "image classification",
        "parameters": count_parameters(preset.config, "segmentation" if segments else "classifier"),
        "image_size": list(preset.image_size) if segments else preset.image_size,
        "published_gmacs": preset.gmacs,
        **(accuracy or {"published_top1": preset.top1}),
        "hub_id": preset.hub_id,
        "address": preset.address,
        "license": preset.license,
    }


def _print(models: list[dict[str, Any]]) -> None:
    """Prints a table for each task, and what their columns mean."""
    notes = []
    classifiers = [m for m in models if "published_top1" in m]
    segmenters = [m for m in models if "published_top1" not in m]
    if classifiers:
        rows = [
            (m["name"], _millions(m), m["image_size"], m["published_gmacs"], _or_dash(m["published_top1"]))
            for m in classifiers
        ]
        print_table(("name", "parameters", "pixels", "GMACs", "top-1 (%)"), rows)
        print()
        notes.append("ImageNet-1k top-1")
    if segmenters:
        rows = [
            (
                m["name"],
                _millions(m),
                " x ".join(map(str, m["image_size"])),
                _or_dash(m["published_gmacs"]),
                m["published_miou"],
                m["published_miou_multi_scale"],
            )
            for m in segmenters
        ]
        print_table(("name", "parameters", "pixels", "GMACs", "mIoU (%)", "several scales"), rows)
        print()
        notes.append("ADE20K mIoU")
    print(f"GMACs (papers call them GFLOPs) and {' and '.join(notes)} are the published ones.")
    licences = ", ".join(dict.fromkeys(m["license"] for m in models))
    print(f"--model NAME takes the published weights from the Hugging Face Hub ({licences}),")
    print("or says what to download where they are not there. natjax info NAME and natjax")
    print("list --json say where they are.")


def _millions(model: dict[str, Any]) -> str:
    return f"{model['parameters'] / 1e6:.1f} M"


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value
