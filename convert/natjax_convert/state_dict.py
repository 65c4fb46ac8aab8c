"""State dicts: names to tensors that are read only when somebody asks for their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from natjax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file; `np.asarray(tensor)` reads it.

    Attributes:
        shape: its shape.
        dtype: its numpy dtype (bfloat16 by way of ml_dtypes).
        read: reads the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads the tensor."""
        values = self.read()
        return values if dtype is None else values.astype(dtype, copy=bool(copy))


StateDict = Mapping[str, LazyTensor | np.ndarray]


class FileTensors(dict[str, LazyTensor]):
    """The state dict of a file, which it names in errors about its content.

    Attributes:
        path: of the file, or of the directory it is in.
        meta: what mmcv's files say of their model beside the weights; empty where there is none.
    """

    def __init__(self, path: Path, tensors: Mapping[str, LazyTensor] | Iterable = (), meta: Any = None):
        super().__init__(tensors)
        self.path = path
        self.meta: Mapping[str, Any] = meta if isinstance(meta, dict) else {}


def truncated(path: Path) -> CheckpointError:
    """Returns the error that a file is shorter than it says of itself."""
    return CheckpointError(f"{path}: truncated: the end of the file is missing. Download or copy it again.")


def unusable(state_dict: Mapping, message: str) -> CheckpointError:
    """Returns the error that a state dict is not usable, with the path of its file where it is that of one."""
    return CheckpointError(f"{state_dict.path}: {message}" if isinstance(state_dict, FileTensors) else message)
