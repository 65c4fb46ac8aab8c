"""The window of a map, from what users pass: one value for all axes, or one per axis."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import numpy as np

from natjax_kernels.plan import Window


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
