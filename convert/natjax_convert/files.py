"""Writing checkpoints so that a reader never sees half of one: to a temporary name beside it first, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np

from natjax.errors import CheckpointError
from natjax_convert.tensors import SAFETENSORS_DTYPES, LazyTensor

_SAFETENSORS_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


@contextlib.contextmanager
def staging(destination: str | os.PathLike) -> Generator[Path, None, None]:
    """A temporary directory beside `destination`, or in it where it exists.

    Its files move to the destination once all of them are complete and on disk.

    A destination that does not exist appears in one rename; in an existing one, files of the same names are replaced one by
    one and others stay. Where anything fails, the destination stays as it was.

    Raises:
        CheckpointError: the disk is full, or the destination cannot be written.
    """
    destination = Path(destination)
    temporary = None
    try:
        parent = destination if destination.is_dir() else destination.parent  # it may be the mount point of a volume
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=parent))
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private; what is published should not be
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if destination.is_dir():
            for file in sorted(temporary.iterdir()):
                file.replace(destination / file.name)
        else:
            temporary.rename(destination)
    except OSError as error:
        raise CheckpointError(
            f"{destination}: cannot write: {error.strerror or error}. It was left as it was."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor | np.ndarray]) -> None:
    """Writes a safetensors file, one tensor in memory at a time (the library's writer wants all of them at once).

    The metadata entry is the one without which transformers refuses a file.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype)
        size = dtype.itemsize * int(np.prod(tensor.shape, dtype=np.int64))
        header[name] = {
            "dtype": _SAFETENSORS_CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8).data)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
