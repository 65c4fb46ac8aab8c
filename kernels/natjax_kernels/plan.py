"""The plan of a window: all arithmetic on positions, done once in static numpy, axis by axis.

A window over several axes is the product of windows over each (arXiv 2204.07143 section 3.1; dilation: 2209.15001; stride and
causality as NATTEN defines them), and so is its plan. `plan_axis` cuts one axis into query tiles and says for every tile which
queries it holds, which run of keys they see (the halo), and its class: which (query, key) pairs of the tile are neighbours, and
which entry of the relative positional bias belongs to them (`natjax_kernels.axis`). Tiles that look alike share a class.
Everything that an implementation loads, masks or adds follows from these few small arrays: none grows with windows.

Letters: L keys along an axis, T queries per tile, S keys per tile, k kernel size, d dilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from natjax_kernels.axis import AxisPlan, Pairs, slots_of
from natjax_kernels.split import SplitPlan, windows_of_kinds
from natjax_kernels.window import AxisWindow, Window, windows


def transposed_windows(length: int, axis: AxisWindow) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end, [L] each: key i is seen by the queries start[i] to end[i] - 1 of its dilation group.

    They are a run because starts and ends of windows never fall from one query of a group to the next.
    """
    start, end = windows(length, axis)
    centers = axis.centers(length)
    return _transposed(start[centers], end[centers], centers, length, axis)


def _transposed(start, end, centers, length: int, axis: AxisWindow) -> tuple[np.ndarray, np.ndarray]:
    """As `transposed_windows`, of the windows of queries at these positions."""
    first, last = np.zeros(length, int), np.zeros(length, int)
    for group in range(axis.dilation):
        queries = centers % axis.dilation == group
        starts, ends, before = start[queries], end[queries], 0
        keys = np.arange(len(range(group, length, axis.dilation)))
        if axis.periodic and axis.split is None:  # the queries of the round before and after
            before = len(starts)
            starts, ends = (np.concatenate([x - len(keys), x, x + len(keys)]) for x in (starts, ends))
        first[group :: axis.dilation] = np.searchsorted(ends, keys, side="right") - before
        last[group :: axis.dilation] = np.searchsorted(starts, keys, side="right") - before
    return first, last


