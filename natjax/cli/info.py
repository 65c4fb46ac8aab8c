"""`natjax info`: configuration, parameters and operations of a model, next to what its authors published and where."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import image_size
from natjax.cli._config import ACCURACIES, MODEL_HELP, find_preset, read_model
from natjax.cli._output import print_json, print_table
from natjax.input_size import input_size
from natjax.text import printable

if TYPE_CHECKING:
    from natjax.configuration import DenseConfig, NatConfig

HELP = "describe a model: levels, parameters, operations, weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", metavar="NAME|DIR", help=MODEL_HELP)
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="N|HxW",
        help="in pixels (default: that of the model's images)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prints the description."""
    from natjax.flops import count_macs
    from natjax_convert.shapes import count_parameters, kind_of

    config, processor = read_model(args.model)
    preset: Any = find_preset(args.model)
    size = args.image_size or input_size(config, processor)
    parameters = count_parameters(config, kind_of(config))
    macs, parts = count_macs(config, size), _parts(config, size)
    published = weights = None
    if preset:
        side = preset.image_size  # or both
        published = {"image_size": [side, side] if isinstance(side, int) else list(side), "gmacs": preset.gmacs}
        published |= {name: getattr(preset, name) for name in ACCURACIES if hasattr(preset, name)}
        weights = {"hub_id": preset.hub_id, "address": preset.address, "license": preset.license}
    if args.json:
        facts = {"parameters": parameters, "image_size": list(size), "macs": macs, "flops": 2 * macs, "parts": parts}
        print_json(
            {"model": args.model, **facts, "published": published, "weights": weights, "config": config.to_dict()}
        )
        return 0
    trunk = config.trunk
    family = config.model_type if trunk is config else f"{config.model_type} on {trunk.model_type}"
    print(f"{printable(args.model)}: {family}, channels: {config.num_channels}, classes: {config.num_labels}")
    print(f"  window      {trunk.kernel_size} x {trunk.kernel_size} tokens")
    print(f"  parameters  {parameters:,} ({parameters / 1e6:.2f} M)")
    print(f"  MACs        {macs / 1e9:.2f} G at {size[0]} x {size[1]} pixels (papers call them FLOPs)")
    if preset:
        figures, (height, width) = _figures(preset), (published or {})["image_size"]
        hub = f"{preset.hub_id} (Hugging Face Hub; {preset.license} licence)\n              " if preset.hub_id else ""
        cost = f"{preset.gmacs} GMACs at {height} x {width}, " if preset.gmacs else ""
        print(f"  published   {cost}{figures}")
        print(f"  weights     {hub}{preset.address}{'' if hub else f' ({preset.license} licence)'}")
    print()
    columns = [name for name in parts[0] if name != "flops"]
    rows = [["" if part[name] is None else _cell(part[name]) for name in columns] for part in parts]
    print_table(["MACs" if name == "macs" else name for name in columns], rows, indent="  ")
    return 0


def _figures(preset: Any) -> str:
    """Returns the published accuracy in words."""
    if hasattr(preset, "box_ap"):
        return f"COCO box AP {preset.box_ap} %, mask AP {preset.mask_ap} %"
    if hasattr(preset, "miou"):
        return f"ADE20K mIoU {preset.miou} %, {preset.miou_multi_scale} % at several scales"
    return "classes of ImageNet-22k" if preset.top1 is None else f"ImageNet-1k top-1 {preset.top1} %"


def _parts(config: NatConfig | DenseConfig, size: tuple[int, int]) -> list[dict[str, Any]]:
    from natjax.flops import count_parts

    parts, trunk = [], config.trunk
    for level, part in enumerate(count_parts(config, size), start=-1):
        is_level = 0 <= level < trunk.num_levels
        parts.append(
            {
                "part": part.name,
                "tokens": list(part.shape[:2]),
                "channels": part.shape[2],
                "layers": trunk.depths[level] if is_level else None,
                "heads": trunk.num_heads[level] if is_level else None,
                "dilations": "/".join(map(str, dict.fromkeys(trunk.layer_dilations(level)))) if is_level else None,
                "parameters": part.parameters,
                "macs": part.macs,
                "flops": part.flops,
            }
        )
    return parts


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
