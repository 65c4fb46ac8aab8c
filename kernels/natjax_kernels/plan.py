"""The plan of a window: all arithmetic on positions, done once in static numpy, axis by axis.

A window over several axes is the product of windows over each (arXiv 2204.07143 section 3.1; dilation: 2209.15001; stride and
causality as NATTEN defines them), and so is its plan. `plan_axis` cuts one axis into query tiles and says for every tile which
queries it holds, which run of keys they see (the halo), and its class: the matrix that says for every (query, key) of the tile
which entry of the relative positional bias belongs to it, or that the key is no neighbour. Tiles that look alike share a class.
Everything that an implementation loads, masks or adds follows from these few small arrays.

Letters: L axis length, T queries per tile, S keys per tile, k kernel size, d dilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of every axis: tuples of one entry per axis, validated by the API.

    Attributes:
        kernel_size: neighbours along the axis.
        dilation: distance between neighbours.
        stride: queries that share a window.
        is_causal: whether queries see only keys up to themselves.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]

    def axes(self) -> list[tuple[int, int, int, bool]]:
        """Returns (kernel_size, dilation, stride, is_causal) of every axis."""
        return list(zip(self.kernel_size, self.dilation, self.stride, self.is_causal, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class AxisPlan:
    """The plan of one axis.

    Attributes:
        queries: [tiles, T] positions; -1 pads the last tile of a dilation group.
        keys: [tiles, S] positions; -1 where the group has no more.
        classes: [tiles] class of every tile.
        relative: [classes, T, S] key minus query, in units of the dilation, plus k - 1; -1 where the key is no neighbour.
            The rows of padded queries are all 0: they see everything, so that their softmax is finite.
        first_slot: [classes, T] slot of every query's first neighbour.
        query_slot: [L] the slot that holds every position as a query, as tile * T + slot.
        key_slots: [L, m] the slots that hold it as a key that some query of the tile sees, as tile * S + slot; -1 pads.
    """

    queries: np.ndarray
    keys: np.ndarray
    classes: np.ndarray
    relative: np.ndarray
    first_slot: np.ndarray
    query_slot: np.ndarray
    key_slots: np.ndarray

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.queries)


def windows(length: int, kernel: int, dilation: int, stride: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end, [L] each: query i sees the keys j * dilation + i % dilation for start[i] <= j < end[i].

    Dilation splits an axis into interleaved groups, each with a window arithmetic of its own. Windows shift inward at
    borders and are never cut, but causal ones end at the query.
    """
    position = np.arange(length)
    group, query = position % dilation, position // dilation
    group_length = -(-(length - group) // dilation)
    leader = query // stride * stride + (stride - 1 if causal else stride // 2)
    leader = np.minimum(leader, group_length - 1)
    if causal:
        return np.maximum(leader - (kernel - 1), 0), np.minimum(query + 1, group_length)
    start = np.clip(leader - kernel // 2, 0, group_length - kernel)
    return start, start + kernel


def transposed_windows(
    length: int, kernel: int, dilation: int, stride: int, causal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end, [L] each: key i is seen by the queries j * dilation + i % dilation for start[i] <= j < end[i].

    They are a run because starts and ends of windows never fall from one query of a group to the next.
    """
    start, end = windows(length, kernel, dilation, stride, causal)
    first, last = np.zeros(length, int), np.zeros(length, int)
    for group in range(dilation):
        key = np.arange(len(start[group::dilation]))
        first[group::dilation] = np.searchsorted(end[group::dilation], key, side="right")
        last[group::dilation] = np.searchsorted(start[group::dilation], key, side="right")
    return first, last


@functools.lru_cache(maxsize=512)
def plan_axis(
    length: int, kernel: int, dilation: int, stride: int, causal: bool, tile: int, transposed: bool = False
) -> AxisPlan:
    """Plans an axis of `length` positions in tiles of `tile` queries.

    In the transposed plan keys and queries change places: tiles of keys, with the queries that see them. A backward pass that
    follows it needs no atomics and no scatter. `relative` remains key minus query.
    """
    start, end = (transposed_windows if transposed else windows)(length, kernel, dilation, stride, causal)
    group_lengths = -(-(length - np.arange(dilation)) // dilation)
    group, number = np.nonzero(np.arange(0, group_lengths[0], tile) < group_lengths[:, None])  # of every tile
    in_group = group_lengths[group, None]
    place = number[:, None] * tile + np.arange(tile)  # in the group, [tiles, T]
    owned = place < in_group
    members = np.where(owned, place, place[:, :1]) * dilation + group[:, None]  # the first one stands for padding

    lo, hi = start[members].min(axis=1, keepdims=True), end[members].max(axis=1, keepdims=True)
    span = (hi - lo).max()
    # A halo that would run past the end of its group starts earlier, so that tiles there share classes.
    halo = np.maximum(np.minimum(lo, in_group - span), 0)
    index = halo + np.arange(span)  # [tiles, S]
    keys = np.where(index < in_group, index * dilation + group[:, None], -1)
    queries = np.where(owned, members, -1)

    # A tile's class follows from where the window of each of its queries begins and ends and where the query itself is, counted
    # from the first key: `relative` is as large as the scores of a tile, and made once for every class.
    looks = np.stack([start[members] - halo, end[members] - halo, place - halo, owned], axis=1)  # [tiles, 4, T]
    looks = np.where(owned[:, None], looks, 0)
    looks, classes = np.unique(looks, axis=0, return_inverse=True)
    first, last, own, real = (x[..., None] for x in looks.swapaxes(0, 1))
    slot = np.arange(span)
    offset = (own - slot if transposed else slot - own) + kernel - 1
    relative = np.where((first <= slot) & (slot < last), offset, -1)
    return AxisPlan(
        queries=queries,
        keys=keys,
        classes=classes.reshape(-1),
        relative=np.where(real, relative, 0),
        first_slot=first[..., 0],
        query_slot=_slots_of(queries, owned, length)[:, 0],
        # Every window holds its own query, so those of a tile leave no gaps between them.
        key_slots=_slots_of(keys, (lo <= index) & (index < hi), length),
    )


def plan(
    spatial: Sequence[int], window: Window, tile: Sequence[int], *, transposed: bool = False
) -> tuple[AxisPlan, ...]:
    """Plans every axis of a map; tiles and classes of the map are the products of those of its axes."""
    return tuple(plan_axis(n, *axis, t, transposed) for n, axis, t in zip(spatial, window.axes(), tile, strict=True))


def tile_classes(axes: Sequence[AxisPlan]) -> np.ndarray:
    """Returns the class of every tile of the map, [tiles], both in row-major order of the axes."""
    index = np.zeros((), int)
    for axis in axes:
        index = index[..., None] * len(axis.relative) + axis.classes
    return index.reshape(-1)


def group_length(length: int, dilation: int) -> int:
    """Returns the length of the longest dilation group of an axis."""
    return math.ceil(length / dilation)


@functools.lru_cache(maxsize=4096)
def longest_halo(length: int, kernel: int, stride: int, causal: bool, tile: int, transposed: bool = False) -> int:
    """Returns how many keys the queries of a tile see at most, for an axis (or a dilation group) in tiles of `tile`.

    In the transposed plan, how many queries see the keys of a tile.
    """
    period = math.lcm(tile, stride)  # of tiles and windows between borders, of which some are enough
    length -= max(0, length - 4 * (kernel + period)) // period * period
    start, end = (transposed_windows if transposed else windows)(length, kernel, 1, stride, causal)
    last = np.minimum(np.arange(tile - 1, length + tile - 1, tile), length - 1)
    return int(np.max(end[last] - start[::tile]))


def _slots_of(table: np.ndarray, present: np.ndarray, length: int) -> np.ndarray:
    """Inverts a table of positions: [length, m] flat indices of where every position is present, -1 padded."""
    places = np.flatnonzero(present)
    positions = table.reshape(-1)[places]
    order = np.argsort(positions, kind="stable")
    counts = np.bincount(positions, minlength=length)
    slots = np.full((length, counts.max()), -1)
    slots[np.arange(counts.max()) < counts[:, None]] = places[order]
    return slots
