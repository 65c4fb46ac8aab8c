"""Anchors of a region proposal network (Faster R-CNN, arXiv 1506.01497): boxes around every cell of a pyramid's feature maps.

They depend on sizes alone, so they are NumPy arrays: constants of a traced program. As in mmdetection, the anchors of cell
(x, y) of a map with stride s are centred on (x s, y s), the cell's upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Num


def pyramid_anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], scale: float, ratios: Sequence[float]
) -> list[Float32[np.ndarray, "_ 4"]]:
    """Returns the anchors of every map, in the order of rows, columns and ratios: float32 [height width ratios, 4].

    Args:
        sizes: (height, width) of the maps.
        strides: how many pixels of the image a cell of each map is wide and high.
        scale: the side of a square anchor in strides.
        ratios: height by width; all anchors of a map have the same area.
    """
    return [
        _level_anchors(size, stride, scale, np.asarray(ratios, np.float32))
        for size, stride in zip(sizes, strides, strict=True)
    ]


def inside(
    anchors: Float[Array | np.ndarray, "N 4"], image_sizes: Num[Array, "*B 2"], border: float
) -> Bool[Array, "*B N"]:
    """Returns which anchors are inside of images.

    Args:
        anchors: of all levels.
        image_sizes: (height, width) of the images without padding.
        border: how many pixels an anchor may go beyond each side.
    """
    height, width = (jnp.asarray(image_sizes)[..., i, None].astype(jnp.float32) for i in range(2))
    x1, y1, x2, y2 = anchors.T
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


def centred_inside(anchors: Float[Array | np.ndarray, "N 4"], sizes: Num[Array, "*B 2"]) -> Bool[Array, "*B N"]:
    """Returns which anchors have their centre inside of images: mmdetection's valid flags, for images with their own padding.

    Args:
        anchors: of all levels.
        sizes: (height, width) of the images, whole numbers of pixels.
    """
    height, width = (jnp.asarray(sizes)[..., i, None].astype(jnp.float32) for i in range(2))
    x1, y1, x2, y2 = anchors.T
    # Centres are whole numbers, up to rounding.
    return ((x1 + x2) / 2 < width - 0.5) & ((y1 + y2) / 2 < height - 0.5)


def _level_anchors(size, stride, scale, ratios):
    height, width = size
    roots = np.sqrt(ratios)
    half_width, half_height = ((stride * factor * np.float32(scale)) / 2 for factor in (1 / roots, roots))
    around_zero = np.stack([-half_width, -half_height, half_width, half_height], axis=-1)  # [A, 4]
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    corners = np.stack([x, y, x, y], axis=-1).astype(np.float32)  # [h, w, 4]
    return (corners[:, :, None] + around_zero).reshape(-1, 4)
