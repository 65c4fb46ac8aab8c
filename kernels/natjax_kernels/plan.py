"""The plan of a window: all arithmetic on positions, done once in static numpy, axis by axis.

A window over several axes is the product of windows over each (arXiv 2204.07143 section 3.1; dilation: 2209.15001; stride and
causality as NATTEN defines them), and so is its plan. `plan_axis` cuts one axis into query tiles and says for every tile which
queries it holds, which run of keys they see (the halo), and its class: the matrix that says for every (query, key) of the tile
which entry of the relative positional bias belongs to it, or that the key is no neighbour. Tiles that look alike share a class.
Everything that an implementation loads, masks or adds follows from these few small arrays.

Letters: L keys along an axis, T queries per tile, S keys per tile, k kernel size, d dilation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class AxisWindow:
    """The window along one axis.

    Attributes:
        kernel: neighbours.
        dilation: distance between neighbours.
        stride: queries that share a window.
        causal: whether queries see only keys up to themselves.
        periodic: whether the axis is a ring, on which windows wrap around.
        spacing: keys per query: query i is where key i * spacing + spacing // 2 is.
        sized: whether entries of the batch have maps of their own sizes, known at run time: the plan has all keys that the
            window of a query can come to hold.
    """

    kernel: int
    dilation: int = 1
    stride: int = 1
    causal: bool = False
    periodic: bool = False
    spacing: int = 1
    sized: bool = False

    def centers(self, length: int) -> np.ndarray:
        """Returns the position of every query among the `length` keys."""
        return np.arange(self.spacing // 2, length, self.spacing)

    def in_group(self) -> AxisWindow:
        """Returns the window within a dilation group, whose keys are neighbours."""
        return dataclasses.replace(self, dilation=1, spacing=self.spacing // math.gcd(self.spacing, self.dilation))


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of every axis: tuples of one entry per axis, validated by the API; see `AxisWindow`.

    Attributes:
        kernel_size: neighbours along the axis.
        dilation: distance between neighbours.
        stride: queries that share a window.
        is_causal: whether queries see only keys up to themselves.
        periodic: whether the axis is a ring; by default none is.
        spacing: keys per query; 1 by default.
        sized: whether sizes are known at run time; by default they are those of the arrays.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    periodic: tuple[bool, ...] = ()
    spacing: tuple[int, ...] = ()
    sized: tuple[bool, ...] = ()

    def __post_init__(self):
        """Fills in the defaults."""
        rank = len(self.kernel_size)
        object.__setattr__(self, "periodic", self.periodic or (False,) * rank)
        object.__setattr__(self, "spacing", self.spacing or (1,) * rank)
        object.__setattr__(self, "sized", self.sized or (False,) * rank)

    def axes(self) -> list[AxisWindow]:
        """Returns the window of every axis."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [AxisWindow(*axis) for axis in zip(*fields, strict=True)]

    def queries(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the sides of the map of queries, for keys of such sides."""
        return tuple(n // spacing for n, spacing in zip(spatial, self.spacing, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class AxisPlan:
    """The plan of one axis.

    Attributes:
        queries: [tiles, T] positions among the queries; -1 pads the last tile of a dilation group.
        keys: [tiles, S] positions among the keys; -1 where the group has no more.
        classes: [tiles] class of every tile.
        relative: [classes, T, S] key minus query, in units of the dilation, plus k - 1; -1 where the key is no neighbour.
            The rows of padded queries are all 0: they see everything, so that their softmax is finite.
        first_slot: [classes, T] slot of every query's first neighbour.
        query_slot: [queries] the slot that holds every position as a query, as tile * T + slot.
        key_slots: [keys, m] the slots that hold it as a key that some query of the tile may see, as tile * S + slot; -1 pads.
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


def windows(length: int, axis: AxisWindow) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end, [L] each: a query at i sees the keys j * dilation + i % dilation for start[i] <= j < end[i].

    Dilation splits an axis into interleaved groups, each with a window arithmetic of its own. Windows shift inward at
    borders and are never cut, but causal ones end at the query. On a ring they do not shift: j counts on beyond its ends.
    """
    position = np.arange(length)
    group, query = position % axis.dilation, position // axis.dilation
    length_of_group = -(-(length - group) // axis.dilation)
    if axis.sized:
        end = query + (1 if axis.causal else axis.kernel)
        return np.maximum(query - (axis.kernel - 1), 0), np.minimum(end, length_of_group)
    leader = query // axis.stride * axis.stride + (axis.stride - 1 if axis.causal else axis.stride // 2)
    if axis.periodic:
        start = leader - axis.kernel // 2
        return start, start + axis.kernel
    leader = np.minimum(leader, length_of_group - 1)
    if axis.causal:
        return np.maximum(leader - (axis.kernel - 1), 0), np.minimum(query + 1, length_of_group)
    start = np.clip(leader - axis.kernel // 2, 0, length_of_group - axis.kernel)
    return start, start + axis.kernel


def transposed_windows(length: int, axis: AxisWindow) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end, [L] each: key i is seen by the queries start[i] to end[i] - 1 of its dilation group.

    They are a run because starts and ends of windows never fall from one query of a group to the next.
    """
    start, end = windows(length, axis)
    centers = axis.centers(length)
    first, last = np.zeros(length, int), np.zeros(length, int)
    for group in range(axis.dilation):
        queries = centers[centers % axis.dilation == group]
        starts, ends, before = start[queries], end[queries], 0
        keys = np.arange(len(range(group, length, axis.dilation)))
        if axis.periodic:  # the queries of the round before and after
            starts, ends = (np.concatenate([x - len(keys), x, x + len(keys)]) for x in (starts, ends))
            before = len(queries)
        first[group :: axis.dilation] = np.searchsorted(ends, keys, side="right") - before
        last[group :: axis.dilation] = np.searchsorted(starts, keys, side="right") - before
    return first, last


@dataclasses.dataclass(frozen=True, eq=False)
class _Groups:
    """Queries or keys of an axis by dilation group. Within a group, places are `step` apart, counted in keys of the group.

    Attributes:
        order: all positions, group by group.
        begins: [groups] where a group begins in `order`.
        sizes: [groups] how many it has.
        first: [groups] place of its first one among the keys of the group.
        step: keys of the group between neighbours.
    """

    order: np.ndarray
    begins: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    step: int

    @classmethod
    def of(cls, centers: np.ndarray, dilation: int, step: int) -> _Groups:
        """Sorts what is at these positions among the keys."""
        group = centers % dilation
        order, sizes = np.argsort(group, kind="stable"), np.bincount(group, minlength=dilation)
        begins = np.cumsum(sizes) - sizes
        first = (centers // dilation)[order[np.minimum(begins, len(order) - 1)]]
        return cls(order, begins, sizes, first, step)


@functools.lru_cache(maxsize=512)
def plan_axis(length: int, axis: AxisWindow, tile: int, transposed: bool = False) -> AxisPlan:
    """Plans an axis of `length` keys in tiles of `tile` queries.

    In the transposed plan keys and queries change places: tiles of keys, with the queries that see them. A backward pass that
    follows it needs no atomics and no scatter. `relative` remains key minus query.
    """
    centers = axis.centers(length)
    queries = _Groups.of(centers, axis.dilation, axis.in_group().spacing)
    keys = _Groups.of(np.arange(length), axis.dilation, 1)
    if transposed:
        (start, end), own, other = transposed_windows(length, axis), keys, queries
    else:
        (start, end), own, other = (x[centers] for x in windows(length, axis)), queries, keys

    group, number = np.nonzero(np.arange(0, own.sizes.max(), tile) < own.sizes[:, None])  # of every tile
    place = number[:, None] * tile + np.arange(tile)  # in the group, [tiles, T]
    owned = place < own.sizes[group, None]
    # The first one stands for padding.
    members = own.order[own.begins[group, None] + np.where(owned, place, place[:, :1])]

    lo, hi = start[members].min(axis=1, keepdims=True), end[members].max(axis=1, keepdims=True)
    span, others = (hi - lo).max(), other.sizes[group, None]
    # A halo that would run past the end of its group starts earlier, so that tiles there share classes.
    halo = lo if axis.periodic else np.maximum(np.minimum(lo, others - span), 0)
    index = halo + np.arange(span)  # [tiles, S]
    found = index % np.maximum(others, 1) if axis.periodic else index
    found = np.where(found < others, other.begins[group, None] + found, len(other.order))
    halos = np.append(other.order, -1)[found]

    # A tile's class follows from where the window of each of its queries begins and ends and where the query itself is, counted
    # from the first key: `relative` is as large as the scores of a tile, and made once for every class.
    ahead = own.first[group, None] + own.step * place - (other.first[group, None] + other.step * halo)
    looks = np.stack([start[members] - halo, end[members] - halo, ahead, owned], axis=1)  # [tiles, 4, T]
    looks = np.where(owned[:, None], looks, 0)
    looks, classes = np.unique(looks, axis=0, return_inverse=True)
    first, last, ahead, real = (x[..., None] for x in looks.swapaxes(0, 1))
    slot = np.arange(span)
    offset = (ahead - slot * other.step if transposed else slot - ahead) + axis.kernel - 1
    relative = np.where((first <= slot) & (slot < last), offset, -1)
    return AxisPlan(
        queries=np.where(owned, members, -1),
        keys=halos,
        classes=classes.reshape(-1),
        relative=np.where(real, relative, 0),
        first_slot=first[..., 0],
        query_slot=_slots_of(members, owned, len(own.order))[:, 0],
        # What lies between the windows of a tile's queries, where these are far apart, has weight 0.
        key_slots=_slots_of(halos, (halos >= 0) & (lo <= index) & (index < hi), len(other.order)),
    )


def plan(
    spatial: Sequence[int], window: Window, tile: Sequence[int], *, transposed: bool = False
) -> tuple[AxisPlan, ...]:
    """Plans every axis of a map of keys; tiles and classes of the map are the products of those of its axes."""
    return tuple(plan_axis(n, axis, t, transposed) for n, axis, t in zip(spatial, window.axes(), tile, strict=True))


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


def _slots_of(table: np.ndarray, present: np.ndarray, length: int) -> np.ndarray:
    """Inverts a table of positions: [length, m] flat indices of where every position is present, -1 padded."""
    places = np.flatnonzero(present)
    positions = table.reshape(-1)[places]
    order = np.argsort(positions, kind="stable")
    counts = np.bincount(positions, minlength=length)
    slots = np.full((length, counts.max()), -1)
    slots[np.arange(counts.max()) < counts[:, None]] = places[order]
    return slots
