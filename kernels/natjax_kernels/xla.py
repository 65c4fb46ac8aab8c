"""Neighborhood attention in XLA operations, by tiles: for CPU, TPU and every GPU without a fused kernel.

One haloed tile of keys and values is gathered per tile of queries, and each tile is small dense attention with a table of
bias-or-minus-infinity from the plan. The backward pass is our own: it recomputes the weights tile by tile, and brings the
gradients of haloed keys home by gathering (every key knows the tiles that hold it), so that nothing scatters. All gathers are
along one axis at a time with static indices, so constants grow with the sides of a map and not with its area. Every reshape
splits or merges one axis, which is what JAX can follow where the batch is explicitly sharded.

Letters: M tiles, B batch, N heads, T queries per tile, S keys per tile, D channels of a head.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels._compat import varying_axes
from natjax_kernels.plan import AxisPlan, Window, plan, tile_classes
from natjax_kernels.tiling import scores_per_step, tile_shape

_MASKED = -1e30  # not -inf: a tile's padded keys must give weight 0, never NaN


def attend(query, key, value, rpb, *, window: Window, scale: float):
    """Computes the op; arguments are those of `natjax_kernels.neighborhood_attention`, validated and normalised."""
    return _attend(window, scale, *_vary_alike(query, key, value, rpb))


def _vary_alike(*arrays):
    """Lets all arrays vary over the same manual mesh axes, as a VJP of our own must: inside shard_map a replicated bias
    takes its gradient from every shard, and the sum over them belongs to the derivative of this cast.
    """
    axes = frozenset().union(*(varying_axes(x) for x in arrays if x is not None))
    return [
        x if x is None or not (lacking := axes - varying_axes(x)) else jax.lax.pcast(x, tuple(lacking), to="varying")
        for x in arrays
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(window, scale, query, key, value, rpb):
    return _forward(window, scale, query, key, value, rpb)[0]


def _forward(window, scale, query, key, value, rpb):
    axes = _plan(query, window)
    q_tiles = to_tiles(query, [axis.queries for axis in axes])  # [M, B, N, T, D]
    k_tiles = to_tiles(key, [axis.keys for axis in axes])  # [M, B, N, S, D]
    v_tiles = to_tiles(value, [axis.keys for axis in axes])
    table, classes = bias_table(axes, rpb, _accumulator(query)), tile_classes(axes)

    def step(q, k, v, index):
        logits = _logits(q, k, table, index, scale)  # [M, B, N, T, S]
        top = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _dot("mbnts,mbnsd->mbntd", weights.astype(v.dtype), v)
        return (out / total).astype(v.dtype), (top + jnp.log(total))[..., 0]

    out, lse = _by_steps(step, (q_tiles, k_tiles, v_tiles, classes), _scores(q_tiles, k_tiles))
    out = from_tiles(out, axes)
    return out, (query, key, value, rpb, lse)


def _backward(window, scale, residuals, d_out):
    query, key, value, rpb, lse = residuals
    axes = _plan(query, window)
    accumulate = _accumulator(query)
    query_index, key_index = [axis.queries for axis in axes], [axis.keys for axis in axes]
    q_tiles, do_tiles = (to_tiles(x, query_index) for x in (query, d_out))
    k_tiles, v_tiles = (to_tiles(x, key_index) for x in (key, value))
    if (owned := _owned(axes, d_out.dtype)) is not None:  # padded queries repeat a token: nothing of them may flow back
        do_tiles = do_tiles * owned
    table, classes = bias_table(axes, rpb, accumulate), tile_classes(axes)

    def step(q, k, v, do, lse, index):
        weights = jnp.exp(_logits(q, k, table, index, scale) - lse[..., None])  # [M, B, N, T, S]
        d_weights = _dot("mbntd,mbnsd->mbnts", do, v)
        d_logits = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
        weights, scaled = weights.astype(v.dtype), (d_logits * scale).astype(q.dtype)
        d_query = _dot("mbnts,mbnsd->mbntd", scaled, k).astype(q.dtype)
        d_key = _dot("mbnts,mbntd->mbnsd", scaled, q).astype(k.dtype)
        d_value = _dot("mbnts,mbntd->mbnsd", weights, do).astype(v.dtype)
        if rpb is None:
            return d_query, d_key, d_value, None
        one_hot = (index[None] == jnp.arange(len(table))[:, None]).astype(accumulate)  # [classes, M]
        return d_query, d_key, d_value, jnp.einsum("cm,mnts->cnts", one_hot, jnp.sum(d_logits, axis=1))

    arrays = (q_tiles, k_tiles, v_tiles, do_tiles, lse, classes)
    d_query, d_key, d_value, d_table = _by_steps(step, arrays, _scores(q_tiles, k_tiles), summed=(3,))
    return (
        from_tiles(d_query, axes),
        _fold(d_key, axes).astype(key.dtype),
        _fold(d_value, axes).astype(value.dtype),
        None if rpb is None else _table_to_rpb(d_table, axes, window).astype(rpb.dtype),
    )


_attend.defvjp(_forward, _backward)


def to_tiles(x, index: list[np.ndarray]):
    """Gathers tiles: [B, *spatial, N, D] by the positions [tiles, slots] of every axis -> [M, B, N, slots, D]."""
    rank = len(index)
    for a, positions in enumerate(index):
        x = _take(x, np.maximum(positions, 0).reshape(-1), 1 + 2 * a)
        x = x.reshape(*x.shape[: 1 + 2 * a], *positions.shape, *x.shape[2 + 2 * a :])
    tiles, slots = [1 + 2 * a for a in range(rank)], [2 + 2 * a for a in range(rank)]
    x = x.transpose(*tiles, 0, 1 + 2 * rank, *slots, 2 + 2 * rank)
    return jax.lax.collapse(jax.lax.collapse(x, 2 + rank, 2 + 2 * rank), 0, rank)


def from_tiles(x, axes: tuple[AxisPlan, ...]):
    """Undoes `to_tiles` of queries: [M, B, N, T, D] -> [B, *spatial, N, D]."""
    x = _untile(x, [axis.queries.shape for axis in axes])
    for number, axis in enumerate(axes, start=1):
        x = _take(x, axis.query_home, number)
    return x


def bias_table(axes: tuple[AxisPlan, ...], rpb, dtype):
    """Returns the bias of every (query, key) of every class, [classes, N or 1, T, S], strongly negative for no neighbours."""
    rank, index, mask = len(axes), [], jnp.zeros((), dtype)
    for a, axis in enumerate(axes):
        shape = [1] * (3 * rank)
        shape[a], shape[rank + a], shape[2 * rank + a] = axis.relative.shape
        relative = axis.relative.reshape(shape)  # over [classes of every axis, T of every axis, S of every axis]
        index.append(np.maximum(relative, 0))
        mask = mask + jnp.asarray(np.where(relative >= 0, 0, _MASKED), dtype)
    mask = mask.reshape(_class_shape(axes))[:, None]
    if rpb is None:
        return jax.lax.optimization_barrier(mask)  # or XLA folds its rows of all tiles into one huge constant
    return rpb.astype(dtype)[(slice(None), *index)].reshape(-1, *_class_shape(axes)).swapaxes(0, 1) + mask


def _table_to_rpb(table, axes: tuple[AxisPlan, ...], window: Window):
    """Sums [classes, N, T, S] into [N, 2k - 1, ...], one matrix product with a static 0/1 matrix per axis."""
    rank, heads = len(axes), table.shape[1]
    classes, queries, keys = zip(*(axis.relative.shape for axis in axes), strict=True)
    table = table.reshape(*classes, heads, *queries, *keys)
    for axis, kernel in zip(axes, window.kernel_size, strict=True):
        # Always contracts the first class, query and key axis left, and appends the axis of the bias.
        one_hot = (axis.relative[..., None] == np.arange(2 * kernel - 1)).astype(table.dtype)
        table = jnp.tensordot(table, one_hot, axes=((0, rank + 1, 2 * rank + 1), (0, 1, 2)))
        rank -= 1
    return table


def _fold(x, axes: tuple[AxisPlan, ...]):
    """Sums haloed tiles back into tokens: [M, B, N, S, D] -> [B, *spatial, N, D]."""
    x = _untile(x, [axis.keys.shape for axis in axes])
    for number, axis in enumerate(axes, start=1):
        parts = []
        for homes in axis.key_homes.T:
            part = _take(x, np.maximum(homes, 0), number)
            if (homes < 0).any():
                part = part * jnp.asarray(homes >= 0, x.dtype).reshape(-1, *(1,) * (x.ndim - number - 1))
            parts.append(part)
        x = functools.reduce(jnp.add, parts)
    return x


def _untile(x, shapes: list[tuple[int, ...]]):
    """[M, B, N, slots, D] -> [B, tiles * slots of every axis, N, D]."""
    rank = len(shapes)
    tiles, slots = zip(*shapes, strict=True)
    x = x.reshape(*tiles, *x.shape[1:])
    x = x.reshape(*x.shape[: rank + 2], *slots, x.shape[-1])
    pairs = [n for a in range(rank) for n in (a, rank + 2 + a)]
    x = x.transpose(rank, *pairs, rank + 1, 2 * rank + 2)
    for axis in range(1, 1 + rank):
        x = jax.lax.collapse(x, axis, axis + 2)
    return x


def _take(x, positions: np.ndarray, axis: int):
    """Takes static positions along an axis; runs are slices, which XLA need not gather."""
    if np.array_equal(positions, np.arange(len(positions))):
        return jax.lax.slice_in_dim(x, 0, len(positions), axis=axis)
    return jnp.take(x, jnp.asarray(positions, jnp.int32), axis=axis, mode="clip")


def _logits(q, k, table, index, scale: float):
    return _dot("mbntd,mbnsd->mbnts", q, k) * scale + table[index][:, None]


def _dot(subscripts: str, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=_accumulator(a))


def _accumulator(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _plan(query, window: Window) -> tuple[AxisPlan, ...]:
    spatial = query.shape[1:-2]
    return plan(spatial, window, tile_shape(spatial, window))


def _scores(q_tiles, k_tiles) -> int:
    """Scores of one tile over batch and heads."""
    return math.prod(q_tiles.shape[1:4]) * k_tiles.shape[3]


def _class_shape(axes: tuple[AxisPlan, ...]) -> tuple[int, int, int]:
    classes, queries, keys = zip(*(axis.relative.shape for axis in axes), strict=True)
    return math.prod(classes), math.prod(queries), math.prod(keys)


def _owned(axes: tuple[AxisPlan, ...], dtype):
    """1 for query slots that hold a token of their own and 0 for padding, [M, 1, 1, T, 1]; None without padding."""
    if all((axis.queries >= 0).all() for axis in axes):
        return None
    owned = functools.reduce(jnp.kron, [jnp.asarray(axis.queries >= 0, dtype) for axis in axes])
    return owned[:, None, None, :, None]


def _by_steps(step, arrays, scores_per_tile: int, summed: tuple[int, ...] = ()):
    """Applies `step` to tiles, a bounded number at a time, and joins its results (adds up those numbered in `summed`)."""
    tiles = len(arrays[-1])
    arrays = (*arrays[:-1], jnp.asarray(arrays[-1], jnp.int32))
    size = max(1, scores_per_step() // max(scores_per_tile, 1))
    if size >= tiles:
        return step(*arrays)
    size = math.ceil(tiles / math.ceil(tiles / size))
    first = tiles - (math.ceil(tiles / size) - 1) * size  # the odd step comes first: its sums start the carry

    def body(sums, xs):
        results = step(*xs)
        # Sums travel in the carry: stacked, they would take a bias table per step.
        sums = jax.tree.map(jnp.add, sums, [results[i] for i in summed])
        return sums, [None if i in summed else result for i, result in enumerate(results)]

    head = step(*(x[:first] for x in arrays))
    rest = [x[first:].reshape(-1, size, *x.shape[1:]) for x in arrays]
    sums, stacked = jax.lax.scan(body, [head[i] for i in summed], rest)
    joined = [
        None if x is None else jnp.concatenate([start, x.reshape(-1, *x.shape[2:])])
        for start, x in zip(head, stacked, strict=True)
    ]
    for i, total in zip(summed, sums, strict=True):
        joined[i] = total
    return tuple(joined)
