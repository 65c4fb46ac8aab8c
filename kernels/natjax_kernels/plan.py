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

import numpy as np

from natjax_kernels.axis import AxisPlan, Pairs, slots_of


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
def plan_axis(length: int, axis: AxisWindow, tile: int, transposed: bool = False, biased: bool = True) -> AxisPlan:
    """Plans an axis of `length` keys in tiles of `tile` queries.

    In the transposed plan keys and queries change places: tiles of keys, with the queries that see them. A backward pass that
    follows it needs no atomics and no scatter. Entries of the bias remain those of key minus query. A plan that is not `biased`
    knows no entries, and more of its tiles look alike: whole-axis windows have one class.
    """
    centers = axis.centers(length)
    queries, keys = _Groups.of(centers, axis, axis.spacing), _Groups.of(np.arange(length), axis, 1)
    if transposed:
        (start, end), own, other = transposed_windows(length, axis), keys, queries
    else:
        (start, end), own, other = (x[centers] for x in windows(length, axis)), queries, keys

    group, number = np.nonzero(np.arange(0, own.sizes.max(), tile) < own.sizes[:, None])  # of every tile
    group = group[:, None]
    place = number[:, None] * tile + np.arange(tile)  # in the group, [tiles, T]
    owned = place < own.sizes[group]
    # The first one stands for padding.
    members = own.start[group] + own.apart * np.where(owned, place, place[:, :1])

    lo, hi = start[members].min(axis=1, keepdims=True), end[members].max(axis=1, keepdims=True)
    span, others, positions = int((hi - lo).max()), other.sizes[group], int(other.sizes.sum())
    # A halo that would run past the end of its group starts earlier, so that tiles there share classes.
    halo = lo if axis.periodic else np.maximum(np.minimum(lo, others - span), 0)
    first_key = other.start[group] + other.apart * halo
    first_key = np.where(others > 0, first_key % positions if axis.periodic else first_key, -1)

    # A tile's class follows from where the window of each of its queries begins and ends and where the query itself is, counted
    # from the first key.
    ahead = own.first[group] + own.step * place - (other.first[group] + other.step * halo)
    looks = np.stack([start[members] - halo, end[members] - halo, ahead * biased, owned], axis=1)  # [tiles, 4, T]
    looks = np.where(owned[:, None], looks, 0)
    looks, classes = np.unique(looks.astype(np.int32), axis=0, return_inverse=True)
    first, last, ahead, real = looks.swapaxes(0, 1)
    growth = -other.step if transposed else 1
    return AxisPlan(
        queries=np.where(owned, members, -1),
        first_key=first_key[:, 0],
        apart=other.apart,
        length=positions,
        ring=axis.periodic,
        visible=np.concatenate([lo, hi], axis=1) - halo,
        classes=classes.reshape(-1),
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


def plan(
    spatial: Sequence[int], window: Window, tile: Sequence[int], *, transposed: bool = False, biased: bool = True
) -> tuple[AxisPlan, ...]:
    """Plans every axis of a map of keys; tiles and classes of the map are the products of those of its axes."""
    return tuple(
        plan_axis(n, axis, t, transposed, biased) for n, axis, t in zip(spatial, window.axes(), tile, strict=True)
    )


def tile_classes(axes: Sequence[AxisPlan]) -> np.ndarray:
    """Returns the class of every tile of the map, [tiles], both in row-major order of the axes."""
    index = np.zeros((), int)
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
