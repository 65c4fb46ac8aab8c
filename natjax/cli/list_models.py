"""`natjax list`: the models natjax knows by name."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from natjax.cli._output import complain, print_json, print_table


class _Task(NamedTuple):
    """What presets of a kind are for, and the columns of their accuracies."""

    name: str
    accuracies: dict[str, str]
    note: str


_TASKS = {
    "classifier": _Task("image classification", {"top1": "top-1 (%)"}, "ImageNet-1k top-1"),
    "segmentation": _Task(
        "semantic segmentation", {"miou": "mIoU (%)", "miou_multi_scale": "several scales"}, "ADE20K mIoU"
    ),
    "detection": _Task("object detection", {"box_ap": "box AP (%)", "mask_ap": "mask AP (%)"}, "COCO AP"),
}
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
    from natjax.presets import ALL_PRESETS
    from natjax_convert.shapes import count_parameters, kind_of

    preset = ALL_PRESETS[name]
    kind, size = kind_of(preset.config), preset.image_size
    return {
        "name": name,
        "task": _TASKS[kind].name,
        "parameters": count_parameters(preset.config, kind),
        "image_size": size if isinstance(size, int) else list(size),
        "published_gmacs": preset.gmacs,
        **{f"published_{accuracy}": getattr(preset, accuracy) for accuracy in _TASKS[kind].accuracies},
        "hub_id": preset.hub_id,
        "address": preset.address,
        "license": preset.license,
    }


def _print(models: list[dict[str, Any]]) -> None:
    """Prints a table for each task, and what their columns mean."""
    notes = []
    for task in _TASKS.values():
        rows = [_row(model, task) for model in models if model["task"] == task.name]
        if rows:
            print_table(("name", "parameters", "pixels", "GMACs", *task.accuracies.values()), rows)
            print()
            notes.append(task.note)
    *others, last = notes
    named = f"{', '.join(others)} and {last}" if others else last
    print(f"GMACs (papers call them GFLOPs) and {named} are the published ones.")
    licences = ", ".join(dict.fromkeys(m["license"] for m in models))
    print(f"--model NAME takes the published weights from the Hugging Face Hub ({licences}),")
    print("or says what to download where they are not there. natjax info NAME and natjax")
    print("list --json say where they are.")


def _row(model: dict[str, Any], task: _Task) -> list[Any]:
    size, millions = model["image_size"], f"{model['parameters'] / 1e6:.1f} M"
    pixels = size if isinstance(size, int) else " x ".join(map(str, size))
    figures = [model["published_gmacs"], *(model[f"published_{accuracy}"] for accuracy in task.accuracies)]
    return [model["name"], millions, pixels, *map(_or_dash, figures)]


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value
