"""What a plan says of one axis: its tiles, and which (query, key) pairs of a tile are neighbours.

A tile's keys are one run, and so are those of them that a query sees; from one key to the next the entry of the relative
positional bias grows by one. So a few integers per tile and per query of a class say all, however large windows are. Arrays of
T x S or of tiles x S are made of them where they are needed: by NumPy, which makes them constants of a program, or, where they
are large, by the program itself.

Letters: T queries per tile, S keys per tile, k kernel size.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_LARGEST_CONSTANT = 2**16  # integers that a program holds; those of larger arrays it computes


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a query and a key in tiles of every class, along one axis.

    Attributes:
        first: [classes, T] slot of every query's first neighbour. Padded queries see everything, so that their softmax is finite.
        end: [classes, T] the slot after its last one.
        entry: [classes, T] the entry of the bias that slot 0 would have: (key - query) / dilation + k - 1.
        real: [classes, T] whether it is a query and no padding.
        span: slots, S.
        growth: of the entry from slot to slot: 1; in the transposed plan, whose slots are queries, minus the keys between two;
            0 where there is no bias, whose entries are all 0.
    """

    first: Any
    end: Any
    entry: Any
    real: Any
    span: int
    growth: int = 1

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.first)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Classes, queries and keys of a tile."""
        return (*self.first.shape, self.span)

    def take(self, classes, xp=np) -> Pairs:
        """Returns the pairs of tiles of such classes, [n]; `xp` is NumPy, or JAX's of traced classes."""
        return self.map(lambda x: xp.take(xp.asarray(x), classes, axis=0))

    def map(self, function: Callable) -> Pairs:
        """Returns pairs whose arrays are what a function makes of these."""
        names = ("first", "end", "entry", "real")
        return dataclasses.replace(self, **{name: function(getattr(self, name)) for name in names})

    def seen(self, xp=np):
        """Returns which keys are neighbours of which queries, [classes, T, S]."""
        slot = xp.arange(self.span, dtype=np.int32)
        return (self.first[..., None] <= slot) & (slot < self.end[..., None])

    def relative(self, xp=np):
        """Returns the entry of the bias of every pair, [classes, T, S]; -1 where the key is no neighbour, 0 of padded queries."""
        entries = self.entry[..., None] + self.growth * xp.arange(self.span, dtype=np.int32)
        return xp.where(self.seen(xp), xp.where(self.real[..., None], entries, 0), -1)


@dataclasses.dataclass(frozen=True, eq=False)
class AxisPlan:
    """The plan of one axis.

    Attributes:
        queries: [tiles, T] positions among the queries; -1 pads the last tile of a dilation group.
        first_key: [tiles] position of slot 0 among the keys; -1 where the group has none.
        apart: positions between keys of neighbouring slots.
        length: positions that keys have.
        ring: whether slots go on at the start of the axis.
        visible: [tiles, 2] the first slot that some query of the tile may see, and the one after the last.
        classes: [tiles] class of every tile.
        pairs: which pairs of a tile are neighbours, for every class.
        query_slot: [queries] the slot that holds every position as a query, as tile * T + slot.
        query_origin: of an axis that is split over devices, where its queries begin along the whole axis.
        key_origin: where its keys begin there.
    """

    queries: np.ndarray
    first_key: np.ndarray
    apart: int
    length: int
    ring: bool
    visible: np.ndarray
    classes: np.ndarray
    pairs: Pairs
    query_slot: np.ndarray
    query_origin: Any = 0
    key_origin: Any = 0

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.queries)

    @property
    def span(self) -> int:
        """Keys per tile, S."""
        return self.pairs.span

    @functools.cached_property
    def tiles_per_key(self) -> float:
        """How many tiles a key is visible in, on average."""
        return float(np.sum(self.visible[:, 1] - self.visible[:, 0])) / self.length

    @functools.cached_property
    def last_first_key(self) -> int:
        """The last position of all in `first_key`."""
        return int(self.first_key.max())

    @property
    def blind(self) -> bool:
        """Whether some query sees no key at all, as in a step around a ring of devices."""
        return bool((self.pairs.real & (self.pairs.first >= self.pairs.end)).any())

    def keys_from(self, first_key, xp=np):
        """Returns the positions of halos that begin so, [..., S]; -1 where the group has no more. `xp` is NumPy, or JAX's."""
        first_key = first_key[..., None]
        position = first_key + self.apart * xp.arange(self.span, dtype=np.int32)
        inside = first_key >= 0
        if self.ring:
            position = position % self.length
        else:
            inside = inside & (position < self.length)
        return xp.where(inside, position, -1)

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """Positions among the keys, [tiles, S]; -1 where the group has no more. Large where windows are."""
        return self.keys_from(self.first_key)

    @functools.cached_property
    def key_slots(self) -> np.ndarray:
        """The slots that hold every key where it is visible, [keys, m], as tile * S + slot; -1 pads. Large where windows are."""
        # What lies between the windows of a tile's queries, where these are far apart, has weight 0.
        slot, (first, end) = np.arange(self.span), self.visible.T[..., None]
        return slots_of(self.keys, (self.keys >= 0) & (first <= slot) & (slot < end), self.length)


def slots_of(table: np.ndarray, present: np.ndarray, length: int) -> np.ndarray:
    """Inverts a table of positions: [length, m] flat indices of where every position is present, -1 padded."""
    places = np.flatnonzero(present)
    positions = table.reshape(-1)[places]
    order = np.argsort(positions, kind="stable")
    counts = np.bincount(positions, minlength=length)
    slots = np.full((length, counts.max()), -1)
    slots[np.arange(counts.max()) < counts[:, None]] = places[order]
    return slots


def distinct(rows: Iterable[np.ndarray]) -> tuple[list[np.ndarray], list[int], np.ndarray]:
    """Returns rows that differ, the index of the first of each, and which of them every row is, [rows].

    As `np.unique`, but in the order in which they come: it sorts them, which takes seconds of thousands of long ones.
    """
    numbers: dict[bytes, int] = {}
    found, some, which = [], [], []
    for index, row in enumerate(rows):
        number = numbers.setdefault(row.tobytes(), len(numbers))
        which.append(number)
        if number == len(found):
            found.append(row)
            some.append(index)
    return found, some, np.array(which)


def is_large(shape: tuple[int, ...]) -> bool:
    """Returns whether a program computes an array of such a shape instead of holding it as a constant."""
    return math.prod(shape) > _LARGEST_CONSTANT
