"""The plan as the fused kernels read it: a few integers per tile, and one table of bias-or-minus-infinity.

Positions of a tile's tokens are affine in their slots, so a tile needs no more than its first query and its first key: the
token of slot (z, y, x) is origin + z * step_z + y * step_y + x * step_x, with the dilation inside the steps. Windows of any rank
become windows over three axes, whose missing ones are of length 1: one kernel serves them all. Where an axis is a ring, halos go
on at its start: there a tile has the position of its first key along every axis, too.

The halo of a tile is worked on in blocks of keys. Where it is small it is one block; where it is large it is cut into equal
boxes, and boxes that look alike from their tiles share a row of the table. Tiles are sorted by class, and runs of tiles of one
class are what a program works through with the same table on chip.

Where the map is split over devices there are tiles and runs of every kind of device, of which there are few: a device takes its
own. All have as many tiles and runs, and the same table, so that their programs are the same.

Letters: T queries per tile, S keys per block.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from natjax_kernels.axis import AxisPlan, Pairs, distinct
from natjax_kernels.plan import plan_axis, plan_split_axis
from natjax_kernels.split import SplitPlan
from natjax_kernels.window import Window


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What the kernels know of a map; see the module's text.

    Attributes:
        tiles: [kinds, tiles, 6] int32, sorted by class: first query, first key, class, queries along z, y, x; [kinds, tiles, 9]
            where an axis is a ring: then the position of the first key along z, y, x.
        kinds: [places along every axis] which kind of device there is (`natjax_kernels.split`).
        rows: [classes, blocks] int32: the row of the table for every block of a tile's halo.
        relative: per axis of the map the pairs of distinct blocks, which make the table (`natjax_kernels.bias`).
        tile: sides of a tile along z, y, x.
        block: sides of a block of keys along z, y, x.
        blocks: blocks of a halo along z, y, x.
        steps: tokens between neighbouring slots of a tile along z, y, x.
        halo_steps: those of a halo.
        rings: of every axis (z, y, x) its length where it is a ring, else 0; positions between neighbouring slots of a halo;
            tokens between neighbouring positions.
        tokens: tokens of the map of tiles.
        halo_tokens: tokens of the map of halos.
    """

    tiles: np.ndarray
    kinds: np.ndarray
    rows: np.ndarray
    relative: list[Pairs]
    tile: tuple[int, ...]
    block: tuple[int, ...]
    blocks: tuple[int, ...]
    steps: tuple[int, ...]
    halo_steps: tuple[int, ...]
    rings: tuple[tuple[int, int, int], ...]
    tokens: int
    halo_tokens: int

    def runs(self, longest: int) -> np.ndarray:
        """Cuts the tiles into runs of one class, [kinds, runs, 2] int32: first tile and the one after the last.

        Of every class all kinds have as many, which are empty where a kind has fewer tiles.
        """
        classes, own_class = self.tiles[..., 2], np.arange(len(self.rows))
        start, end = (np.stack([np.searchsorted(x, own_class, side) for x in classes]) for side in ("left", "right"))
        counts = -(-(end - start).max(axis=0) // longest)
        number = np.concatenate([np.arange(n) for n in counts])  # of a run in its class
        first = np.repeat(start, counts, axis=1) + number * longest
        last = np.minimum(first + longest, np.repeat(end, counts, axis=1))
        return np.where((first < last)[..., None], np.stack([first, last], axis=-1), 0).astype(np.int32)

    def classes(self, runs: np.ndarray) -> np.ndarray:
        """Returns the class of every run, [runs], as the kinds have it of which it is not empty."""
        kind = np.argmax(runs[..., 1] > runs[..., 0], axis=0)
        return self.tiles[kind, runs[kind, np.arange(len(kind)), 0], 2]


@functools.lru_cache(maxsize=256)
def layout(
    spatial: tuple[int, ...],
    window: Window,
    tile: tuple[int, ...],
    block: tuple[int, ...] | None,
    transposed: bool = False,
) -> Layout:
    """Lays out a map of keys with such sides in tiles; blocks of keys are whole halos where `block` is None.

    The transposed layout exchanges queries and keys, as `natjax_kernels.plan.plan_axis` does.
    """
    plans = _plans(spatial, window, tile, transposed)
    axes = [plan.kinds[0] for plan in plans]
    block, blocks = _blocks(axes, block)
    own, other = _maps(spatial, window, transposed)
    missing = 3 - len(axes)

    rows, kinds = np.zeros((), int), np.zeros((), int)
    relative = []
    for plan, axis, n, side in zip(plans, axes, blocks, block, strict=True):
        distinct, inverse = _distinct_blocks(axis.pairs, n, side)
        relative.append(distinct)
        # Rows of the table, blocks of the halo and kinds of devices are products over the axes, as classes are.
        rows = np.add.outer(rows * len(distinct), inverse)
        kinds = np.add.outer(kinds * len(plan.kinds), plan.kind)
    # rows: [classes and blocks of the first axis, then of the next, ...] -> [classes, blocks]
    rows = rows.transpose(*range(0, rows.ndim, 2), *range(1, rows.ndim, 2)).reshape(-1, math.prod(blocks))
    rings = [n * axis.ring for n, axis in zip(other.sides, axes, strict=True)]
    return Layout(
        tiles=np.stack([_tiles(of_kind, own, other) for of_kind in itertools.product(*(plan.kinds for plan in plans))]),
        kinds=kinds,
        rows=rows.astype(np.int32),
        relative=relative,
        tile=(*(1,) * missing, *tile),
        block=(*(1,) * missing, *block),
        blocks=(*(1,) * missing, *blocks),
        steps=(*(0,) * missing, *own.steps),
        halo_steps=(*(0,) * missing, *other.steps),
        rings=(*((0, 0, 0),) * missing, *zip(rings, other.apart, other.strides, strict=True)),
        tokens=math.prod(own.sides),
        halo_tokens=math.prod(other.sides),
    )


def _tiles(axes: Sequence[AxisPlan], own: _Map, other: _Map) -> np.ndarray:
    """Returns the tiles of one kind of device, as `Layout.tiles` has them."""
    first_query, first_key, classes = (np.zeros((), int) for _ in range(3))
    counts, places = [], []
    for a, axis in enumerate(axes):
        place = np.maximum(axis.first_key, 0)  # no query sees a group of keys without one
        first_query = np.add.outer(first_query, axis.queries[:, 0] * own.strides[a])
        first_key = np.add.outer(first_key, place * other.strides[a])
        classes = np.add.outer(classes * len(axis.pairs), axis.classes)
        shape = [1] * len(axes)
        shape[a] = axis.tiles
        counts.append(np.sum(axis.queries >= 0, axis=1).reshape(shape))
        places.append(place.reshape(shape))
    missing = 3 - len(axes)
    ones, zeros = [np.ones((1,) * len(axes), int)] * missing, [np.zeros((1,) * len(axes), int)] * missing
    fields = [first_query, first_key, classes, *ones, *counts]
    if any(axis.ring for axis in axes):
        fields += [*zeros, *places]
    tiles = np.stack([np.broadcast_to(field, classes.shape).reshape(-1) for field in fields], axis=1)
    return tiles[np.argsort(tiles[:, 2], kind="stable")].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a layout is: all that decides how much memory its kernels' tables and sums take.

    Attributes:
        rows: rows of the table.
        blocks: blocks of a halo.
        block: slots of a block.
        class_tiles: tiles of every class; of a split map those of the kind of device that has most.
    """

    rows: int
    blocks: int
    block: int
    class_tiles: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """Tiles of the map, at most."""
        return sum(self.class_tiles)


@functools.lru_cache(maxsize=512)
def sizes(
    spatial: tuple[int, ...],
    window: Window,
    tile: tuple[int, ...],
    block: tuple[int, ...] | None,
    transposed: bool = False,
) -> Sizes:
    """Returns how large the layout of the same arguments is, from its axes alone: without laying out the map."""
    plans = _plans(spatial, window, tile, transposed)
    block, blocks = _blocks([plan.kinds[0] for plan in plans], block)
    rows, class_tiles = 1, np.ones((), int)
    for plan, n, side in zip(plans, blocks, block, strict=True):
        pairs = plan.kinds[0].pairs
        rows *= len(_distinct_blocks(pairs, n, side)[0])
        of_kinds = [np.bincount(axis.classes, minlength=len(pairs)) for axis in plan.kinds]
        class_tiles = np.multiply.outer(class_tiles, np.max(of_kinds, axis=0))
    return Sizes(rows, math.prod(blocks), math.prod(block), tuple(class_tiles.reshape(-1).tolist()))


def furthest(
    spatial: tuple[int, ...],
    window: Window,
    tile: tuple[int, ...],
    block: tuple[int, ...] | None,
    transposed: bool,
) -> int:
    """Returns the last token that kernels count to in this layout: past the map, where blocks end behind a halo there."""
    plans = _plans(spatial, window, tile, transposed)
    axes = [plan.kinds[0] for plan in plans]
    block, blocks = _blocks(axes, block)
    _, other = _maps(spatial, window, transposed)
    last = [n * side - 1 for n, side in zip(blocks, block, strict=True)]  # slots from a halo's first key
    first = [max(axis.last_first_key for axis in plan.kinds) for plan in plans]
    positions = [f + slot * apart for f, slot, apart in zip(first, last, other.apart, strict=True)]
    positions = [n - 1 if axis.ring else p for n, p, axis in zip(other.sides, positions, axes, strict=True)]
    return sum(p * s for p, s in zip(positions, other.strides, strict=True))


@dataclasses.dataclass(frozen=True)
class _Map:
    """A map of queries or keys: its sides, and positions that are `apart` from each other in a dilation group."""

    sides: tuple[int, ...]
    apart: tuple[int, ...]

    @property
    def strides(self) -> list[int]:
        """Tokens between neighbours along every axis."""
        return [math.prod(self.sides[a + 1 :]) for a in range(len(self.sides))]

    @property
    def steps(self) -> list[int]:
        """Tokens between neighbours of a dilation group."""
        return [stride * apart for stride, apart in zip(self.strides, self.apart, strict=True)]


def _plans(spatial: tuple[int, ...], window: Window, tile: tuple[int, ...], transposed: bool) -> list[SplitPlan]:
    """Plans every axis, in tiles of such sides; an axis that is not split has one place, and one kind of device."""
    return [
        SplitPlan((plan_axis(n, axis, side, transposed),), np.zeros(1, int), np.zeros((2, 1), int))
        if axis.split is None
        else plan_split_axis(n, axis, side, transposed)
        for n, axis, side in zip(spatial, window.axes(), tile, strict=True)
    ]


def _maps(spatial: tuple[int, ...], window: Window, transposed: bool) -> tuple[_Map, _Map]:
    """Returns the map of what tiles are of, queries unless transposed, and that of halos, for keys of such sides."""
    apart = tuple(d // math.gcd(d, spacing) for d, spacing in zip(window.dilation, window.spacing, strict=True))
    queries, keys = _Map(window.queries(spatial), apart), _Map(spatial, window.dilation)
    return (keys, queries) if transposed else (queries, keys)


def _blocks(axes: Sequence[AxisPlan], block: tuple[int, ...] | None) -> tuple[tuple[int, ...], list[int]]:
    """Returns the sides of blocks, none longer than the halo, and their number along every axis."""
    spans = [axis.span for axis in axes]
    block = tuple(spans) if block is None else tuple(min(b, s) for b, s in zip(block, spans, strict=True))
    return block, [-(-s // b) for s, b in zip(spans, block, strict=True)]


@functools.lru_cache(maxsize=256)
def _distinct_blocks(pairs: Pairs, blocks: int, side: int) -> tuple[Pairs, np.ndarray]:
    """Cuts the slots of keys into blocks of a side: the pairs of distinct ones, and which each is, [classes, blocks]."""
    first_slot = side * np.arange(blocks, dtype=np.int32)[:, None]  # of a block
    # Below, arrays are [classes * blocks, T].
    first, end = (np.clip(x[:, None] - first_slot, 0, side).reshape(-1, x.shape[-1]) for x in (pairs.first, pairs.end))
    entry = (pairs.entry[:, None] + pairs.growth * first_slot).reshape(first.shape)
    real = np.repeat(pairs.real, blocks, axis=0)
    found = Pairs(first, end, entry, real, side, pairs.growth)
    # Few of them differ: those are compared pair by pair.
    empty = first >= end
    looks = np.stack([np.where(empty, 0, x) for x in (first, end, np.where(real, entry, 0), real)], axis=1)
    _, some, which = distinct(looks)
    found = found.take(some)
    _, some, among = distinct(found.relative())
    return found.take(some), among[which].reshape(-1, blocks)
