"""How a map is cut into tiles, what is known of every tile, and how results of tiles become maps again.

The positions of tiles are those of the plan, axis by axis. Rows of tiles (all that share a tile of the first axis) are worked on
in steps, and entries of the batch in parts: functions that take `rows` are for the tiles of one step; `tiling` says how large
tiles, steps and parts are. Nothing scatters: a token is gathered from the slots that hold it, and keys that many tiles share are
summed tile by tile (`natjax_kernels.xla.halos`).

Letters: M tiles, B batch, N heads, T queries per tile, S keys per tile, D channels of a head.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.axis import AxisPlan, is_large
from natjax_kernels.bias import numpy_of
from natjax_kernels.grids import join_group
from natjax_kernels.plan import plan_axis, plan_split_axis
from natjax_kernels.sharding import may_be_split, reshape, shards, spec_of
from natjax_kernels.sizes import seen_at_sizes
from natjax_kernels.window import Window
from natjax_kernels.xla.halos import add_halos, keys_of, no_halos, shared_by_many, sum_halos
from natjax_kernels.xla.runs import Runs, cut, interleaved, lay, no_sums, within
from natjax_kernels.xla.tiling import ALL_ENTRIES, entries_per_step, on_tpu, row_multiples, scores_per_step, tile_shape


def plan_of(key, window: Window, biased: bool, places: Any, together: int) -> tuple[AxisPlan, ...]:
    """Plans a map of keys, [B, *spatial, N, D], in tiles; see `natjax_kernels.plan.plan_axis`.

    Of axes that are split over devices it is the plan of a device; `places`, [rank], says of which (`natjax_kernels.split`).
    `together` is how many heads share lanes.
    """
    spatial = key.shape[1:-2]
    tiles = tile_shape(spatial, window, together)
    axes = zip(spatial, window.axes(), tiles, row_multiples(len(spatial)), strict=True)
    return tuple(
        plan_axis(n, axis, tile, biased=biased, multiple=multiple)
        if axis.split is None
        else plan_split_axis(n, axis, tile, biased=biased, multiple=multiple).at(places[a], jnp)
        for a, (n, axis, tile, multiple) in enumerate(axes)
    )


def query_index(axes: tuple[AxisPlan, ...], rows: dict | None = None) -> list[Runs]:
    """Every axis's queries, [tiles, T]; along the first axis those of `rows`."""
    return [_queries(axis, None if a else rows) for a, axis in enumerate(axes)]


def key_index(axes: tuple[AxisPlan, ...], rows: dict | None = None) -> list[Runs]:
    """Every axis's keys, [tiles, S]; along the first axis those of `rows`."""
    return [
        Runs(_keys(axis, None if a else rows), axis.apart, axis.ring, axis.length, axis.last_first_key)
        for a, axis in enumerate(axes)
    ]


def _queries(axis: AxisPlan, rows: dict | None) -> Runs:
    positions = np.maximum(axis.queries, 0) if rows is None else rows["queries"]
    apart = int(np.diff(axis.queries, axis=1).max(initial=1))
    return Runs(positions, apart, False, len(axis.query_slot), int(axis.queries[:, 0].max()))


def _keys(axis: AxisPlan, rows: dict | None):
    """The positions of keys, [tiles, S], a token standing for padding."""
    if not _computed(axis):
        return _not_negative(axis.keys) if rows is None else rows["keys"]
    first_key = axis.first_key if rows is None else rows["first_key"]
    return jnp.maximum(axis.keys_from(jax.lax.optimization_barrier(jnp.asarray(first_key, jnp.int32)), jnp), 0)


def _not_negative(x):
    return numpy_of(x).maximum(x, 0)


def _computed(axis: AxisPlan) -> bool:
    """Whether the program computes the positions of keys, which are many, instead of holding them."""
    return is_large((axis.tiles, axis.span))


