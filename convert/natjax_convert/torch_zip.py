"""The zip files of torch.save, without PyTorch: read with nothing in them executed, and written.

Such a file holds a pickle (`data.pkl`), whose tensors refer to storages, and every storage's bytes as an entry of its own,
uncompressed. The reader runs Python's own pickle machine with a short list of opcodes and globals, each global replaced by an
inert stand-in; anything else is refused by name. Format: torch/serialization.py and caffe2/serialize of PyTorch.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from natjax.errors import CheckpointError
from natjax_convert.tensors import LazyTensor

_MAX_PICKLE_BYTES = 2**26
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIX = "module."

_DTYPES = {
    "DoubleStorage": np.dtype("f8"),
    "FloatStorage": np.dtype("f4"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_OPCODES = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE"
).split()


class _Refused(Exception):
    """What a checkpoint may not contain."""


class _Dict(dict):
    """Stands in for collections.OrderedDict; torch hangs module versions on it, which nobody needs."""

    def __setstate__(self, state: object) -> None:
        """Forgets the state."""


class _Inert:
    """Stands in for argparse.Namespace, the training arguments some checkpoints carry."""

    def __setstate__(self, state: object) -> None:
        """Forgets the state."""


class _Storage:
    """Stands in for a storage class."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Unpickler(pickle._Unpickler):  # the C one neither restricts opcodes nor survives a memo index of four billion
    dispatch = {  # noqa: RUF012 (as in the base class)
        code: function
        for code, function in pickle._Unpickler.dispatch.items()
        if code in {getattr(pickle, name)[0] for name in _OPCODES}
    }

    def __init__(self, file: BinaryIO, storages: _Storages):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _Storage(_DTYPES[name])
        allowed = {
            ("collections", "OrderedDict"): _Dict,
            ("argparse", "Namespace"): _Inert,
            ("torch._utils", "_rebuild_tensor_v2"): self._storages.tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in allowed:
            raise _Refused(
                f"it asks for {module}.{name}, which is not needed for tensors; refused, and nothing was run"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return self._storages.open(pid)

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        pickle._Unpickler.load_setitem(self)

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        pickle._Unpickler.load_setitems(self)

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


class _Storages:
    """The storages of an open file and the tensors over them."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, data: mmap.mmap, prefix: str):
        self.path, self._data, self._prefix = path, data, prefix
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._checked: set[str] = set()

    def open(self, pid: Any) -> tuple[np.dtype, str, int]:
        """Checks a reference to a storage; returns dtype, name of its entry and number of elements."""
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise _Refused("it has a reference that is no tensor storage")
        name = f"{self._prefix}data/{key}"
        if name not in self._entries:
            raise _Refused(f"its storage {key!r} is missing")
        size = self._entries[name].file_size
        if not _is_size(numel) or numel * storage.dtype.itemsize != size:
            raise _Refused(f"its storage {key!r} claims {numel!r} elements of {storage.dtype}, but holds {size} bytes")
        return storage.dtype, name, numel

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
        """Stands in for torch._utils._rebuild_tensor_v2."""
        dtype, name, numel = storage
        integers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 8 or not all(map(_is_size, integers)):
            raise _Refused(f"a tensor has impossible shape {shape!r}, strides {strides!r} or offset {offset!r}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) > numel or (math.prod(shape) and last >= numel):
            raise _Refused(f"a tensor of shape {shape!r} exceeds its storage of {numel} elements")
        return LazyTensor(tuple(shape), dtype, lambda: self._read(dtype, name, offset, shape, strides))

    def _read(self, dtype: np.dtype, name: str, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
        entry = self._entries[name]
        # The local header repeats the name and has extra fields of its own length; the data follows them.
        header = self._data[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path}: the entry {name} is damaged, or compressed as torch never does.")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name_length + extra_length
        if start + entry.file_size > len(self._data):
            raise CheckpointError(f"{self.path}: truncated; the entry {name} ends beyond the file.")
        if name not in self._checked:
            with memoryview(self._data) as view, view[start : start + entry.file_size] as content:
                checksum = zlib.crc32(content)
            if checksum != entry.CRC:
                raise CheckpointError(f"{self.path}: damaged; the entry {name} fails its checksum.")
            self._checked.add(name)
        if 0 in shape:
            return np.zeros(shape, dtype)
        steps = tuple(s * dtype.itemsize for s in strides)
        return np.ndarray(shape, dtype, self._data, start + offset * dtype.itemsize, steps)


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """Opens a zip file of torch.save; see `natjax_convert.read_state_dict`.

    Raises:
        CheckpointError: it is damaged, holds no state dict, or asks for anything but tensors.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(names) != 1:
                raise _Refused("it is a zip file, but not one of torch.save (no data.pkl)")
            prefix = names[0].removesuffix("data.pkl")
            if archive.getinfo(names[0]).file_size > _MAX_PICKLE_BYTES:
                raise _Refused("its data.pkl is too large for a state dict")
            if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
                raise _Refused("it is not little-endian")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content = _Unpickler(io.BytesIO(archive.read(names[0])), _Storages(path, archive, data, prefix)).load()
    except _Refused as error:
        raise CheckpointError(f"{path}: not a usable checkpoint: {error}.") from None
    except Exception as error:  # a damaged zip or pickle fails in every way there is
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__}: {error}).") from error
    return _state_dict(path, content)


