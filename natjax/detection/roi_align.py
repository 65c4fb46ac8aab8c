"""RoIAlign (arXiv 1703.06870, section 3) over a feature pyramid (arXiv 1612.03144, section 4.2), as mmcv computes it.

Bilinear samples averaged over a RoI's bins are two products, rows x map x columns^T, whose weights are sums of samples' hats.
A RoI meets few cells of its map, and tiles of 16 x 16 cover them: a tile is one slice of the map, its share of the result two
small matrix products. RoIs of a level are taken in blocks, as many tiles one after another as the block's largest RoI has. So
work and memory go with the cells that RoIs cover, not with the maps. The backward pass adds to the same slices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natjax.detection import boxes as geometry

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

_TILE = 16
_FINEST = 56  # a RoI of less than twice as many pixels a side belongs to the finest level


def roi_align(
    features: Sequence[Float[Array, "B _ _ C"]],
    boxes: Float[Array, "B N 4"],
    *,
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    sampling_ratio: int = 0,
) -> Float[Array, "B N h w C"]:
    """Returns the features of RoIs, each from its level of the pyramid.

    A sample less than one pixel outside of a map has the value at its border, any other sample outside is zero. RoIs without an
    area are all zero where `sampling_ratio` is 0, and cost next to nothing. A value that is not finite reaches only RoIs over it.

    Differentiable in the features, in reverse mode; boxes get no gradient. Products and sums are in float32 (float64 for
    features of that dtype).

    Args:
        features: maps [B, H, W, C] of one float dtype, the finest first.
        boxes: in pixels of the image, float32; they may lie outside.
        strides: pixels of the image per cell of each map.
        output_size: bins along height and width, or one number for both.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin has cells, rounded up.

    Returns:
        [B, N, height, width, C] in the features' dtype.

    Raises:
        ValueError: there is not one stride per map.
    """
    if len(strides) != len(features):
        raise ValueError(
            f"roi_align needs one stride per feature map; got {len(strides)} strides, {len(features)} maps"
        )
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    return _roi_align(list(features), boxes, strides=tuple(strides), size=tuple(size), sampling_ratio=sampling_ratio)


@functools.partial(jax.jit, static_argnames=("strides", "size", "sampling_ratio"))
def _roi_align(
    features: list[Array], boxes: Array, *, strides: tuple[int, ...], size: tuple[int, int], sampling_ratio: int
) -> Array:
    shapes, dtype = [x.shape for x in features], features[0].dtype
    share = functools.partial(_share, size=size, sampling_ratio=sampling_ratio)

    @jax.custom_vjp
    def align(features: list[Array], boxes: Array) -> Array:
        return align_with_rois(features, boxes)[0]

    def align_with_rois(features: list[Array], boxes: Array) -> tuple[Array, tuple]:
        ordered = _ordered(boxes, [(height, width) for _, height, width, _ in shapes], strides, sampling_ratio)
        out = jnp.zeros((boxes.shape[0] * boxes.shape[1], *size, shapes[0][-1]), dtype)
        for level, x in enumerate(features):
            out = _for_blocks(functools.partial(_pool, share, x), out, ordered, level)
        return out.reshape(*boxes.shape[:2], *out.shape[1:]), (ordered, boxes)

    def pull(residuals: tuple, cotangent: Array) -> tuple[list[Array], Array]:
        ordered, boxes = residuals
        cotangent = cotangent.reshape(-1, *cotangent.shape[2:])
        gradients = []
        for level, shape in enumerate(shapes):
            add = functools.partial(_add_gradient, share, cotangent)
            gradients.append(_for_blocks(add, jnp.zeros(shape, _compute_dtype(dtype)), ordered, level).astype(dtype))
        return gradients, jnp.zeros_like(boxes)

    align.defvjp(align_with_rois, pull)
    return align(features, boxes)


def levels(boxes: Float[Array, "*N 4"], count: int) -> Int[Array, "*N"]:
    """Returns which of `count` levels boxes belong to: floor(log2(sqrt(area) / 56 + 1e-6)), the finest 0, the coarsest last."""
    scale = _exact(jnp.divide, jnp.sqrt(geometry.area(boxes)), jnp.asarray(_FINEST, boxes.dtype)) + 1e-6
    return sum(((scale >= 2**level).astype(jnp.int32) for level in range(1, count)), jnp.zeros(scale.shape, jnp.int32))


def bin_weights(
    start: Float[Array, "*N 2"],
    size: Float[Array, "*N 2"],
    cells: Int[Array, "*N 2 T"],
    sides: tuple[int, int],
    bins: tuple[int, int],
    sampling_ratio: int = 0,
) -> Float[Array, "*N 2 S T"]:
    """Returns the weights of cells in the bins of RoIs, along y and along x.

    Args:
        start: where RoIs begin, in cells; the centre of the first cell is 0.
        size: of RoIs in cells.
        cells: which cells, along both axes.
        sides: cells of the map along both axes.
        bins: along both axes; of the longer one's S bins, only so many count along the other.
        sampling_ratio: as of `roi_align`.
    """
    bin_size = _exact(jnp.divide, size, jnp.asarray(bins, start.dtype))[..., None, None, None]  # and axes S, T, samples
    samples = jnp.ceil(bin_size) if sampling_ratio == 0 else jnp.asarray(sampling_ratio, start.dtype)
    divisor = jnp.maximum(samples, 1)
    bins_before = jnp.arange(max(bins), dtype=start.dtype)[:, None, None]
    bin_start = start[..., None, None, None] + _exact(jnp.multiply, bin_size, bins_before)
    centers = cells[..., None, :, None].astype(start.dtype)
    if sampling_ratio == 0:  # one sample, or 1/2 to 1 cell apart: at most five are less than a cell away
        step = jnp.where(bin_size > 0, bin_size / divisor, 1)
        nearby, count = jnp.maximum(jnp.floor((centers - 1 - bin_start) / step - 0.5), 0), 5
    else:
        nearby, count = jnp.zeros_like(centers), sampling_ratio
    number = nearby + jnp.arange(count, dtype=start.dtype)
    sample = bin_start + _exact(jnp.divide, (number + 0.5) * bin_size, divisor)
    ends = jnp.asarray(sides, start.dtype)[:, None, None, None]
    counts = (sample >= -1) & (sample <= ends) & (number < samples)
    hat = jnp.maximum(1 - jnp.abs(jnp.clip(sample, 0, ends - 1) - centers), 0)
    return (jnp.where(counts, hat, 0) / divisor).sum(-1)


class _Rois(NamedTuple):
    """RoIs in cells of their maps, the y axis before the x axis, in the order in which they are worked on."""

    index: Array  # [M], in the order in which they were given
    image: Array  # [M]
    start: Array  # [M, 2]
    size: Array  # [M, 2]
    first: Array  # [M, 2], the first cell that counts
    last: Array  # [M, 2]
    columns: Array  # [M], tiles side by side
    tiles: Array  # [M]


def _ordered(
    boxes: Array, shapes: Sequence[tuple[int, int]], strides: Sequence[int], sampling_ratio: int
) -> tuple[_Rois, Array]:
    """Returns RoIs by level and number of tiles, and where levels begin and end among them [L + 1]."""
    images = jnp.arange(boxes.shape[0] * boxes.shape[1], dtype=jnp.int32) // boxes.shape[1]
    boxes = boxes.reshape(-1, 4)
    level = levels(boxes, len(shapes))
    corners = boxes * jnp.asarray([1 / stride for stride in strides], boxes.dtype)[level][:, None] - 0.5
    start, end = corners[:, 1::-1], corners[:, :1:-1]
    sides = jnp.asarray(shapes, jnp.int32)[level]
    first = jnp.clip(jnp.floor(jnp.minimum(start, end)).astype(jnp.int32), 0, sides - 1)
    last = jnp.clip(jnp.floor(jnp.maximum(start, end)).astype(jnp.int32) + 1, 0, sides - 1)
    counts = (last - first) // _TILE + 1
    sampled = (end > start).all(1) | (sampling_ratio > 0)
    tiles = jnp.where(sampled, counts[:, 0] * counts[:, 1], 0)
    order = jnp.argsort(level * 2**24 - tiles)
    bounds = (level < jnp.arange(len(shapes) + 1, dtype=jnp.int32)[:, None]).sum(1, dtype=jnp.int32)
    return _Rois(order.astype(jnp.int32), images, start, end - start, first, last, counts[:, 1], tiles), bounds


def _for_blocks(
    visit: Callable[[_Rois, Array], Array], carry: Array, ordered: tuple[_Rois, Array], level: int
) -> Array:
    """Has blocks of one level's RoIs visited; what fills up the last one has no tiles, and an index beyond all RoIs."""
    (rois, bounds), block = ordered, _block()

    def body(i: Array, carry: Array) -> Array:
        at = bounds[level] + i * block + jnp.arange(block, dtype=jnp.int32)
        index = jnp.where(at < bounds[level + 1], rois.index.at[at].get(mode="clip"), len(rois.index))
        some = _Rois(index, *(x.at[index].get(mode="clip") for x in rois[1:]))
        return visit(some._replace(tiles=jnp.where(index < len(rois.index), some.tiles, 0)), carry)

    return jax.lax.fori_loop(0, -((bounds[level] - bounds[level + 1]) // block), body, carry)


def _block() -> int:
    """RoIs at a time: on a CPU few stay in its caches, elsewhere every step is launched and should be large."""
    return 8 if jax.default_backend() == "cpu" else 128


class _Share(NamedTuple):
    """What tiles of a block of RoIs give to its results."""

    at: Array  # [b, 3]: image, first row, first column
    rows: Array  # [b, h, T]: weights of the tile's rows in the bins
    columns: Array  # [b, w, T]
    counts: Array  # [b, T, T]: whether a cell is of this RoI and of no other of its tiles


def _share(rois: _Rois, tile: Array, shape: tuple[int, ...], *, size: tuple[int, int], sampling_ratio: int) -> _Share:
    sides = np.asarray(shape[1:3], np.int32)
    first = rois.first + _TILE * jnp.stack([tile // rois.columns, tile % rois.columns], axis=1)
    at = jnp.maximum(jnp.minimum(first, sides - _TILE), 0)  # within the map: the first cells may be of the tile before
    cells = at[:, :, None] + jnp.arange(_TILE, dtype=jnp.int32)
    counts = (cells >= first[:, :, None]) & (cells <= rois.last[:, :, None]) & (tile < rois.tiles)[:, None, None]
    weights = jnp.where(
        counts[:, :, None], bin_weights(rois.start, rois.size, cells, (shape[1], shape[2]), size, sampling_ratio), 0
    )
    height, width = np.minimum(sides, _TILE)
    rows, columns = weights[:, 0, : size[0], :height], weights[:, 1, : size[1], :width]
    counts = counts[:, 0, :height, None] & counts[:, 1, None, :width]
    return _Share(jnp.concatenate([rois.image[:, None], at], axis=1), rows, columns, counts)


def _pool(share: Callable[..., _Share], x: Array, rois: _Rois, out: Array) -> Array:
    dtype = _compute_dtype(x.dtype)

    def add(tile: Array, total: Array) -> Array:
        at, rows, columns, counts = share(rois, tile, x.shape)
        layout = jax.lax.GatherDimensionNumbers((1, 2, 3), collapsed_slice_dims=(0,), start_index_map=(0, 1, 2))
        sizes = (1, *counts.shape[1:], x.shape[-1])
        cells = jax.lax.gather(x, at, layout, sizes, mode="promise_in_bounds").astype(dtype)
        cells = jnp.where(counts[..., None], cells, 0)
        cells = product(_per_row(columns.astype(dtype), counts), cells)  # [b, T, w, C]
        cells = product(rows.astype(dtype), cells.reshape(*cells.shape[:2], -1))  # [b, h, w x C]
        return total + cells.reshape(total.shape)

    zeros = jnp.zeros((len(rois.index), *out.shape[1:]), dtype)
    pooled = jax.lax.fori_loop(0, rois.tiles.max(), add, zeros)
    return out.at[rois.index].set(pooled.astype(out.dtype), mode="drop", unique_indices=True)


def _add_gradient(share: Callable[..., _Share], cotangent: Array, rois: _Rois, gradient: Array) -> Array:
    pulled = cotangent.at[rois.index].get(mode="clip").astype(gradient.dtype)  # [b, h, w, C]

    def add(tile: Array, gradient: Array) -> Array:
        at, rows, columns, counts = share(rois, tile, gradient.shape)
        cells = product(rows.astype(gradient.dtype).mT, pulled.reshape(*pulled.shape[:2], -1))
        cells = cells.reshape(*cells.shape[:2], *pulled.shape[2:])  # [b, T, w, C]
        cells = product(_per_row(columns.astype(gradient.dtype).mT, counts), cells)
        layout = jax.lax.ScatterDimensionNumbers(
            (1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 1, 2)
        )
        return jax.lax.scatter_add(gradient, at, cells, layout, mode="promise_in_bounds")

    return jax.lax.fori_loop(0, rois.tiles.max(), add, gradient)


def _exact(operation: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """Returns a product or quotient as mmcv rounds it, 0 where it is not finite. A bin's samples are as many as its size says.

    XLA would multiply by the reciprocal of what is broadcast, and round a product and a sum once. Selections keep it from both.
    """
    result = operation(a, jnp.where(jnp.isnan(a), 0, b))
    return jnp.where(jnp.isfinite(result), result, 0)


def _per_row(columns: Array, counts: Array) -> Array:
    """Repeats matrices [b, n, m] for each of a tile's rows: [b, T, n, m]."""
    return jnp.broadcast_to(columns[:, None], (*counts.shape[:2], *columns.shape[1:]))


def product(a: Array, b: Array) -> Array:
    """Returns a matrix product in all of the precision of its dtype, on every device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _compute_dtype(dtype: Any) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
