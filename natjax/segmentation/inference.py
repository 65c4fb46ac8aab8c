"""Class maps of images: whole or by sliding windows, at one scale or several, with and without their mirror images.

mmseg's test: logits are resized bilinearly to the prepared image and from there to the original one; softmaxes of several
scales are averaged; the class is the largest. Here both steps are one table per axis (`axes.py`), and the classes of a few
rows are settled at a time: what is kept are logits as they leave the model, a sixteenth of the prepared image's pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax.segmentation.axes import Chunks, Taps, chunked, taps_of_windows, window_starts
from natjax.segmentation.parts import Padded, classes_by_part
from natjax_kernels.sharding import shards

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt

    Images = Array | np.ndarray  # [B, H, W, C]
    Segmenter = Callable[[Any], Float[Array, "B h w L"] | Padded]

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # mmseg's ratios of sizes
_CHUNK = 2**23  # logits of a chunk of rows: 32 MiB in float32


def segment(
    segmenter: Segmenter,
    views: Images | Sequence[Images],
    size: tuple[int, int],
    *,
    flip: bool = False,
    crop_size: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    batch_size: int = 1,
) -> UInt[Array, "B height width"]:
    """Returns the class of every pixel of images.

    The segmenter is best compiled, as by `jax.jit`. Windows have one shape and come `batch_size` at a time, so it is compiled
    once for images of all sizes. Without windows `segment` may itself be compiled.

    Args:
        segmenter: from normalised images to logits of any size, in any float dtype: `lambda x: model.decode(x)[0]`. Without
            windows they may be `Padded`.
        views: the images [B, H, W, C], prepared at one scale, or a sequence of them at several.
        size: (height, width) of the original images, which the maps have.
        flip: whether to average with the mirror images as well.
        crop_size: (height, width) of windows in pixels of a prepared image; None takes images whole. Windows are cut to
            smaller images.
        stride: (vertical, horizontal) from one window to the next, at most `crop_size`; by default two thirds of it, as mmseg
            has it.
        batch_size: windows at a time.

    Returns:
        class indices, uint8, or uint16 with more than 256 classes.

    Raises:
        ValueError: `crop_size` or `stride` is impossible.
    """
    crop_size, stride = checked_windows(crop_size, stride)
    arrays: list[Any] = [views] if hasattr(views, "ndim") else list(views)
    made = [
        _View(segmenter, a, size, crop_size, stride, batch_size, flipped) for a in arrays for flipped in _flips(flip)
    ]
    height, width = size
    batch, labels = arrays[0].shape[0], made[0].labels
    bands, parts = max(len(view.starts[0]) for view in made), made[0].parts
    tall = max(view.padded(height) for view in made)
    each = -(-tall // (bands * parts))  # rows of a band that a device settles, in chunks of as many
    count = -(-each // max(1, _CHUNK // (batch * width * labels)))
    rows = -(-each // count)
    rows_per_band = parts * count * rows
    dtype = np.uint8 if labels <= 256 else np.uint16
    maps = []
    for view in made:
        view.plan(rows_per_band, rows)
    for band in range(-(-height // rows_per_band)):
        logits, chunks = zip(*(view.band(band) for view in made), strict=True)
        columns = tuple(view.columns for view in made)
        if parts > 1:
            maps.append(jax.device_get(classes_by_part(_classes, logits, chunks, columns, dtype)))
        else:
            maps.append(_classes(logits, chunks, columns, dtype))
    return jnp.concatenate(maps, 1)[:, :height] if len(maps) > 1 else maps[0][:, :height]


def checked_windows(crop_size: Any, stride: Any) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Returns size and stride of windows as pairs, the stride by default two thirds of the size; None for none.

    Raises:
        ValueError: they are no positive integers or pairs of them, or a stride leaves gaps.
    """
    crop, step = _pair("crop_size", crop_size), _pair("stride", stride)
    if crop is None:
        if step is not None:
            raise ValueError(
                f"stride is of sliding windows, which need a crop_size; got stride {stride!r} and no crop_size."
            )
        return None, None
    step = step or (max(1, crop[0] * 2 // 3), max(1, crop[1] * 2 // 3))
    if step[0] > crop[0] or step[1] > crop[1]:
        raise ValueError(
            f"stride must be at most crop_size, or pixels would be left out; got {stride!r} and {crop_size!r}."
        )
    return crop, step


def _pair(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise ValueError(f"{name} must be a positive integer, or a pair (height, width) of them; got {value!r}.")
    return pair


def _flips(flip: bool) -> tuple[bool, ...]:
    return (False, True) if flip else (False,)


class _View:
    """Prepared images at one scale: logits of their windows, a row of windows at a time, and which pixels these are for.

    Attributes:
        starts: of windows along height and width.
        parts: of the rows of logits, on as many devices.
        labels: L.
        columns: taps of the columns of the original images.
    """

    def __init__(self, segmenter, pixels, size, crop_size, stride, batch_size, flipped):
        pixels = pixels[:, :, ::-1] if flipped else pixels
        extent = pixels.shape[1:3]
        crop = tuple(min(pair) for pair in zip(extent, crop_size or extent, strict=True))
        self.starts = [window_starts(*axis) for axis in zip(extent, crop, stride or crop, strict=True)]
        self._blocks = _blocks(segmenter, pixels, self.starts, crop, batch_size if crop_size else None)
        block = next(self._blocks)
        logits, own = block if isinstance(block, Padded) else (block, block.shape[1:3])
        self._kept = [logits]  # [B, h, windows * w, L], rows of windows from self._first on
        self._first = 0
        self._height, across = own
        self.parts, self.labels = shards(logits, 1), logits.shape[-1]
        sides = (self._height, across // len(self.starts[1]))
        self._rows, columns = (
            taps_of_windows(*axis) for axis in zip(sides, crop, self.starts, extent, size, strict=True)
        )
        self.columns = columns.reversed() if flipped else columns

    def padded(self, height: int) -> int:
        """Returns the height of original images if they were padded in the same proportion as the logits."""
        return -(-height * self._kept[0].shape[1] // self._height)

    def plan(self, rows_per_band: int, rows: int) -> None:
        """Prepares for bands of rows of the original images, each in chunks of as many rows."""
        bands = [
            Taps(*(part[start : start + rows_per_band] for part in self._rows))
            for start in range(0, len(self._rows.index), rows_per_band)
        ]
        fill = rows_per_band - len(bands[-1].index)
        bands[-1] = Taps(*(np.pad(part, ((0, fill), (0, 0)), "edge") for part in bands[-1]))
        needed = [taps.index[taps.weight != 0] // self._height for taps in bands]
        self._most = max(windows.max() - windows.min() + 1 for windows in needed)
        last = len(self.starts[0]) - self._most
        self._from = [min(windows.min(), last) for windows in needed]
        width = max(chunked(taps, rows).source.shape[1] for taps in bands)
        self._chunks = [chunked(taps, rows, width) for taps in bands]

    def band(self, band: int) -> tuple[Array, Chunks]:
        """Returns the logits that the rows of a band are of, [B, windows * h, windows * w, L], and its chunks."""
        first = self._from[band]
        while self._first + len(self._kept) < first + self._most:
            self._kept.append(next(self._blocks))
        del self._kept[: first - self._first]
        self._first = first
        logits = self._kept[0] if self._most == 1 else jnp.concatenate(self._kept[: self._most], 1)
        source, matrix = self._chunks[band]
        return logits, Chunks(source - first * self._height, matrix)


def _blocks(segmenter, pixels, starts, crop, batch_size: int | None) -> Iterator[Array]:
    """Yields the logits of one row of windows after the other, [B, h, windows * w, L]."""
    if batch_size is None:
        yield segmenter(pixels)
        return
    count, across = len(pixels), len(starts[1])
    places = np.array([(image, y, x) for y in starts[0] for image in range(count) for x in starts[1]], np.int32)
    waiting: list[Array] = []
    for first in range(0, len(places), batch_size):
        fill = max(0, first + batch_size - len(places))
        batch = np.pad(places[first : first + batch_size], ((0, fill), (0, 0)), "edge")
        logits = segmenter(_cut(pixels, batch, crop))
        waiting += [logits[i] for i in range(batch_size - fill)]
        while len(waiting) >= count * across:
            block = jnp.stack(waiting[: count * across])
            del waiting[: count * across]
            _, h, w, labels = block.shape
            block = block.reshape(count, across, h, w, labels).transpose(0, 2, 1, 3, 4)
            yield block.reshape(count, h, across * w, labels)


@functools.partial(jax.jit, static_argnames="crop")
def _cut(pixels, places, crop):
    """Returns windows [n, *crop, C] of images at places (image, row, column)."""
    shape = (1, *crop, pixels.shape[-1])
    return jax.vmap(lambda at: jax.lax.dynamic_slice(pixels, (*at, jnp.zeros_like(at[0])), shape)[0])(places)


@functools.partial(jax.jit, static_argnames="dtype")
def _classes(logits, chunks, columns, dtype):
    """Returns the classes of the rows of a band, [B, rows, W]. Nothing larger than a chunk is ever interpolated."""

    def classes(chunk):
        total = jnp.float32(0)
        for array, (source, matrix), (index, weight) in zip(logits, chunk, columns, strict=True):
            needed = array[:, source].astype(jnp.float32)  # [B, S, w, L]
            wide = sum(needed[:, :, index[:, k]] * weight[:, k, None] for k in range(index.shape[1]))  # [B, S, W, L]
            pixels = jnp.einsum("rs,bswl->brwl", matrix, wide, precision=jax.lax.Precision.HIGHEST)
            pixels = jax.nn.softmax(pixels) if len(logits) > 1 else pixels  # of one view, the largest stays the largest
            total += pixels
        return jnp.argmax(total, -1).astype(dtype)

    maps = jax.lax.map(classes, chunks)  # [chunks, B, rows, W]
    return jnp.moveaxis(maps, 0, 1).reshape(maps.shape[1], -1, maps.shape[-1])
