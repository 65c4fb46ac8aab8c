"""The window of a map: from what users pass, one value for all axes or one per axis, to the keys that every query sees.

Letters: L keys along an axis, k kernel size, d dilation.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from natjax_kernels.split import Split


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
        split: how the axis is split over devices, or None where it is whole. Lengths are those of the keys that a device has.
    """

    kernel: int
    dilation: int = 1
    stride: int = 1
    causal: bool = False
    periodic: bool = False
    spacing: int = 1
    sized: bool = False
    split: Split | None = None

    def centers(self, length: int) -> np.ndarray:
        """Returns the position of every query among the `length` keys; of a split axis, those of a device."""
        if self.split is None:
            return np.arange(self.spacing // 2, length, self.spacing)
        return np.arange(self.spacing // 2, self.split.own(length), self.spacing) + self.split.before

    def in_group(self) -> AxisWindow:
        """Returns the window within a dilation group of the whole axis, whose keys are neighbours."""
        spacing = self.spacing // math.gcd(self.spacing, self.dilation)
        return dataclasses.replace(self, dilation=1, spacing=spacing, split=None)


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
        split: how the axis is split over devices; by default none is.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    is_causal: tuple[bool, ...]
    periodic: tuple[bool, ...] = ()
    spacing: tuple[int, ...] = ()
    sized: tuple[bool, ...] = ()
    split: tuple[Split | None, ...] = ()

    def __post_init__(self):
        """Fills in the defaults."""
        rank = len(self.kernel_size)
        object.__setattr__(self, "periodic", self.periodic or (False,) * rank)
        object.__setattr__(self, "spacing", self.spacing or (1,) * rank)
        object.__setattr__(self, "sized", self.sized or (False,) * rank)
        object.__setattr__(self, "split", self.split or (None,) * rank)

    def axes(self) -> list[AxisWindow]:
        """Returns the window of every axis."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [AxisWindow(*axis) for axis in zip(*fields, strict=True)]

    @property
    def blind(self) -> bool:
        """Whether a query may see no key: of a part that a device has in a step around a ring."""
        return any(split is not None and split.ring for split in self.split)

    def queries(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Returns the sides of the map of queries, for keys of such sides; of split axes, those of a device."""
        own = (n if split is None else split.own(n) for n, split in zip(spatial, self.split, strict=True))
        return tuple(n // spacing for n, spacing in zip(own, self.spacing, strict=True))


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


def make_window(
    rank: int, kernel_size: Any, dilation: Any = 1, stride: Any = 1, is_causal: Any = False, periodic: Any = False
) -> Window:
    """Returns the window of `rank` axes; every argument is one value per axis, or one for all.

    A kernel size of -1, all of an axis, remains: `make_map_window` knows how much that is.

    Raises:
        ValueError: an argument is impossible; the message names it, its value and what is expected.
    """
    window = Window(
        kernel_size=_per_axis("kernel_size", kernel_size, rank, minimum=2, other=-1),
        dilation=_per_axis("dilation", dilation, rank, minimum=1),
        stride=_per_axis("stride", stride, rank, minimum=1),
        is_causal=_flags("is_causal", is_causal, rank),
        periodic=_flags("periodic", periodic, rank),
    )
    for a, axis in enumerate(window.axes()):
        if axis.stride > axis.kernel > 0:
            raise ValueError(
                f"stride must not exceed kernel_size; along spatial axis {a} got stride {axis.stride} > "
                f"kernel_size {axis.kernel}."
            )
        if axis.causal and axis.periodic:
            raise ValueError(f"an axis cannot be causal and periodic; spatial axis {a} is both.")
    return window


def make_map_window(spatial: tuple[int, ...], *arguments: Any, **named: Any) -> Window:
    """Returns the window of a map of keys with such sides; arguments as those of `make_window`.

    Raises:
        ValueError: an argument is impossible, or the window does not fit the map.
    """
    window = make_window(len(spatial), *arguments, **named)
    sizes = []
    for a, (length, axis) in enumerate(zip(spatial, window.axes(), strict=True)):
        k, d = axis.kernel, axis.dilation
        if k == -1 and length % d:
            raise ValueError(
                f"kernel_size -1 needs a dilation that divides the axis; along spatial axis {a} got dilation {d} and "
                f"length {length}."
            )
        k = length // d if k == -1 else k
        if k * d > length:
            raise ValueError(
                f"kernel_size * dilation must not exceed the input: along spatial axis {a}, {k} * {d} = {k * d} > {length}. "
                "Pad the input or use a smaller window."
            )
        if axis.stride > k:
            raise ValueError(
                f"stride must not exceed kernel_size; along spatial axis {a} got stride {axis.stride} > kernel_size {k}."
            )
        if axis.periodic and length % (d * axis.stride):
            raise ValueError(
                f"a periodic axis must be a multiple of dilation * stride; along spatial axis {a} got {length} and "
                f"{d} * {axis.stride}."
            )
        sizes.append(k)
    return dataclasses.replace(window, kernel_size=tuple(sizes))


def _per_axis(name: str, value: Any, rank: int, *, minimum: int, other: int | None = None) -> tuple[int, ...]:
    values = _entries(value, rank)
    if len(values) != rank:
        raise ValueError(f"{name} must be one integer or one per spatial axis ({rank}); got {value!r}.")
    for entry in values:
        integer = isinstance(entry, numbers.Integral) and not isinstance(entry, bool)
        if not integer or (entry < minimum and entry != other):
            more = "" if other is None else f", or {other} for all of an axis"
            raise ValueError(f"{name} must consist of integers of at least {minimum}{more}; got {value!r}.")
    return tuple(int(entry) for entry in values)


def _flags(name: str, value: Any, rank: int) -> tuple[bool, ...]:
    values = _entries(value, rank)
    if len(values) != rank or not all(isinstance(entry, bool | np.bool_) for entry in values):
        raise ValueError(f"{name} must be one bool or one per spatial axis ({rank}); got {value!r}.")
    return tuple(map(bool, values))


def _entries(value: Any, rank: int) -> tuple:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank
