"""`natjax doctor`: versions, devices, and which implementation of attention every level of a model takes here, and why."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import add_dtype_argument, image_side
from natjax.cli._config import read_model
from natjax.cli._devices import no_device_message
from natjax.cli._output import print_json, print_table
from natjax.input_size import input_size
from natjax.text import printable

if TYPE_CHECKING:
    from natjax.configuration import NatConfig

HELP = "show versions, devices, and how attention runs on them"
_PACKAGES = (
    "natjax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "jax-triton",
    "triton",
    "optax",
    "grain",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "model", nargs="?", default="nat_tiny", metavar="NAME|DIR", help="whose levels to look at (default: nat_tiny)"
    )
    parser.add_argument(
        "--image-size", type=image_side, metavar="N", help="in pixels (default: that of the model's images)"
    )
    add_dtype_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prints what there is."""
    import jax

    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    config, processor = read_model(args.model)
    if not args.json:  # said even where the rest fails: just then versions are worth reading
        print_table(["package", "version"], [(name, version or "-") for name, version in versions.items()])
    try:
        devices = [{"id": d.id, "platform": d.platform, "kind": d.device_kind} for d in jax.devices()]
    except Exception as error:  # a driver that does not fit, say
        if args.json:
            print_json({"versions": versions, "backend": None, "devices": [], "ptxas": None, "levels": []})
        raise RuntimeError(no_device_message(error)) from error
    ptxas = _ptxas(devices)
    size = (args.image_size, args.image_size) if args.image_size else input_size(config, processor)
    levels = _levels(config, size, args.dtype)
    if args.json:
        backend = jax.default_backend()
        print_json({"versions": versions, "backend": backend, "devices": devices, "ptxas": ptxas, "levels": levels})
        return 0
    print()
    print_table(["device", "platform", "kind"], [tuple(d.values()) for d in devices])
    if ptxas:
        found = f"{ptxas['path']} ({ptxas['version']})" if ptxas["path"] else f"none: {ptxas['install']}"
        print(f"\nptxas, with which jaxlib assembles the fused kernels: {found}")
    print(f"\nAttention of {printable(args.model)} at {size[0]} x {size[1]} pixels in {args.dtype}:")
    rows = [
        (f"level {x['level']}", f"{x['tokens'][0]} x {x['tokens'][1]}", x["dilation"], x["implementation"])
        for x in levels
    ]
    print_table(["", "tokens", "dilation", "implementation"], rows, indent="  ")
    for reason in dict.fromkeys(x["reason"] for x in levels):
        which = ", ".join(dict.fromkeys(str(x["level"]) for x in levels if x["reason"] == reason))
        print(f"  level {which}: {reason}")
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ptxas(devices: list[dict[str, Any]]) -> dict[str, str | None] | None:
    """Returns path and version of the ptxas that jaxlib takes, or what to install; None where no GPU has a use for it."""
    from natjax_kernels.triton import ptxas

    plugin = ptxas.plugin()
    if plugin is None or all(device["platform"] != "gpu" for device in devices):
        return None
    found = ptxas.find(plugin)
    if found is None:
        return {"path": None, "version": None, "install": f"pip install {plugin.package}"}
    return {"path": found.path, "version": ".".join(map(str, found.version)), "install": None}


def _levels(config: NatConfig, size: tuple[int, int], dtype: str) -> list[dict[str, Any]]:
    """Returns what `natjax_kernels.explain` says of every level and dilation."""
    import jax

    from natjax.flops import count_parts
    from natjax_kernels import explain

    config = config.trunk
    levels, kernel = [], config.kernel_size
    for level, part in enumerate(count_parts(config, size)[1:-1]):
        heads = config.num_heads[level]
        for dilation in dict.fromkeys(config.layer_dilations(level)):
            sides = [max(side, kernel * dilation) for side in part.shape[:2]]  # as the model pads them
            tokens = jax.ShapeDtypeStruct((1, *sides, heads, part.shape[2] // heads), dtype)
            rpb = jax.ShapeDtypeStruct((heads, 2 * kernel - 1, 2 * kernel - 1), dtype)
            said = explain(tokens, tokens, tokens, rpb=rpb, kernel_size=kernel, dilation=dilation)
            name, _, reason = said.partition(": ")
            levels.append(
                {"level": level + 1, "tokens": sides, "dilation": dilation, "implementation": name, "reason": reason}
            )
    return levels