def to_tiles(x, index: list[Runs]):
    """Gathers tiles: [B, *spatial, N, D] by the positions [tiles, slots] of every axis -> [M, B, N, slots, D]."""
    rank = len(index)
    if on_tpu():
        for runs in reversed(index):  # each puts its tiles first
            x = cut(x, runs, rank)
        x = jnp.moveaxis(x, -2, rank + 1)
        return jax.lax.collapse(jax.lax.collapse(x, 2 + rank, 2 + 2 * rank), 0, rank)
    for a, runs in enumerate(index):
        x = take(x, runs.positions.reshape(-1), 1 + 2 * a)
        x = x.reshape(*x.shape[: 1 + 2 * a], *runs.shape, *x.shape[2 + 2 * a :])
    tiles, slots = [1 + 2 * a for a in range(rank)], [2 + 2 * a for a in range(rank)]
    x = x.transpose(*tiles, 0, 1 + 2 * rank, *slots, 2 + 2 * rank)
    return jax.lax.collapse(jax.lax.collapse(x, 2 + rank, 2 + 2 * rank), 0, rank)


def gather_tiles(x, index: list):
    """Gathers tiles; without an axis for a batch of 1, with which XLA would not fuse attention on a CPU."""
    x = to_tiles(x, index)
    return x[:, 0] if x.shape[1] == 1 else x


def from_tiles(x, axes: tuple[AxisPlan, ...]):
    """Undoes `to_tiles` of queries: [M, B, N, T, D] -> [B, *spatial, N, D]."""
    return _from_slots(_untile(x, query_index(axes)), axes, halo=False, first_axis=1)


def untile_rows(x, rows: dict, axes: tuple[AxisPlan, ...], *, halo: bool = False):
    """Undoes the tiles of a step along all axes but the first: [M, B, N, T, D] -> [B, rows * T_0, *spatial[1:], N, D]."""
    index = (key_index if halo else query_index)(axes, rows)
    return _from_slots(_untile(x, index), axes[1:], halo=halo, first_axis=2)


def untile_columns(x, axes: tuple[AxisPlan, ...], *, halo: bool = False):
    """Joins steps and undoes tiles along the first axis: [steps, B, rows * T_0, *spatial[1:], N, D] -> [B, *spatial, N, D]."""
    x = jax.lax.collapse(jnp.moveaxis(x, 0, 1), 1, 3)
    return _from_slots(x, axes[:1], halo=halo, first_axis=1)


def halo_sums(like, axes: tuple[AxisPlan, ...]):
    """What `collect_halo` adds to, for gradients of keys [B, *spatial, N, D]; None where it returns every step's instead."""
    if on_tpu():
        return no_sums(like, key_index(axes)[0], 1)
    return no_halos(like, axes[0], 1) if shared_by_many(axes[0]) else None


def collect_halo(sums, x, rows: dict, axes: tuple[AxisPlan, ...]):
    """Undoes the tiles of a step, [M, B, N, S, D], but along the first axis; returns (sums with them, None), or (None, them)."""
    if on_tpu():
        return _lay_tiles(sums, x, key_index(axes, rows)), None
    x = untile_rows(x, rows, axes, halo=True)
    return (None, x) if sums is None else (add_halos(sums, x, rows["first_key"], axes[0], 1), None)


def from_halos(sums, x, axes: tuple[AxisPlan, ...]):
    """Returns the sums of all halos, [B, *spatial, N, D], of what `collect_halo` returned in all steps."""
    if on_tpu():
        return within(sums, key_index(axes)[0], 1)
    return untile_columns(x, axes, halo=True) if sums is None else keys_of(sums, axes[0], 1)


def _lay_tiles(sums, x, index: list[Runs]):
    """Adds tiles, [M, B, N, S, D], to sums [B, *spatial, N, D], axis by axis from the last one."""
    rank = len(index)
    x = x[:, None] if x.ndim == 4 else x  # a batch of 1
    x = x.reshape(*(runs.shape[0] for runs in index), *x.shape[1:])
    x = x.reshape(*x.shape[: rank + 2], *(runs.shape[1] for runs in index), x.shape[-1])
    x = jnp.moveaxis(x, rank + 1, -2)
    for a in range(rank - 1, 0, -1):  # [tiles of axes up to a, B, slots of axes up to a, sides of the others, N, D]
        axis, like = 2 * a + 1, jax.lax.index_in_dim(x, 0, a, keepdims=False)
        x = within(lay(no_sums(like, index[a], axis), x, index[a], axis, a), index[a], axis).astype(x.dtype)
    return lay(sums, x, index[0], 1)


