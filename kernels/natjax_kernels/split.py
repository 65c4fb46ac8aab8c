"""An axis that is split over devices: which keys a device has, and the windows of its queries among them.

Every device has an equal part of the queries and of the keys, in their order, and gets the further keys that its queries see in
one of two ways. As halos: tokens of its neighbours before and after its own. Or around a ring, where windows are so long that
halos would be at least as many as all the other parts: the devices pass their keys on, and in every step a device attends to one
part, the next one on its way. On a periodic axis a part may be before and behind the queries of a device, which then gets it
twice and attends to it twice: a ring moves more keys there than halos do, for the memory of two parts instead of all. Two or
three devices, for whom that is not half as much, have halos.

All devices run one program, whose plan has a place for every device (and step); places that look alike are of one kind.

Letters: L keys along an axis, Q queries of a device.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from natjax_kernels.axis import AxisPlan, distinct
from natjax_kernels.window import AxisWindow, windows


@dataclasses.dataclass(frozen=True)
class Split:
    """How an axis is split.

    Attributes:
        parts: devices.
        before: keys that a device has in front of its own ones.
        after: keys that it has behind them.
        ring: where it has one part at a time instead, the offset of every step's part from its own, in parts, modulo `parts`.
    """

    parts: int
    before: int = 0
    after: int = 0
    ring: range | None = None

    def own(self, length: int) -> int:
        """Returns how many of `length` keys are a device's own."""
        return length - self.before - self.after

    def lengths(self, length: int) -> tuple[int, int]:
        """Returns how many keys are a device's own, of `length` that it has, and how many the whole axis has."""
        return self.own(length), self.own(length) * self.parts

    @property
    def passed(self) -> int:
        """How many parts every device gets around the ring: of all steps, but of the first one if its part is the own one."""
        return len(self.ring) - (self.ring[0] == 0) if self.ring else 0

    def origins(self, length: int, *, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the own part and the keys at hand begin along the whole axis, [places] each.

        A place is a device; around a ring it is step * parts + device. Positions on a periodic axis count on beyond its ends.
        """
        device = np.arange(self.parts)
        if not self.ring:
            return device * self.own(length), device * self.own(length) - self.before
        offset, device = (x.reshape(-1) for x in np.meshgrid(self.ring, device, indexing="ij"))
        part = device + offset if periodic else (device + offset) % self.parts
        return device * length, part * length


def split_axis(length: int, parts: int, axis: AxisWindow) -> Split:
    """Returns how to split an axis of `length` keys: around a ring where halos would be at least as many as all other parts.

    Args:
        length: L.
        parts: devices, which divide the axis into parts of a multiple of `axis.spacing`.
        axis: its window.
    """
    own = length // parts
    first, count = _runs(length, axis)
    last = first + (count - 1) * axis.dilation
    before = int(np.max(np.arange(parts)[:, None] * own - first.reshape(parts, -1)))
    after = int(np.max(last.reshape(parts, -1) - np.arange(1, parts + 1)[:, None] * own)) + 1
    before, after = max(before, 0), max(after, 0)
    # Keys of other devices: beyond the borders of an axis nothing is sent.
    in_front = np.full(parts, length) if axis.periodic else np.arange(parts) * own
    most = np.max(np.minimum(before, in_front) + np.minimum(after, in_front[::-1]))
    if most < length - own or (axis.periodic and parts < 4):
        return Split(parts, before, after)
    ring = range(math.ceil(after / own), -math.ceil(before / own) - 1, -1) if axis.periodic else range(0, -parts, -1)
    return Split(parts, ring=ring)


def _runs(length: int, axis: AxisWindow) -> tuple[np.ndarray, np.ndarray]:
    """Returns the position of every query's first key (before 0 on a ring, perhaps) and how many it sees, [queries] each."""
    whole = dataclasses.replace(axis, split=None)
    centers = whole.centers(length)
    start, end = (x[centers] for x in windows(length, whole))
    return start * axis.dilation + centers % axis.dilation, end - start


@functools.lru_cache(maxsize=512)
def windows_of_kinds(length: int, axis: AxisWindow) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the windows of a device's queries among the `length` keys that it has, for every kind of device.

    Returns:
        start and end, [kinds, Q] each: a query sees keys start to end - 1 of its dilation group. offset, [kinds]:
        positions from `axis.centers` to the queries; 0 but around a ring. kind, [places]: that of every place. All are read-only.
    """
    if axis.split is None:
        start, end = (x[None, axis.centers(length)] for x in windows(length, axis))
        none = _read_only(np.zeros(1, int))
        return _read_only(start), _read_only(end), none, none
    split, (own, whole) = axis.split, axis.split.lengths(length)
    first, count = (x.reshape(split.parts, -1) for x in _runs(whole, axis))
    centers = axis.centers(length)

    def look(queries: int, keys: int) -> np.ndarray:
        offset = queries - keys - split.before
        start = (first[queries // own] - keys) // axis.dilation
        end = start + count[queries // own]
        if split.ring:
            in_group = -(((centers + offset) % axis.dilation - length) // axis.dilation)  # keys of a query's group
            start = np.clip(start, 0, in_group)
            end = np.clip(end, start, in_group)
        return np.concatenate([start, end, [offset]], dtype=np.int32)

    places = zip(*split.origins(length, periodic=axis.periodic), strict=True)
    looks, _, kind = distinct(itertools.starmap(look, places))
    start, end, offset = np.split(np.stack(looks), [len(centers), -1], axis=1)
    return _read_only(start), _read_only(end), _read_only(offset[:, 0]), _read_only(kind)


def _read_only(x: np.ndarray) -> np.ndarray:
    """Returns an array that lies in a cache: nobody may write to it."""
    x.flags.writeable = False
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class SplitPlan:
    """The plan of a split axis.

    Attributes:
        kinds: the plans of devices that differ: of the same tiles, classes and spans.
        kind: [places] which of them a place has.
        origins: [2, places] where its queries and the keys at hand begin along the whole axis.
    """

    kinds: tuple[AxisPlan, ...]
    kind: np.ndarray
    origins: np.ndarray

    def at(self, place: Any, xp: Any) -> AxisPlan:
        """Returns the plan of one place, which may be traced; `xp` is JAX's NumPy."""
        fields = {field.name: getattr(self.kinds[0], field.name) for field in dataclasses.fields(AxisPlan)}
        query_origin, key_origin = xp.take(xp.asarray(self.origins, np.int32), place, axis=1)
        fields |= {"query_origin": query_origin, "key_origin": key_origin}
        if len(self.kinds) == 1:
            return dataclasses.replace(self.kinds[0], query_origin=query_origin, key_origin=key_origin)
        kind = xp.take(xp.asarray(self.kind, np.int32), place)
        plan = DevicePlan(**fields, kinds=self.kinds, kind=kind, xp=xp)
        return dataclasses.replace(plan, first_key=plan.taken("first_key"), classes=plan.taken("classes"))


@dataclasses.dataclass(frozen=True, eq=False)
class DevicePlan(AxisPlan):
    """The plan of the device that a program runs on: an `AxisPlan`, of which JAX takes what depends on the device.

    Attributes:
        kinds: the plans of all kinds.
        kind: which of them it is.
        xp: JAX's NumPy.
    """

    kinds: tuple[AxisPlan, ...] = ()
    kind: Any = 0
    xp: Any = np

    def taken(self, name: str):
        """Returns an attribute of the device's kind; NumPy's where all kinds have the same."""
        of_kinds = _of_kinds(self.kinds, name)
        return of_kinds[0] if len(of_kinds) == 1 else self.xp.take(self.xp.asarray(of_kinds), self.kind, axis=0)

    @property
    def tiles_per_key(self) -> float:
        """As `AxisPlan.tiles_per_key`, of the kind that has most."""
        return max(plan.tiles_per_key for plan in self.kinds)

    @property
    def last_first_key(self) -> int:
        """As `AxisPlan.last_first_key`, of all kinds."""
        return max(plan.last_first_key for plan in self.kinds)

    @functools.cached_property
    def keys(self):
        """As `AxisPlan.keys`."""
        return self.taken("keys")

    @functools.cached_property
    def key_slots(self):
        """As `AxisPlan.key_slots`."""
        return self.taken("key_slots")


@functools.lru_cache(maxsize=512)
def _of_kinds(kinds: tuple[AxisPlan, ...], name: str) -> np.ndarray:
    """Returns an attribute of all kinds, [kinds, ...] int32, or [1, ...] where all have the same; -1 pads the last axis.

    It is read-only.
    """
    arrays = [getattr(plan, name) for plan in kinds]
    if all(np.array_equal(x, arrays[0]) for x in arrays):
        arrays = arrays[:1]
    widest = max(x.shape[-1] for x in arrays)
    padding = [(0, 0)] * (arrays[0].ndim - 1)
    padded = [np.pad(x, [*padding, (0, widest - x.shape[-1])], constant_values=-1) for x in arrays]
    return _read_only(np.stack(padded, dtype=np.int32))
