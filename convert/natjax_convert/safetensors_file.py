"""Reading and writing safetensors files."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from natjax.errors import CheckpointError
from natjax_convert.state_dict import LazyTensor, truncated

_DTYPES = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("i8"),
    "I32": np.dtype("i4"),
    "I16": np.dtype("i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Opens a safetensors file; see `natjax_convert.read_state_dict`.

    Raises:
        CheckpointError: it is damaged, or has a dtype that natjax does not read.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"), open(path, "rb") as file:  # the library checks the header
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        return {name: _tensor(data, 8 + size, **entry) for name, entry in header.items()}
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if _ends_early(path):
            raise truncated(path) from error
        raise CheckpointError(f"{path}: damaged safetensors file: {str(error)[:200]}.") from error


def _tensor(data: mmap.mmap, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> LazyTensor:
    """The tensor as a view of the file; the library's own reader copies."""
    if dtype not in _DTYPES:
        raise ValueError(f"it has a tensor of dtype {dtype}, which natjax does not read")
    values = np.ndarray(shape, _DTYPES[dtype], data, start + data_offsets[0])
    return LazyTensor(values.shape, values.dtype, lambda: values)


def _ends_early(path: Path) -> bool:
    """Whether a damaged file is shorter than its first 8 bytes say, or its header where that can be read."""
    try:
        with open(path, "rb") as file:
            size, length = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
            if size > _MAX_HEADER_BYTES or 8 + size > length:
                return size <= _MAX_HEADER_BYTES
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return 8 + size + max(entry["data_offsets"][1] for entry in header.values()) > length
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return False


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor | np.ndarray]) -> None:
    """Writes a safetensors file, one tensor in memory at a time (the library's writer wants all of them at once).

    The metadata entry is the one without which transformers refuses a file.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype)
        size = dtype.itemsize * int(np.prod(tensor.shape, dtype=np.int64))
        header[name] = {"dtype": _CODES[dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8).data)