def _state_dict(path: Path, content: Any) -> dict[str, LazyTensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict) and content[wrapper]:
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not any(isinstance(value, LazyTensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (a mapping of names to tensors).")
    strays = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, LazyTensor))]
    if strays:
        raise CheckpointError(f"{path}: its state dict has entries that are no tensors: {strays[:3]}.")
    tensors = {name.removeprefix(_PREFIX): value for name, value in content.items()}
    if len(tensors) != len(content):
        raise CheckpointError(f"{path}: has some tensors twice, with and without the prefix {_PREFIX!r}.")
    return tensors


def write_torch(path: Path, tensors: Mapping[str, LazyTensor | np.ndarray]) -> None:
    """Writes a state dict as torch.save does, so that torch.load(weights_only=True) reads it.

    Raises:
        KeyError: a dtype that torch has no storage for.
    """
    storages = {dtype: name for name, dtype in _DTYPES.items()}
    order, out = list(tensors), io.BytesIO()
    out.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK)
    for number, name in enumerate(order):
        shape, dtype = tensors[name].shape, np.dtype(tensors[name].dtype)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        out.write(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK)
        reference = _text("storage") + f"ctorch\n{storages[dtype]}\n".encode() + _text(str(number)) + _text("cpu")
        out.write(pickle.MARK + reference + _integer(math.prod(shape)) + pickle.TUPLE + pickle.BINPERSID)
        out.write(_integer(0) + b"".join([pickle.MARK, *map(_integer, shape), pickle.TUPLE]))
        out.write(b"".join([pickle.MARK, *map(_integer, strides), pickle.TUPLE]) + pickle.NEWFALSE)
        out.write(b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
    out.write(pickle.SETITEMS + pickle.STOP)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", out.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for number, name in enumerate(order):
            values = np.ascontiguousarray(np.asarray(tensors[name]))
            with archive.open(f"archive/data/{number}", "w", force_zip64=values.nbytes >= 2**31) as entry:
                entry.write(values.reshape(-1).view(np.uint8).data)
        archive.writestr("archive/version", b"3\n")


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return (
        pickle.LONG1 + b"\x08" + struct.pack("<q", value)
        if value >= 2**31
        else pickle.BININT + struct.pack("<i", value)
    )


def _parameter(data: Any, *_: Any) -> LazyTensor:
    if not isinstance(data, LazyTensor):
        raise _Refused("it has a parameter that is no tensor")
    return data


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _check_keys(keys: list) -> None:
    # Hashing a deeply nested tuple would overrun the C stack, so keys are plain.
    if not all(isinstance(key, str | int | float | None) for key in keys):
        raise _Refused("it has a mapping whose keys are neither names nor numbers")
