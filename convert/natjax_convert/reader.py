"""Opening checkpoints: safetensors and torch's zip files, whole or sharded, told apart by their content, never by their name."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from natjax.errors import CheckpointError
from natjax_convert.safetensors_file import read_safetensors
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
_WRAPPER_MODULES = re.compile(r"\A(?:(?:module|_orig_mod|model|net|network)\.)+")  # which no dialect's names start with


def read_state_dict(path: str | os.PathLike) -> FileTensors:
    """Opens a checkpoint.

    Args:
        path: a safetensors file, a zip file of torch.save, the index of sharded ones, or a directory that holds one of
            `WEIGHT_FILES`.

    Returns:
        Every tensor by name; errors about them name the path. A file of torch may hold its state dict under a name: that of
        averaged weights where there are any (`state_dict_ema`, `model_ema`), else `state_dict`, `model_state_dict`, `model`,
        `net` and others, one in the other where need be, or any name where it is the only state dict. What DDP ("module."),
        torch.compile ("_orig_mod."), Lightning ("model.") and the like put before names is dropped.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of an unknown kind.
    """
    path = file = Path(path)
    if os.path.isdir(path):
        found = [path / name for name in WEIGHT_FILES if os.path.isfile(path / name)]
        if not found:
            raise CheckpointError(f"{path}: no weights in this directory; expected one of {', '.join(WEIGHT_FILES)}.")
        file = found[0]
    return FileTensors(path, _unprefixed(path, _read_file(file)))


def _unprefixed(path: Path, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns tensors by the names that the model itself gave them."""
    named = {name: _WRAPPER_MODULES.sub("", name).replace("_orig_mod.", "") for name in tensors}
    if len(set(named.values())) < len(named):
        by_name: dict[str, str] = {}
        one, other = next((name, by_name[new]) for name, new in named.items() if by_name.setdefault(new, name) != name)
        raise CheckpointError(f"{path}: has some tensors twice, such as {other!r} and {one!r}.")
    if any(named[name] != name for name in tensors):
        named.pop("n_averaged", None)  # torch's AveragedModel counts
    return {new: tensors[name] for name, new in named.items()}


def _read_file(path: Path, *, index: bool = True) -> dict[str, LazyTensor]:
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
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not the index of a sharded checkpoint: {error}.") from error
    tensors: dict[str, LazyTensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.strip("."):
            raise CheckpointError(f"{path}: names the shard {shard!r}; expected the name of a file beside the index.")
        content = _read_file(path.with_name(shard), index=False)
        tensors |= {name: tensor for name, tensor in content.items() if weight_map.get(name) == shard}
    if missing := sorted(set(weight_map) - set(tensors)):
        raise CheckpointError(f"{path}: {len(missing)} tensors are not in the shards that it names: {missing[:3]}.")
    return tensors