def _untile(x, index: list[Runs]):
    """Undoes the last part of `to_tiles`: [M, B, N, slots, D] (or without B) -> [B, tiles * slots of every axis, N, D]."""
    rank = len(index)
    tiles, slots = zip(*(runs.shape for runs in index), strict=True)
    x = x[:, None] if x.ndim == 4 else x  # a batch of 1
    x = x.reshape(*tiles, *x.shape[1:])
    x = x.reshape(*x.shape[: rank + 2], *slots, x.shape[-1])
    pairs = [n for a in range(rank) for n in (a, rank + 2 + a)]
    x = x.transpose(rank, *pairs, rank + 1, 2 * rank + 2)
    for axis in range(1, 1 + rank):
        x = jax.lax.collapse(x, axis, axis + 2)
    return x


def _from_slots(x, axes: tuple[AxisPlan, ...], *, halo: bool, first_axis: int):
    """Gathers tokens from their slots, axis by axis; sums where a token has several, as keys in halos do."""
    for axis, of_axis in enumerate(axes, start=first_axis):
        if halo and shared_by_many(of_axis):
            x = sum_halos(x, of_axis, axis)
            continue
        if on_tpu() and not halo:
            x = interleaved(x, of_axis.query_slot, axis)
            continue
        slots, parts = of_axis.key_slots if halo else of_axis.query_slot[:, None], []
        for slot in slots.T:
            part = take(x, _not_negative(slot), axis)
            if not isinstance(slot, np.ndarray) or (slot < 0).any():
                part = jnp.where((slot >= 0).reshape(-1, *(1,) * (x.ndim - axis - 1)), part, 0)
            parts.append(part)
        x = functools.reduce(jnp.add, parts)
    return x


def take(x, positions, axis: int):
    """Takes positions along an axis; static runs are slices, which XLA need not gather."""
    if isinstance(positions, np.ndarray) and (np.diff(positions) == 1).all():
        return jax.lax.slice_in_dim(x, positions[0], positions[-1] + 1, axis=axis)
    return jnp.take(x, jnp.asarray(positions, jnp.int32), axis=axis, mode="clip")


def row_steps(query, axes: tuple[AxisPlan, ...], together: int) -> dict[str, Any]:
    """Cuts the rows of tiles (all that share a tile of the first axis) into steps: arrays of the plan, [steps, rows, ...].

    Temporaries are those of one step, of at least one row: they grow with windows, and with a map's other axes, but not with its
    first. The last step is padded with rows that own no query. `together` is how many heads one of the query stands for.
    """
    first = axes[0]
    rows = max(1, scores_per_step() // max(_scores_per_row(query, axes, together), 1))
    rows = math.ceil(first.tiles / math.ceil(first.tiles / rows))  # the same number in every step, as far as possible
    steps = math.ceil(first.tiles / rows)
    known = {"queries": first.queries, "classes": first.classes}
    known |= {} if _computed(first) else {"keys": first.keys}
    known |= {"first_key": first.first_key} if _computed(first) or shared_by_many(first) else {}
    padding = steps * rows - first.tiles
    known = {
        k: numpy_of(x).pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1)), constant_values=-1) for k, x in known.items()
    }
    if padding or any((axis.queries < 0).any() for axis in axes):
        known["owned"] = known["queries"] >= 0
    known = {k: _not_negative(x) if x.dtype != bool else x for k, x in known.items()}
    return {k: x.reshape(steps, rows, *x.shape[1:]) for k, x in known.items()}


def by_steps(step, known, carry=None):
    """Runs `step(carry, rows) -> carry, results` over all steps; results are stacked along a leading axis."""
    if jax.tree.leaves(known)[0].shape[0] == 1:  # static positions, so that runs of them are slices
        carry, results = step(carry, jax.tree.map(lambda x: x[0], known))
        return carry, jax.tree.map(lambda x: x[None], results)
    return jax.lax.scan(step, carry, jax.tree.map(jnp.asarray, known))


