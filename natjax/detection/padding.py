"""Sizes of prepared images: what sides are filled up to, so that few programs are compiled, and how much they were resized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from natjax.image_sizes import multiple_of

if TYPE_CHECKING:
    from jaxtyping import Float32

DIVISOR = 32  # pixels: what a backbone of four levels reduces an image by


def paddings(size: dict[str, int]) -> tuple[int, ...]:
    """Returns the lengths that sides of images within a box are filled up to: 416, 608, 800, 1088, 1344 for 800 x 1333 pixels.

    An image as large as the box allows has its shorter side at the box's shorter one, and its longer side between both; or else
    its longer side at the longer one. So a length amid the two, and two below them, give three heights for a width and three
    widths for a height.

    Args:
        size: of an image processor. Without a box there are no such lengths.
    """
    if set(size) != {"shortest_edge", "longest_edge"}:
        return ()
    shorter, longer = size["shortest_edge"], max(size.values())
    lengths = (-(-shorter // 2), -(-3 * shorter // 4), shorter, -(-(shorter + longer) // 2), longer)
    return tuple(sorted({multiple_of(DIVISOR, length) for length in lengths}))


def padded_size(size: tuple[int, int], lengths: Sequence[int], divisor: int = DIVISOR) -> tuple[int, int]:
    """Returns height and width that an image is filled up to.

    Args:
        size: height and width of the prepared image.
        lengths: see `paddings`.
        divisor: of sides beyond them.
    """
    height, width = (next((n for n in lengths if n >= side), multiple_of(divisor, side)) for side in size)
    return height, width


def scale_factors(prepared: tuple[int, int], size: tuple[int, int]) -> Float32[np.ndarray, "4"]:
    """Returns what boxes x1, y1, x2, y2 of a prepared image are divided by to be those of the original one.

    Args:
        prepared: height and width of the prepared image.
        size: those of the original one.
    """
    return np.array([prepared[1] / size[1], prepared[0] / size[0]] * 2, np.float32)
