"""The plan as the fused kernels read it: a few integers per tile, and one table of bias-or-minus-infinity.

Positions of a tile's tokens are affine in their slots, so a tile needs no more than its first query and its first key: the
token of slot (z, y, x) is origin + z * step_z + y * step_y + x * step_x, with the dilation inside the steps. Windows of any rank
become windows over three axes, whose missing ones are of length 1: one kernel serves them all.

The halo of a tile is worked on in blocks of keys. Where it is small it is one block; where it is large it is cut into equal
boxes, and boxes that look alike from their tiles share a row of the table. Tiles are sorted by class, and runs of tiles of one
class are what a program works through with the same table on chip.

Letters: T queries per tile, S keys per block.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from natjax_kernels.plan import AxisPlan, Window, plan

TILE_FIELDS = 6  # first query, first key, class, queries along z, y, x


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What the kernels know of a map; see the module's text.

    Attributes:
        tiles: [tiles, 6] int32, sorted by class: first query, first key, class, queries along every axis.
        rows: [classes, blocks] int32: the row of the table for every block of a tile's halo.
        relative: per axis of the map [distinct blocks, T, S], which make the table (`natjax_kernels.bias`).
        tile: sides of a tile along z, y, x.
        block: sides of a block of keys along z, y, x.
        blocks: blocks of a halo along z, y, x.
        steps: tokens between neighbouring slots of a tile along z, y, x.
        halo_steps: those of a halo.
        tokens: tokens of the map of tiles.
        halo_tokens: tokens of the map of halos.
    """

    tiles: np.ndarray
    rows: np.ndarray
    relative: list[np.ndarray]
    tile: tuple[int, ...]
    block: tuple[int, ...]
    blocks: tuple[int, ...]
    steps: tuple[int, ...]
    halo_steps: tuple[int, ...]
    tokens: int
    halo_tokens: int

    def runs(self, longest: int) -> np.ndarray:
        """Cuts the tiles into runs of one class, [runs, 2] int32: first tile and the one after the last."""
        classes = self.tiles[:, 2]
        edges = [0, *(np.flatnonzero(np.diff(classes)) + 1), len(classes)]
        runs = [(a, min(a + longest, hi)) for lo, hi in itertools.pairwise(edges) for a in range(lo, hi, longest)]
        return np.asarray(runs, np.int32)


@functools.lru_cache(maxsize=256)
def layout(
    spatial: tuple[int, ...],
    window: Window,
    tile: tuple[int, ...],
    block: tuple[int, ...] | None,
    transposed: bool = False,
) -> Layout:
    """Lays out a map in tiles of the given sides; blocks of keys are whole halos where `block` is None.

    The transposed layout exchanges queries and keys, as `natjax_kernels.plan.plan_axis` does.
    """
    axes = plan(spatial, window, tile, transposed=transposed)
    block, blocks = _blocks(axes, block)
    strides = _strides(spatial)

    first_query, first_key, classes, rows = (np.zeros((), int) for _ in range(4))
    counts, relative = [], []
    for a, axis in enumerate(axes):
        first_query = np.add.outer(first_query, axis.queries[:, 0] * strides[a])
        first_key = np.add.outer(first_key, axis.keys[:, 0] * strides[a])
        classes = np.add.outer(classes * len(axis.relative), axis.classes)
        shape = [1] * len(axes)
        shape[a] = axis.tiles
        counts.append(np.sum(axis.queries >= 0, axis=1).reshape(shape))
        distinct, inverse = _distinct_blocks(axis.relative, blocks[a], block[a])
        relative.append(distinct)
        # Rows of the table and blocks of the halo are products over the axes, as classes are.
        rows = np.add.outer(rows * len(distinct), inverse)
    missing = 3 - len(axes)
    counts = [np.ones((1,) * len(axes), int)] * missing + counts
    fields = [first_query, first_key, classes, *counts]
    tiles = np.stack([np.broadcast_to(field, classes.shape).reshape(-1) for field in fields], axis=1)
    # rows: [classes and blocks of the first axis, then of the next, ...] -> [classes, blocks]
    rows = rows.transpose(*range(0, rows.ndim, 2), *range(1, rows.ndim, 2)).reshape(-1, math.prod(blocks))
    ones = (1,) * missing
    steps = (*(0,) * missing, *(s * d for s, d in zip(strides, window.dilation, strict=True)))
    return Layout(
        tiles=tiles[np.argsort(tiles[:, 2], kind="stable")].astype(np.int32),
        rows=rows.astype(np.int32),
        relative=relative,
        tile=(*ones, *tile),
        block=(*ones, *block),
        blocks=(*ones, *blocks),
        steps=steps,
        halo_steps=steps,
        tokens=math.prod(spatial),
        halo_tokens=math.prod(spatial),
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a layout is: all that decides how much memory its kernels' tables and sums take.

    Attributes:
        rows: rows of the table.
        blocks: blocks of a halo.
        block: slots of a block.
        class_tiles: tiles of every class.
    """

    rows: int
    blocks: int
    block: int
    class_tiles: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """Tiles of the map."""
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
    axes = plan(spatial, window, tile, transposed=transposed)
    block, blocks = _blocks(axes, block)
    rows, class_tiles = 1, np.ones((), int)
    for axis, n, side in zip(axes, blocks, block, strict=True):
        rows *= len(_distinct_blocks(axis.relative, n, side)[0])
        class_tiles = np.multiply.outer(class_tiles, np.bincount(axis.classes))
    return Sizes(rows, math.prod(blocks), math.prod(block), tuple(class_tiles.reshape(-1).tolist()))


def furthest(
    spatial: tuple[int, ...],
    window: Window,
    tile: tuple[int, ...],
    block: tuple[int, ...] | None,
    transposed: bool,
) -> int:
    """Returns the last token that kernels count to in this layout: past the map, where blocks end behind a halo there."""
    axes = plan(spatial, window, tile, transposed=transposed)
    block, blocks = _blocks(axes, block)
    last = [n * side - 1 for n, side in zip(blocks, block, strict=True)]  # slots from a halo's first key
    first = [int(axis.keys[:, 0].max()) for axis in axes]
    positions = [f + slot * d for f, slot, d in zip(first, last, window.dilation, strict=True)]
    return sum(p * s for p, s in zip(positions, _strides(spatial), strict=True))


def _strides(spatial: tuple[int, ...]) -> list[int]:
    """Returns the tokens between neighbours along every axis."""
    return [math.prod(spatial[a + 1 :]) for a in range(len(spatial))]


def _blocks(axes: Sequence[AxisPlan], block: tuple[int, ...] | None) -> tuple[tuple[int, ...], list[int]]:
    """Returns the sides of blocks, none longer than the halo, and their number along every axis."""
    spans = [axis.keys.shape[1] for axis in axes]
    block = tuple(spans) if block is None else tuple(min(b, s) for b, s in zip(block, spans, strict=True))
    return block, [-(-s // b) for s, b in zip(spans, block, strict=True)]


def _distinct_blocks(relative: np.ndarray, blocks: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts [classes, T, S] into blocks of keys: the distinct ones, [n, T, side], and which each is, [classes, blocks]."""
    classes, queries, span = relative.shape
    padded = np.pad(relative, ((0, 0), (0, 0), (0, blocks * side - span)), constant_values=-1)
    padded = padded.reshape(classes, queries, blocks, side).swapaxes(1, 2).reshape(classes * blocks, -1)
    distinct, inverse = np.unique(padded, axis=0, return_inverse=True)
    return distinct.reshape(-1, queries, side), inverse.reshape(classes, blocks)
