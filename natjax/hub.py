"""Where a checkpoint is: a local path, or an id `owner/name` of the Hugging Face Hub, downloaded where it is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.errors import CheckpointError

_HUB_FILES = (CONFIG_NAME, PROCESSOR_NAME, "*.safetensors", "*.safetensors.index.json")
_HUB_TORCH_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
DIGITS = Path(__file__).parent / "demo" / "digits"  # the built-in classifier of handwritten digits


def locate(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> Path:
    """Returns the local path of a checkpoint; one of the Hugging Face Hub is downloaded where it is not in the cache.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(source)
    if os.path.exists(path):
        return path
    name = os.fspath(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise CheckpointError(
            f"{name}: no such file or directory, and no id (owner/name) of the Hugging Face Hub either."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{name}: no such file or directory. To load it from the Hugging Face Hub, pip install 'natjax[hub]'."
        ) from error
    options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only, "cache_dir": cache_dir}
    try:
        found = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES), **options))
        if not any(found.glob("*.safetensors")):
            huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_TORCH_FILES), **options)
    except Exception as error:  # the hub's errors have no common base
        raise CheckpointError(f"{name}: cannot be had from the Hugging Face Hub: {error}") from error
    return found
