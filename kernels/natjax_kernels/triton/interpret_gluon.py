"""Runs Gluon kernels on NumPy arrays, program by program, as Triton 3.6 has no interpreter for them. For tests.

A kernel's own functions run, with NumPy's counterparts of what they call. Layouts of registers say who holds a value and change
none, and are left out. Shared memory is a flat buffer of NaNs, and a view's elements are where its layout has them: what one
view stores, an overlapping one finds as on a GPU. Copies to it are done at once (`eager`) or as late as they may be, when they
are waited for: a kernel must not depend on which.

Only what `natjax_kernels.triton.band` uses is here. Arrays keep their dtypes: float64 ones are computed in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class _Pointer:
    """Places in the elements of an array, one or an array of them."""

    array: np.ndarray
    place: Any = 0

    @property
    def dtype(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(element_ty=self.array.dtype)

    def __add__(self, offset: Any) -> _Pointer:
        return _Pointer(self.array, self.place + offset)

    def _checked(self) -> np.ndarray:
        place = np.asarray(self.place)
        if place.min() < 0 or place.max() >= self.array.size:
            raise IndexError(f"a kernel's pointer is outside of an array of {self.array.size} elements: {place}")
        return place

    def load(self) -> Any:
        return self.array.reshape(-1)[self._checked()]

    def store(self, value: Any) -> None:
        self.array.reshape(-1)[self._checked()] = value


@dataclasses.dataclass(frozen=True)
class _Shared:
    """A view of shared memory, [..., rows, columns]: whole positions of it, one after the other."""

    buffer: np.ndarray
    shape: tuple[int, ...]
    layout: Any
    start: int = 0
    axes: tuple[int, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        return self.buffer.dtype

    def index(self, i: int) -> _Shared:
        shape = self.shape[1:]
        if not 0 <= i < self.shape[0]:
            raise IndexError(f"a kernel takes slice {i} of shared memory of shape {self.shape}")
        return dataclasses.replace(self, shape=shape, start=self.start + i * int(np.prod(shape)))

    def _reinterpret(self, dtype: np.dtype, shape: tuple[int, ...], layout: Any) -> _Shared:
        assert dtype == self.dtype
        return dataclasses.replace(self, shape=tuple(shape), layout=layout)

    def permute(self, axes: list[int]) -> _Shared:
        return dataclasses.replace(self, axes=tuple(axes))

    def load(self, layout: Any) -> np.ndarray:
        return self.buffer[self._places().transpose(self.axes or range(len(self.shape)))]

    def fill(self, values: np.ndarray) -> None:
        self.buffer[self._places()] = values

    def _places(self) -> np.ndarray:
        *_, row, column = np.indices(self.shape)
        phase = row // self.layout.per_phase % self.layout.max_phase
        swizzled = column ^ (self.layout.vec * phase)
        return self.start + np.arange(np.prod(self.shape)).reshape(self.shape) - column + swizzled


class _AsyncCopy:
    """Copies to shared memory, in the groups that are waited for."""

    def __init__(self, eager: bool):
        self._eager = eager
        self._groups: list[list[Callable[[], None]]] = [[]]

    def async_copy_global_to_shared(self, shared: _Shared, pointers: _Pointer, mask: Any = True) -> None:
        copy = functools.partial(_copy, shared, pointers, mask)
        self._groups[-1].append(copy)
        if self._eager:
            copy()

    def commit_group(self) -> None:
        self._groups.append([])

    def wait_group(self, pending: int) -> None:
        *groups, uncommitted = self._groups
        done = max(0, len(groups) - pending)
        for copy in () if self._eager else itertools.chain.from_iterable(groups[:done]):
            copy()
        self._groups = [*groups[done:], uncommitted]


def _copy(shared: _Shared, pointers: _Pointer, mask: Any) -> None:
    shared.fill(np.where(mask, pointers.load(), pointers.array.dtype.type(0)))


def _allocate(dtype: np.dtype, shape: list[int], layout: Any) -> _Shared:
    return _Shared(np.full(np.prod(shape), np.nan, dtype), tuple(shape), layout)


def _product(a: np.ndarray, b: np.ndarray, accumulator: np.ndarray) -> np.ndarray:
    wide = np.result_type(a, accumulator)
    return np.matmul(a.astype(wide), b.astype(wide)) + accumulator


def _layout(**fields: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**fields)


_LANGUAGE = types.SimpleNamespace(
    # Types and layouts.
    float32=np.float32, int64=np.int64, constexpr=object,
    NVMMADistributedLayout=_layout, DotOperandLayout=lambda *_: None, BlockedLayout=lambda *_: None,
    SliceLayout=lambda *_: None,
    SwizzledSharedLayout=lambda vec, per_phase, max_phase, order: _layout(vec=vec, per_phase=per_phase, max_phase=max_phase),
    # Functions; those of reductions and maxima leave NaNs out, as Triton's do.
    allocate_shared_memory=_allocate, load=_Pointer.load, store=_Pointer.store,
    arange=lambda start, end, layout: np.arange(start, end, dtype=np.int32), static_range=range,
    zeros=lambda shape, dtype, layout: np.zeros(shape, dtype), cast=lambda x, dtype: np.asarray(x).astype(dtype),
    convert_layout=lambda x, layout: x, exp2=np.exp2, log2=np.log2, maximum=np.fmax, minimum=np.fmin,
    max=lambda x, axis: np.fmax.reduce(x, axis), sum=np.sum,
)  # fmt: skip


def run(kernel: Any, grid: tuple[int, ...], scalars: tuple[int, ...], static: dict[str, Any], outputs: list, *operands,
        eager: bool = False):  # fmt: skip
    """Runs a kernel over its grid; returns arrays of the shapes and dtypes of `outputs`, NaN where nothing was written."""
    results = [np.full(x.shape, np.nan, x.dtype) for x in outputs]
    pointers = [_Pointer(np.ascontiguousarray(x)) for x in operands], [_Pointer(x) for x in results]
    with np.errstate(all="ignore"):
        for program in itertools.product(*map(range, grid)):
            function = _interpreted(kernel, program, _AsyncCopy(eager))
            function(*pointers[0], *scalars, *pointers[1], **static)
    return results


def _interpreted(kernel: Any, program: tuple[int, ...], async_copy: _AsyncCopy) -> Any:
    """Returns a kernel as a function of Python for one program of the grid."""
    language = types.SimpleNamespace(**vars(_LANGUAGE), program_id=lambda axis: np.int32(program[axis]))
    names = {"gl": language, "async_copy": async_copy, "mma_v2": _product}

    def python(function):
        return types.FunctionType(function.__code__, names, function.__name__, function.__defaults__)

    for name, value in kernel.fn.__globals__.items():
        if hasattr(value, "fn"):  # a function of Gluon's
            names.setdefault(name, python(value.fn))
        elif not name.startswith("__"):
            names.setdefault(name, getattr(value, "value", value))  # a constexpr's value
    return python(kernel.fn)
