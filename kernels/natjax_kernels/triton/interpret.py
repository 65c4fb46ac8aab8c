"""Runs kernels in Triton's interpreter on NumPy arrays, where it expects PyTorch's tensors."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32"}
_ONE_AT_A_TIME = threading.Lock()  # the interpreter keeps its place in the grid in a global


class _Tensor:
    """A C-contiguous array with what the interpreter asks of a tensor and of its storage; every copy is the array itself."""

    def __init__(self, array: np.ndarray | None = None):
        if array is not None:
            self._be(array)

    def _be(self, array: np.ndarray) -> None:
        self.array, self.dtype, self.shape = array, _NAMES[array.dtype.name], array.shape

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Tensor:
        return self

    def cpu(self) -> _Tensor:
        return self

    def copy_(self, other: _Tensor) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def new_empty(self, *size: int, **options: Any) -> _Tensor:
        return _Tensor()

    def set_(self, storage: _Tensor, *view: Any) -> None:
        self._be(storage.array)


def run(kernel: Any, grid: tuple[int, ...], scalars: dict[int, int], static: dict[str, Any], outputs: list, *operands):
    """Runs a kernel over its grid; returns arrays of the shapes and dtypes of `outputs`, NaN where nothing was written.

    `scalars` are arguments by their place among `operands`.
    """
    results = [np.full(x.shape, np.nan, x.dtype) for x in outputs]
    tensors = [_Tensor(np.ascontiguousarray(x)) for x in (*operands, *results)]
    inputs: list[Any] = [*tensors[: len(operands)]]
    written = tensors[len(operands) :]
    for place, scalar in sorted(scalars.items()):
        inputs.insert(place, scalar)
    with _ONE_AT_A_TIME, np.errstate(all="ignore"):
        _mend_scalars()
        kernel[grid](*inputs, *written, **static)
    return results


@functools.cache
def _mend_scalars() -> None:
    """Has Triton 3.6 make integers of its scalars, arrays of one element, as newer ones do: NumPy 2.5 refuses its own way."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda scalar: scalar.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend  # ty: ignore[invalid-assignment]
