"""From logits to pixels of an image along one axis: which logits a pixel is of, and with which weights.

Every way from a segmenter's logits to a class map is linear along height and along width: bilinear interpolation to the size
of the input, windows that slide and are averaged where they overlap, and interpolation to the size of the original image.
So one table per axis says it all, and only the rows that are needed next are ever interpolated. All is known from sizes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from natjax.nn.resizing import bilinear_taps

if TYPE_CHECKING:
    from jaxtyping import Float32, Int


class Taps(NamedTuple):
    """Values of an axis as weighted sums of those of another.

    Attributes:
        index: [N, K], which values.
        weight: [N, K], with which weights; 0 fills up.
    """

    index: Int[np.ndarray, "N K"]
    weight: Float32[np.ndarray, "N K"]

    def reversed(self) -> Taps:
        """Returns the sums in the opposite order, as for an image that was flipped."""
        return Taps(self.index[::-1], self.weight[::-1])


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Returns where windows begin on an axis: every `stride` pixels; the last one ends with the axis, as in mmseg.

    Args:
        length: of the axis in pixels.
        crop: length of a window, at most that of the axis.
        stride: from one window to the next.
    """
    count = -(-max(length - crop, 0) // stride) + 1
    return [max(min(i * stride + crop, length) - crop, 0) for i in range(count)]


def taps_of_windows(logits: int, crop: int, starts: list[int], length: int, target: int) -> Taps:
    """Returns the logits that pixels of the original image are of; those of all windows are counted through.

    Args:
        logits: of a window along the axis.
        crop: pixels of a window.
        starts: of the windows, see `window_starts`; [0] where the whole axis is one window.
        length: of the prepared image in pixels.
        target: length of the original image in pixels.
    """
    inside = Taps(*bilinear_taps(logits, crop))
    covering = [[w for w, start in enumerate(starts) if start <= pixel < start + crop] for pixel in range(length)]
    index = np.zeros((length, 2 * max(map(len, covering))), int)
    weight = np.zeros(index.shape, np.float32)
    for pixel, windows in enumerate(covering):
        for place, window in enumerate(windows):
            at = slice(2 * place, 2 * place + 2)
            index[pixel, at] = window * logits + inside.index[pixel - starts[window]]
            weight[pixel, at] = inside.weight[pixel - starts[window]] / np.float32(len(windows))
    if target != length:
        pixels, share = bilinear_taps(length, target)
        index = index[pixels].reshape(target, -1)
        weight = (share[..., None] * weight[pixels]).reshape(target, -1)
    return _merged(index, weight)


def _merged(index: np.ndarray, weight: np.ndarray) -> Taps:
    """Returns sums in which every value occurs once."""
    order = np.argsort(index, axis=1, kind="stable")
    index, weight = np.take_along_axis(index, order, 1), np.take_along_axis(weight, order, 1)
    place = np.cumsum(np.diff(index, axis=1, prepend=index[:, :1]) > 0, axis=1)
    rows = np.arange(len(index))[:, None]
    merged = Taps(
        np.repeat(index[:, -1:], place.max() + 1, axis=1), np.zeros((len(index), place.max() + 1), np.float32)
    )
    merged.index[rows, place] = index
    np.add.at(merged.weight, (rows, place), weight)
    return merged


class Chunks(NamedTuple):
    """Taps of rows in chunks of equally many: which values a chunk needs, and the matrix from them to its rows.

    Attributes:
        source: [n, S].
        matrix: [n, R, S], R rows a chunk.
    """

    source: Int[np.ndarray, "n S"]
    matrix: Float32[np.ndarray, "n R S"]


def chunked(taps: Taps, rows: int, width: int | None = None) -> Chunks:
    """Returns taps in chunks of `rows` rows; the last row fills up.

    Args:
        taps: of the rows.
        rows: of a chunk.
        width: S, where chunks of other rows are to have the same; by default as many as the chunks need.
    """
    fill = -len(taps.index) % rows
    index, weight = (np.pad(part, ((0, fill), (0, 0)), "edge").reshape(-1, rows, part.shape[1]) for part in taps)
    needed = [np.unique(i[w != 0]) for i, w in zip(index, weight, strict=True)]
    width = width or max(map(len, needed))
    source = np.stack([np.pad(values, (0, width - len(values)), "edge") for values in needed])
    matrix = np.zeros((len(index), rows, width), np.float32)
    for chunk, values in enumerate(needed):
        place = np.minimum(np.searchsorted(values, index[chunk]), len(values) - 1)
        np.add.at(matrix[chunk], (np.arange(rows)[:, None], place), weight[chunk])
    return Chunks(source, matrix)