def batch_parts(arrays: tuple, axes: tuple[AxisPlan, ...], together: int, *, backward: bool) -> tuple:
    """Cuts the batch into parts that are worked on one after another: [B, ...] -> [parts, B / parts, ...]; see `row_steps`.

    Of a batch that is split along Explicit axes every device has the same number of entries in every part. A symbolic batch
    (`jax.export`) is one part where a part can be of any size, and else cut into its entries.
    """
    query, devices = arrays[0], shards(arrays[0], 0)
    scores = _scores_per_row(query, axes, together) * axes[0].tiles // max(_known_batch(query), 1)
    split = devices == 1 and may_be_split(query, 0)
    entries, own = entries_per_step(scores, backward=backward, split=split), query.shape[0] // devices
    if isinstance(own, int):
        parts = next((n for n in range(math.ceil(own / entries), own) if n and own % n == 0), max(own, 1))
    else:
        parts = 1 if entries == ALL_ENTRIES else own

    def cut_batch(x):
        batch, shape, (place, *others) = x.shape[0] // parts, x.shape[1:], spec_of(x)
        if devices > 1:
            x = reshape(x, (devices, parts, batch // devices, *shape), (place, None, None, *others)).swapaxes(0, 1)
        return reshape(x, (parts, batch, *shape), (None, place, *others))

    return jax.tree.map(cut_batch, arrays)


def joined(x, like, channels: int):
    """Undoes `batch_parts`, with the heads and the sharding of `like`: a split batch of 1 has lost its own."""
    devices, (place, *others) = shards(like, 0), spec_of(like)
    if devices > 1:
        x = reshape(x, (x.shape[0], devices, x.shape[1] // devices, *x.shape[2:]), (None, place, None, *others))
        x = x.swapaxes(0, 1)
    return reshape(x, (*like.shape[:-1], channels), spec_of(like))


def _scores_per_row(query, axes: tuple[AxisPlan, ...], together: int) -> int:
    others = math.prod(axis.tiles for axis in axes[1:])
    per_tile = math.prod(axis.queries.shape[1] * axis.span for axis in axes)
    return _known_batch(query) * query.shape[-2] * together * others * per_tile


def _known_batch(query) -> int:
    """The entries of a batch on a device; 1 where the number is symbolic, so that steps are cut as for one entry."""
    return query.shape[0] // shards(query, 0) if isinstance(query.shape[0], int) else 1


def owned_queries(rows: dict, axes: tuple[AxisPlan, ...], rank: int, groups: int):
    """Which query slots hold a token of their own and no padding, [M, 1, T, 1], or of rank 5, [M, 1, 1, T, 1]."""
    owned = [jnp.asarray(x, jnp.int32) for x in (rows["owned"], *(axis.queries >= 0 for axis in axes[1:]))]
    owned = join_group(functools.reduce(jnp.kron, owned)[:, None, :, None] > 0, groups)
    return owned if rank == 4 else owned[:, None]


def visible_keys(key_mask, sizes, window: Window, axes: tuple[AxisPlan, ...], rows: dict | None = None):
    """Which keys of tiles neither a mask nor an entry's own size hides, [M, B, 1, T or 1, S]; None where all are visible."""
    if key_mask is None:
        return None
    keys = key_index(axes, rows)
    visible = to_tiles(key_mask[..., None, None], keys).swapaxes(-1, -2)
    if sizes is None:
        return visible
    index = query_index(axes, rows), keys
    queries, keys = ([jnp.asarray(runs.positions, jnp.int32) for runs in of_all] for of_all in index)
    queries = [x + axis.query_origin for x, axis in zip(queries, axes, strict=True)]
    keys = [x + axis.key_origin for x, axis in zip(keys, axes, strict=True)]
    seen = [seen_at_sizes(*axis) for axis in zip(sizes.T, window.axes(), queries, keys, strict=True)]
    return visible & of_map(operator.and_, seen)[:, :, None]


def of_map(combine, axes: list):
    """Combines what is known of the tiles of every axis, [B, tiles, T, S], to what is of those of the map, [M, B, T, S]."""
    rank, spread = len(axes), []
    for a, x in enumerate(axes):
        x, shape = jnp.moveaxis(x, 0, 1), [1] * (3 * rank + 1)
        shape[a], shape[rank], shape[rank + 1 + a], shape[2 * rank + 1 + a] = x.shape
        spread.append(x.reshape(shape))
    x = functools.reduce(combine, spread)
    for first, count in ((2 * rank + 1, rank), (rank + 1, rank), (0, rank)):
        x = jax.lax.collapse(x, first, first + count)
    return x
