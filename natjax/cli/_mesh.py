"""What `classify`, `features` and `segment` share for large images: their own size, and heights that are split over devices."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from natjax.meshes import SPACE, check_device_count, parse_sizes

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
    check_device_count({SPACE: devices}, jax.device_count())
    mesh = jax.make_mesh((devices,), (SPACE,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec(None, SPACE))


def _space(text: str) -> int:
    try:
        return parse_sizes(text, [SPACE], "space=4 (every image is split over 4 devices)")[SPACE]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
