"""Opening checkpoints: safetensors and torch's zip files, whole or sharded, told apart by their content, never by their name."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from natjax.errors import CheckpointError
from natjax_convert.safetensors_file import read_safetensors
from natjax_convert.selection import more, select
from natjax_convert.state_dict import FileTensors, LazyTensor
from natjax_convert.torch_zip import read_torch

WEIGHT_FILES = (  # of a directory, in the order in which they are looked for
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_INDEX_BYTES = 2**24


def read_state_dict(path: str | os.PathLike) -> FileTensors:
    """Opens a checkpoint.

    Args:
        path: a safetensors file, a zip file of torch.save, the index of sharded ones, or a directory that holds one of
            `WEIGHT_FILES`.

    Returns:
        The model's tensors by name; errors about them name the path. A file may hold them under an entry (`state_dict`, `model`,
        ...) or behind a prefix of their names (DDP's "module.", Lightning's "model.", any other) and other tensors beside them.
        What is recognised as a NAT or DiNAT is taken, averaged weights ("ema", "averaged", "shadow") before others.

    Warns:
        UserWarning: there is more than the model: what was taken and what was left out.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of an unknown kind.
    """
    path = file = Path(path)
    if os.path.isdir(path):
        found = [path / name for name in WEIGHT_FILES if os.path.isfile(path / name)]
        if not found:
            raise CheckpointError(f"{path}: no weights in this directory; expected one of {', '.join(WEIGHT_FILES)}.")
        file = found[0]
    content = _read_file(file)
    meta = content.get("meta") if isinstance(content, dict) else None
    return FileTensors(path, {} if content == {} else select(file, content), meta)


def _read_file(path: Path, *, index: bool = True) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(len(_LEGACY_TORCH))
    except (OSError, ValueError) as error:  # a null character in the name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot read the checkpoint: {reason}.") from error
    if head.startswith(b"PK\x03\x04"):
        return read_torch(path)
    if head == _LEGACY_TORCH:
        raise CheckpointError(
            f"{path}: this is torch's format from before version 1.6, which natjax does not read. "
            "Load it in PyTorch and torch.save it again."
        )
    if len(head) > 8 and head[8:9] == b"{":
        return read_safetensors(path)
    if head[:1] == b"{" and index:
        return _read_sharded(path)
    raise CheckpointError(
        f"{path}: neither a safetensors file nor one of torch.save (it starts with {head[:8]!r}). "
        "It may be truncated, or a download that went wrong."
    )


def _read_sharded(path: Path) -> dict[str, LazyTensor]:
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError("it is too large for an index")
        weight_map = json.loads(path.read_text(encoding="utf-8")).get("weight_map")
        if weight_map is None:
            raise ValueError("it has no weight_map. Give the weights, or the folder that holds them")
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: a JSON file, but not the index of a sharded checkpoint: {error}.") from error
    tensors: dict[str, LazyTensor] = {}
    beside = []
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.strip("."):
            raise CheckpointError(f"{path}: names the shard {shard!r}; expected the name of a file beside the index.")
        content = _read_file(path.with_name(shard), index=False)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path.with_name(shard)}: no mapping of names to tensors was found in it.")
        listed = {n: t for n, t in content.items() if isinstance(t, LazyTensor) and weight_map.get(n) == shard}
        beside += [name for name in content if name not in listed]
        tensors |= listed
    if missing := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(f"{path}: {len(missing)} tensors are not in the shards that it names: {missing[:3]}.")
    if beside:
        warnings.warn(f"{path}: took the tensors that it lists; left out of its shards: {more(beside)}.", stacklevel=4)
    return tensors