@dataclasses.dataclass(frozen=True, eq=False)
class _Groups:
    """Queries or keys of an axis by dilation group. Within a group, places are `step` apart, counted in keys of the group.

    Attributes:
        start: [groups] position of its first one.
        sizes: [groups] how many it has.
        first: [groups] place of its first one among the keys of the group.
        step: keys of the group between neighbours.
        apart: positions between neighbours.
    """

    start: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    step: int
    apart: int

    @classmethod
    def of(cls, centers: np.ndarray, axis: AxisWindow, spacing: int) -> _Groups:
        """Sorts what is at these positions among the keys, `spacing` apart."""
        group, number = centers % axis.dilation, np.arange(len(centers))
        start = np.full(axis.dilation, len(centers))
        np.minimum.at(start, group, number)
        first = (centers // axis.dilation)[np.minimum(start, len(centers) - 1)]
        common = math.gcd(spacing, axis.dilation)
        sizes = np.bincount(group, minlength=axis.dilation)
        return cls(start, sizes, first, spacing // common, axis.dilation // common)


@functools.lru_cache(maxsize=512)
def plan_axis(
    length: int, axis: AxisWindow, tile: int, transposed: bool = False, biased: bool = True, multiple: int = 1
) -> AxisPlan:
    """Plans an axis of `length` keys in tiles of `tile` queries.

    In the transposed plan keys and queries change places: tiles of keys, with the queries that see them. A backward pass that
    follows it needs no atomics and no scatter. Entries of the bias remain those of key minus query. A plan that is not `biased`
    knows no entries, and more of its tiles look alike: whole-axis windows have one class. Tiles have a multiple of `multiple`
    slots for keys.
    """
    assert axis.split is None
    return _plan_kinds(length, axis, tile, transposed, biased, multiple)[0]


@functools.lru_cache(maxsize=512)
def plan_split_axis(
    length: int, axis: AxisWindow, tile: int, transposed: bool = False, biased: bool = True, multiple: int = 1
) -> SplitPlan:
    """Plans, for every device, an axis that is split; as `plan_axis`, of the `length` keys that a device has."""
    assert axis.split is not None
    kinds = _plan_kinds(length, axis, tile, transposed, biased, multiple)
    return SplitPlan(
        kinds, windows_of_kinds(length, axis)[-1], np.stack(axis.split.origins(length, periodic=axis.periodic))
    )


def _plan_kinds(
    length: int, axis: AxisWindow, tile: int, transposed: bool, biased: bool, multiple: int
) -> tuple[AxisPlan, ...]:
    """Plans an axis for every kind of device: all plans have the same tiles, classes and spans."""
    centers, (start, end, offset, _) = axis.centers(length), windows_of_kinds(length, axis)
    queries, keys = _Groups.of(centers, axis, axis.spacing), _Groups.of(np.arange(length), axis, 1)
    own, other = (keys, queries) if transposed else (queries, keys)
    if transposed:
        kinds = zip(start, end, centers + offset[:, None], strict=True)
        start, end = np.stack([_transposed(*of_kind, length, axis) for of_kind in kinds], axis=1)

    group, number = np.nonzero(np.arange(0, own.sizes.max(), tile) < own.sizes[:, None])  # of every tile
    group = group[:, None]
    place = number[:, None] * tile + np.arange(tile)  # in the group, [tiles, T]
    owned = place < own.sizes[group]
    # The first one stands for padding.
    members = own.start[group] + own.apart * np.where(owned, place, place[:, :1])

    # Below, arrays are [kinds of devices, tiles, T or 1].
    start, end, offset = start[:, members], end[:, members], offset[:, None, None]
    other_group = (group - offset if transposed else group + offset) % axis.dilation
    lo, hi = start.min(axis=2, keepdims=True), end.max(axis=2, keepdims=True)
    span, others, positions = int((hi - lo).max()), other.sizes[other_group], int(other.sizes.sum())
    span = math.ceil(span / multiple) * multiple
    # A halo that would run past the end of its group starts earlier, so that tiles there share classes.
    ring = axis.periodic and axis.split is None
    halo = lo if ring else np.maximum(np.minimum(lo, others - span), 0)
    first_key = other.start[other_group] + other.apart * halo
    first_key = np.where(others > 0, first_key % positions if ring else first_key, -1)

    # A tile's class follows from where the window of each of its queries begins and ends and where the query itself is, counted
    # from the first key.
    ahead = own.first[group] + own.step * place - (other.first[other_group] + other.step * halo)
    ahead = ahead - (offset + other_group) // axis.dilation if transposed else ahead + (offset + group) // axis.dilation
    looks = np.broadcast_arrays(start - halo, end - halo, ahead * biased, owned)
    looks = np.where(owned[:, None], np.stack(looks, axis=2), 0)  # [kinds, tiles, 4, T]
    looks, classes = np.unique(looks.reshape(-1, 4, tile).astype(np.int32), axis=0, return_inverse=True)
    first, last, ahead, real = looks.swapaxes(0, 1)
    growth = -other.step if transposed else 1
    whole = AxisPlan(
        queries=np.where(owned, members, -1),
        first_key=first_key[..., 0],
        apart=other.apart,
        length=positions,
        ring=ring,
        visible=np.concatenate([lo, hi], axis=2) - halo,
        classes=classes.reshape(first_key.shape[:2]).astype(np.int32),
        pairs=Pairs(
            first=first,
            end=np.where(real, last, span),
            entry=((ahead if transposed else -ahead) + axis.kernel - 1) * biased,
            real=real > 0,
            span=span,
            growth=growth * biased,
        ),
        query_slot=slots_of(members, owned, int(own.sizes.sum()))[:, 0],
    )
    of_kinds = zip(whole.first_key, whole.visible, whole.classes, strict=True)
    return tuple(dataclasses.replace(whole, first_key=f, visible=v, classes=c) for f, v, c in of_kinds)


def plan(
    spatial: Sequence[int], window: Window, tile: Sequence[int], *, transposed: bool = False, biased: bool = True
) -> tuple[AxisPlan, ...]:
    """Plans every axis of a map of keys; tiles and classes of the map are the products of those of its axes."""
    return tuple(
        plan_axis(n, axis, t, transposed, biased) for n, axis, t in zip(spatial, window.axes(), tile, strict=True)
    )


def tile_classes(axes: Sequence[AxisPlan]) -> Any:
    """Returns the class of every tile of the map, [tiles], both in row-major order of the axes."""
    index = np.zeros((), np.int32)
    for axis in axes:
        index = index[..., None] * len(axis.pairs) + axis.classes
    return index.reshape(-1)


def group_length(length: int, dilation: int) -> int:
    """Returns the length of the longest dilation group of an axis."""
    return math.ceil(length / dilation)


@functools.lru_cache(maxsize=4096)
def longest_halo(length: int, axis: AxisWindow, tile: int, transposed: bool = False) -> int:
    """Returns how many keys the queries of a tile see at most, along a dilation group of `length` keys in tiles of `tile`.

    In the transposed plan, how many queries see the keys of a tile.
    """
    axis = axis.in_group()
    # Of tiles and windows between borders, of which some are enough.
    period = math.lcm(tile * axis.spacing, axis.stride)
    length -= max(0, length - 4 * (axis.kernel + period)) // period * period
    if transposed:
        start, end = transposed_windows(length, axis)
    else:
        centers = axis.centers(length) if axis.spacing // 2 < length else [0]  # a group may have none
        start, end = (x[centers] for x in windows(length, axis))
    last = np.minimum(np.arange(tile - 1, len(start) + tile - 1, tile), len(start) - 1)
    return int(np.max(end[last] - start[::tile]))
