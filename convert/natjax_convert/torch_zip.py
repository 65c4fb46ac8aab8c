"""The zip files of torch.save, without PyTorch: read with nothing in them executed, and written.

Such a file holds a pickle (`data.pkl`), whose tensors refer to storages, and every storage's bytes as an entry of its own,
uncompressed. The reader runs Python's own pickle machine with a short list of opcodes and globals, each global replaced by an
inert stand-in; anything else is refused by name. Format: torch/serialization.py and caffe2/serialize of PyTorch.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from natjax.errors import CheckpointError
from natjax_convert.state_dict import LazyTensor, truncated

_MAX_PICKLE_BYTES = 2**21  # DiNAT-Large's, with the state of an optimiser, has 2**19
_MAX_REFERENCES = 2**15  # to storages and tensors; DiNAT-Large, averaged too and with an optimiser, has 2**12
_MAX_NAME = 1000  # characters of an entry's name, which a short pickle can repeat

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
    "ComplexFloatStorage": np.dtype("c8"),
    "ComplexDoubleStorage": np.dtype("c16"),
    "UntypedStorage": np.dtype("V1"),
}
_OPCODES = re.findall(
    r"\w+",
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_LIST NONE NEWTRUE NEWFALSE BININT "
    "BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES",
)
# What training leaves beside the weights. Each of these becomes an empty stand-in; what a class or function of another name would
# have become is refused, as a file that asks for one may be hostile.
_INERT = {
    "_codecs": "encode",  # of the bytes of the ones below
    "argparse": "Namespace",
    "builtins": "Ellipsis bool bytearray bytes complex dict float frozenset int list range set slice str tuple xrange",
    "collections": "ChainMap Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "numpy": "bool bool_ complex128 complex64 dtype float16 float32 float64 int16 int32 int64 int8 ndarray str_ uint16 uint32 "
    "uint64 uint8",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
    "numpy.random._sfc64": "SFC64",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "Size device bfloat16 bool complex128 complex32 complex64 float16 float32 float64 float4_e2m1fn_x2 float8_e4m3fn "
    "float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int16 int32 int64 int8 uint16 uint32 uint64 uint8",
    "torch._C": "Generator",
    "torch._utils": "_rebuild_sparse_tensor _rebuild_tensor_v3",  # tensors of kinds that no model's weights are
    "torch.serialization": "_get_layout",
    "types": "SimpleNamespace",
    "uuid": "UUID",
}
_FORMERLY = {
    "__builtin__": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
    "pathlib._local": "pathlib",
    "torch.storage": "torch",
}
_Machine: Any = pickle._Unpickler  # the C one neither restricts opcodes nor survives a memo index of four billion


class _RefusedError(Exception):
    """What a checkpoint may not contain."""


class _Dict(dict):
    """Stands in for collections.OrderedDict."""

    def __init__(self):  # filled by SETITEMS alone, which looks at the keys
        super().__init__()


class _DefaultDict(_Dict):
    """Stands in for collections.defaultdict."""

    def __init__(self, _: Any = None):
        super().__init__()


class _Inert:
    """Stands in for what `_INERT` lists."""

    def __repr__(self) -> str:
        return "(no name)"


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Stands in for a storage class."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _OpenStorage:
    """A storage that is in the file, with the name of its entry and its number of elements."""

    dtype: np.dtype
    name: str
    numel: int


class _Unpickler(_Machine):
    dispatch = dict(_Machine.dispatch)  # noqa: RUF012 (as in the base class)

    def __init__(self, file: BinaryIO, storages: _Storages):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if _FORMERLY.get(module, module) == "torch" and name in _DTYPES:
            return _Storage(_DTYPES[name])
        allowed = {
            ("collections", "OrderedDict"): _Dict,
            ("collections", "defaultdict"): _DefaultDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._storages.tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if name in _INERT.get(_FORMERLY.get(module, module), "").split():
            return _Inert
        raise _RefusedError(
            f"it asks for {module[:80]}.{name[:80]}, which is not needed for tensors; refused, and nothing was run. If you trust "
            "the file, load it in PyTorch and torch.save the model's state_dict() alone"
        )

    def persistent_load(self, pid: Any) -> Any:
        return self._storages.open(pid)

    def load_reduce(self) -> None:
        if self.stack[-2] is _Inert:  # nobody needs the arguments, which a short file can repeat by the million
            self.stack[-2:] = [_Inert()]
        else:
            _Machine.load_reduce(self)

    def load_setitem(self) -> None:
        self.stack[-2:-1] = map(_key, self.stack[-2:-1])
        _Machine.load_setitem(self)

    def load_setitems(self) -> None:
        self.stack[::2] = map(_key, self.stack[::2])
        _Machine.load_setitems(self)

    def load_append(self) -> None:
        items = [self.stack.pop()]
        self._extend(items)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._extend(items)

    def _extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], _Inert):  # which keeps nothing
            raise _RefusedError("it appends to something that is no list")

    def load_build(self) -> None:
        self.stack.pop()  # module versions of an OrderedDict, arguments of a run: nobody needs them
        if not isinstance(self.stack[-1], _Dict | _Inert):
            raise _RefusedError("it gives a state to something that has none")

    def load_empty_set(self) -> None:
        self.append(_Inert())

    def load_additems(self) -> None:
        self.pop_mark()  # whose hashes nobody needs to compute

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.append(_Inert())

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.read(min(size, _MAX_PICKLE_BYTES + 1))  # Python's own makes room for as many bytes as it is told to
        self.append(_Inert())

    def refuse(self) -> None:
        raise _RefusedError("it has a pickle instruction that is not needed for tensors; refused, and nothing was run")

    dispatch |= dict.fromkeys(set(dispatch) - {getattr(pickle, name)[0] for name in _OPCODES}, refuse)
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.EMPTY_SET[0]] = load_empty_set
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


class _Storages:
    """The entries of an open file: its pickle, its storages and the tensors over them."""

    def __init__(self, path: Path, entries: list[zipfile.ZipInfo], data: mmap.mmap):
        self.path, self._data = path, data
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise _RefusedError("some entries of its zip directory have the same name")
        if any(len(name) > _MAX_NAME for name in self._entries):
            raise _RefusedError(f"an entry of its zip directory has a name of more than {_MAX_NAME} characters")
        if sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED) > len(data):
            raise _RefusedError("the entries of its zip directory are larger than the file")
        names = [name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise _RefusedError("it is a zip file, but not one of torch.save (which has one data.pkl)")
        self._prefix = names[0].removesuffix("data.pkl")
        # After torch.serialization.set_crc32_options(False), torch.save writes zeros for all checksums: there are none.
        self._checked = set() if any(entry.CRC for entry in entries) else set(self._entries)
        self._references = 0
        if f"{self._prefix}byteorder" in self._entries and self.small("byteorder") != b"little":
            raise _RefusedError("it is not little-endian")

    def small(self, name: str) -> bytes:
        """Returns the content of an entry that is no storage."""
        entry = self._entries[self._prefix + name]
        if entry.file_size > _MAX_PICKLE_BYTES:
            raise _RefusedError(f"its {name} is too large for a state dict")
        start = self._start(entry)
        return self._data[start : start + entry.file_size]

    def open(self, pid: Any) -> _OpenStorage:
        """Checks a reference to a storage."""
        self._count()
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
            raise _RefusedError("it has a reference that is no tensor storage")
        name = f"{self._prefix}data/{key}"
        if name not in self._entries:
            raise _RefusedError(f"its storage {key[:40]!r} is missing")
        size = self._entries[name].file_size
        if not _is_size(numel) or numel * storage.dtype.itemsize != size:
            raise _RefusedError(
                f"its storage {key!r} of {size} bytes does not hold the {storage.dtype} elements it should"
            )
        return _OpenStorage(storage.dtype, name, numel)

    def tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any = 0, hooks: Any = 0, metadata: Any = 0
    ) -> LazyTensor:
        """Stands in for torch._utils._rebuild_tensor_v2."""
        self._count()
        if not isinstance(storage, _OpenStorage):
            raise _RefusedError("a tensor refers to something that is no storage")
        dtype, name, numel = storage.dtype, storage.name, storage.numel
        shape, strides = tuple(shape), tuple(strides)
        sizes = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 8 or not all(map(_is_size, sizes)):
            raise _RefusedError("a tensor has an impossible shape, strides or offset")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= numel:
            raise _RefusedError(f"a tensor of shape {shape} exceeds its storage of {numel} elements")
        if math.prod(filter(None, shape)) >= 2**56:  # empty or of repeated values, and beyond what numpy can express
            raise _RefusedError(f"a tensor has the impossible shape {shape}")
        return LazyTensor(shape, dtype, lambda: self._read(dtype, name, offset, shape, strides))

    def _count(self) -> None:
        self._references += 1
        if self._references > _MAX_REFERENCES:
            raise _RefusedError(f"it has more than {_MAX_REFERENCES} references to storages and tensors")

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Checks an entry and returns where its content starts in the file."""
        name = entry.filename
        # The local header repeats the name and has extra fields of its own length; the data follows them.
        at = entry.header_offset
        header = self._data[at : at + 30] if at >= 0 else b""
        if len(header) < 30 or header[:4] != b"PK\x03\x04" or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path}: the entry {name} is damaged, or compressed as torch never does.")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = at + 30 + name_length + extra_length
        if start + entry.file_size > len(self._data):
            raise CheckpointError(f"{self.path}: truncated; the entry {name} ends beyond the file.")
        if name not in self._checked:
            with memoryview(self._data) as view, view[start : start + entry.file_size] as content:
                checksum = zlib.crc32(content)
            if checksum != entry.CRC:
                raise CheckpointError(f"{self.path}: damaged; the entry {name} fails its checksum.")
            self._checked.add(name)
        return start

    def _read(self, dtype: np.dtype, name: str, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
        start = self._start(self._entries[name])
        if math.prod(shape) * dtype.itemsize > len(self._data):  # an expanded one, which repeats its values
            raise CheckpointError(
                f"{self.path}: a tensor of shape {shape} is larger than the whole file, as it repeats its values. In PyTorch, "
                "torch.save its contiguous() in its place."
            )
        if 0 in shape:
            return np.zeros(shape, dtype)
        steps = tuple(s * dtype.itemsize for s in strides)
        return np.ndarray(shape, dtype, self._data, start + offset * dtype.itemsize, steps)


def read_torch(path: Path) -> Any:
    """Opens a zip file of torch.save and returns what it holds, mostly a mapping, with every tensor a `LazyTensor`.

    Raises:
        CheckpointError: it is damaged or asks for what a checkpoint does not need.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # its directory is at its end
                raise truncated(path)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
            storages = _Storages(path, entries, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return _Unpickler(io.BytesIO(storages.small("data.pkl")), storages).load()
    except CheckpointError:
        raise
    except _RefusedError as error:
        raise CheckpointError(f"{path}: not a usable checkpoint: {error}.") from None
    except Exception as error:  # a damaged zip or pickle fails in every way there is
        raise CheckpointError(f"{path}: damaged checkpoint ({type(error).__name__}: {str(error)[:200]}).") from error


def write_torch(path: Path, tensors: Mapping[str, LazyTensor | np.ndarray], meta: Any = None) -> None:
    """Writes a state dict as torch.save does, so that torch.load(weights_only=True) reads it.

    Args:
        path: of the file.
        tensors: by name.
        meta: what goes beside them, of mappings, lists, texts and numbers: the file is then {"meta": ..., "state_dict": ...}.

    Raises:
        KeyError: a dtype that torch has no storage for.
    """
    storages = {dtype: name for name, dtype in _DTYPES.items() if name != "UntypedStorage"}
    order, out = list(tensors), io.BytesIO()
    out.write(pickle.PROTO + b"\x02")
    if meta is not None:
        plain = pickle.dumps(meta, protocol=2)[2:-1]  # without the protocol before it and the stop behind it
        out.write(pickle.EMPTY_DICT + pickle.MARK + _text("meta") + plain + _text("state_dict"))
    out.write(pickle.EMPTY_DICT + pickle.MARK)
    for number, name in enumerate(order):
        shape, dtype = tensors[name].shape, np.dtype(tensors[name].dtype)
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        out.write(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK)
        reference = _text("storage") + f"ctorch\n{storages[dtype]}\n".encode() + _text(str(number)) + _text("cpu")
        out.write(pickle.MARK + reference + _integer(math.prod(shape)) + pickle.TUPLE + pickle.BINPERSID)
        out.write(_integer(0) + b"".join([pickle.MARK, *map(_integer, shape), pickle.TUPLE]))
        out.write(b"".join([pickle.MARK, *map(_integer, strides), pickle.TUPLE]) + pickle.NEWFALSE)
        out.write(b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
    out.write(pickle.SETITEMS + (pickle.SETITEMS if meta is not None else b"") + pickle.STOP)
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


def _parameter(data: Any, gradient: Any = 0, hooks: Any = 0) -> LazyTensor:
    if not isinstance(data, LazyTensor):
        raise _RefusedError("it has a parameter that is no tensor")
    return data


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _key(key: Any) -> Any:
    """Returns a key of a mapping, or something in its place where nobody needs it and hashing it may not be safe."""
    # Hashing a deeply nested tuple would overrun the C stack, and large numbers can be made to collide.
    return key if isinstance(key, str) or (isinstance(key, int) and 0 <= key < 2**31) else _Inert()
