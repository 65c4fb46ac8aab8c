"""Bilinear resizing of 8-bit pixels with the numbers of OpenCV's `resize(interpolation=INTER_LINEAR)`, bit for bit.

Models of mmsegmentation and mmdetection were trained on such images. Pillow averages over the pixels that a smaller image leaves
out; OpenCV samples, with weights of 11 bits. Sides that are halved exactly are averaged there, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8

_ONE = 2048  # a weight of 1
_WHOLE = slice(None), slice(None)


def resize(
    pixels: UInt8[np.ndarray, "h w C"], size: tuple[int, int], part: tuple[slice, slice] = _WHOLE
) -> UInt8[np.ndarray, "H W C"]:
    """Returns pixels at another size (height, width), or the part of them that is wanted: rows and columns."""
    height, width, _ = pixels.shape
    if (height, width) == size:
        return pixels if part == _WHOLE else pixels[part]
    if (height, width) == (2 * size[0], 2 * size[1]):
        rows, columns = (slice(*(2 * end for end in of.indices(side)[:2])) for of, side in zip(part, size, strict=True))
        wide = pixels[rows, columns].astype(np.uint16)
        return ((wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2] + 2) >> 2).astype(np.uint8)
    (top, bottom), (above, below) = (of[:, part[0]] for of in _taps(height, size[0]))
    (left, right), (before, after) = (of[:, part[1]] for of in _taps(width, size[1], whole_at_the_ends=True))
    needed, place = np.unique(np.concatenate([top, bottom]), return_inverse=True)  # rows that are left out cost nothing
    rows = pixels[needed].astype(np.int32)
    rows = (rows[:, left] * before[:, None] + rows[:, right] * after[:, None]) >> 4
    upper, lower = rows[place[: len(top)]], rows[place[len(top) :]]
    total = ((upper * above[:, None, None]) >> 16) + ((lower * below[:, None, None]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def _taps(n: int, m: int, *, whole_at_the_ends: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns which two of n pixels each of m is of, [2, m], and their weights in units of 1 / 2048, int32 [2, m].

    Args:
        n: pixels of the axis.
        m: pixels of the result.
        whole_at_the_ends: whether pixels beyond the middle of the outer ones have a weight of 0 and 1, as along rows, or two
            weights for one pixel, as along columns: rounded apart, these may sum to more or less than 1.
    """
    at = ((np.arange(m) + 0.5) * (1 / (m / n)) - 0.5).astype(np.float32)
    first = np.floor(at).astype(int)
    after = at - first.astype(np.float32)
    if whole_at_the_ends:
        after[(first < 0) | (first >= n - 1)] = 0
        first = first.clip(0, n - 1)
    weights = np.rint(np.stack([1 - after, after]) * np.float32(_ONE)).astype(np.int32)
    return np.stack([first, first + 1]).clip(0, n - 1), weights
