"""State dicts of files: names to tensors that are read only when somebody asks for their values.

Reads safetensors and torch's zip files, whole or sharded, told apart by their content and never by their name.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from natjax.errors import CheckpointError

WEIGHT_FILES = (  # of a directory, in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_INDEX_BYTES = 2**26


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


def read_state_dict(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """Opens a checkpoint.

    Args:
        path: a safetensors file, a zip file of torch.save, the index of sharded ones, or a directory that holds one of
            `WEIGHT_FILES`.

    Returns:
        Every tensor by name. Of torch files with a wrapper the averaged weights are taken where there are any
        (`state_dict_ema`, `model_ema`), else `state_dict` or `model`; the prefix "module." is dropped.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of an unknown kind.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path}: no weights in this directory; expected one of {', '.join(WEIGHT_FILES)}.")
        path = found[0]
    try:
        with open(path, "rb") as file:
            head = file.read(len(_LEGACY_TORCH))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror or error}.") from error
    if head.startswith(b"PK\x03\x04"):
        from natjax_convert.torch_zip import read_torch

        return read_torch(path)
    if head == _LEGACY_TORCH:
        raise CheckpointError(
            f"{path}: this is torch's format from before version 1.6, which natjax does not read. "
            "Load it in PyTorch and torch.save it again."
        )
    if len(head) > 8 and head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:1] == b"{":
        return _read_sharded(path)
    raise CheckpointError(
        f"{path}: neither a safetensors file nor one of torch.save (it starts with {head[:8]!r}). "
        "It may be truncated, or a download that went wrong."
    )


def _read_safetensors(path: Path) -> dict[str, LazyTensor]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
        return {name: _safetensor(path, file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file: {error}.") from error


def _safetensor(path: Path, file: Any, name: str) -> LazyTensor:
    piece = file.get_slice(name)

    def read() -> np.ndarray:
        try:
            return file.get_tensor(name)
        except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot read {name!r}: {error}.") from error

    return LazyTensor(tuple(piece.get_shape()), _dtype(path, name, piece.get_dtype()), read)


def _dtype(path: Path, name: str, code: str) -> np.dtype:
    if code == "BF16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    known = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1"}
    known |= {"BOOL": "?", "U16": "u2", "U32": "u4", "U64": "u8"}
    if code not in known:
        raise CheckpointError(f"{path}: {name!r} has dtype {code}, which natjax does not read.")
    return np.dtype(known[code])


def _read_sharded(path: Path) -> dict[str, LazyTensor]:
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError("it is too large for an index")
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not the index of a sharded checkpoint: {error}.") from error
    tensors: dict[str, LazyTensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path}: names the shard {shard!r}; expected the name of a file beside the index.")
        content = read_state_dict(path.with_name(shard))
        tensors |= {name: tensor for name, tensor in content.items() if weight_map.get(name) == shard}
    if missing := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(f"{path}: {len(missing)} tensors are not in the shards that it names: {missing[:3]}.")
    return tensors
