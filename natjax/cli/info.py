"""`natjax info`: configuration, parameters and FLOPs of a model, next to what its authors published."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._output import print_json, print_table, printable
from natjax.cli.list_models import published_figures

if TYPE_CHECKING:
    from natjax.configuration import NatConfig

HELP = "describe a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", metavar="NAME|DIR", help="a name from `natjax list`, or a folder with a config.json")
    parser.add_argument("--size", type=_size, default=(224, 224), metavar="N|HxW", help="image size (default: 224)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prints the description."""
    from natjax.model_info import PUBLISHED, count_flops, count_parameters

    config = _config(args.model)
    facts: dict[str, Any] = {
        "model": args.model,
        "type": config.model_type,
        "parameters": count_parameters(config),
        "image_size": list(args.size),
        "flops": count_flops(config, image_size=args.size),
        "levels": _levels(config, args.size),
        "published": published_figures(PUBLISHED[args.model]) if args.model in PUBLISHED else None,
    }
    if args.json:
        print_json({**facts, "config": config.to_dict()})
        return 0
    published = facts["published"] or {}
    print(
        f"{printable(args.model)}: {config.model_type}, {config.num_channels} channel(s), {config.num_labels} class(es)"
    )
    height, width = args.size
    theirs = [published.get(name) for name in ("params_millions", "gflops")]
    ours = (f"{facts['parameters'] / 1e6:.2f} M", f"{facts['flops'] / 1e9:.2f} G")
    for name, figure, other, unit in zip(("parameters", "FLOPs"), ours, theirs, "MG", strict=True):
        at = f" at {height} x {width}" if unit == "G" else ""
        print(f"  {name:<10}  {figure}{at}" + (f" (published: {other} {unit})" if other is not None else ""))
    if published.get("top1") is not None:
        print(f"  ImageNet-1k top-1 {published['top1']} % (published)")
    print(f"  window      {config.kernel_size} x {config.kernel_size}")
    rows = [(f"level {i + 1}", *level.values()) for i, level in enumerate(facts["levels"])]
    print_table(("", *facts["levels"][0]), [[_cell(value) for value in row] for row in rows], indent="  ")
    return 0


def _config(model: str) -> NatConfig:
    import natjax

    path = Path(model)
    if path.is_dir():
        return natjax.NatConfig.from_json_file(path / "config.json")
    if path.is_file():
        return natjax.NatConfig.from_json_file(path)
    if model in natjax.list_models():
        return natjax.get_config(model)
    raise ValueError(f"{model!r} is neither a model that `natjax list` shows nor a folder with a config.json.")


def _levels(config: NatConfig, size: tuple[int, int]) -> list[dict[str, Any]]:
    height, width = (-(-side // 4) for side in size)
    levels = []
    for i, channels in enumerate(config.level_dims):
        levels.append(
            {
                "tokens": [height, width],
                "channels": channels,
                "layers": config.depths[i],
                "heads": config.num_heads[i],
                "dilations": list(config.layer_dilations(i)),
            }
        )
        height, width = -(-height // 2), -(-width // 2)
    return levels


def _cell(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return str(value[0]) if len(set(value)) == 1 and len(value) != 2 else " ".join(map(str, value))


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError("must be a number of pixels or HEIGHTxWIDTH")
    return sides[0], sides[-1]
