"""What `classify`, `features` and `segment` share for large images: their own size, and heights that are split over devices."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import NamedSharding


def add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments for large images."""
    parser.add_argument(
        "--full-size", action="store_true", help="take images at their own size: neither resized nor cropped"
    )
    parser.add_argument(
        "--mesh",
        type=_space,
        metavar="space=N",
        help="split the height of every image over N devices, for images that do not fit one; results are the same",
    )


def image_sharding(devices: int | None) -> NamedSharding | None:
    """Returns where images [B, H, W, C] lie whose height is split over so many devices; None where it is not.

    Raises:
        ValueError: there are fewer.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    if devices is None:
        return None
    if devices > jax.device_count():
        raise ValueError(
            f"--mesh space={devices} needs {devices} devices; there are {jax.device_count()}. "
            f"On a CPU, JAX_NUM_CPU_DEVICES={devices} makes as many, for trials."
        )
    mesh = jax.make_mesh((devices,), ("space",), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec(None, "space"))


def _space(text: str) -> int:
    name, _, devices = text.partition("=")
    if name.strip() != "space" or not devices.strip().isdecimal() or int(devices) < 1:
        raise argparse.ArgumentTypeError(f"must be space=N, N devices that an image is split over; got {text!r}")
    return int(devices)
