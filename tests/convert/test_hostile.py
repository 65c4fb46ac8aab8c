"""Hostile torch files: refused with a CheckpointError within a second, and nothing in them is ever run."""

import copy
import io
import math
import os
import pathlib
import pickle
import random
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest

import natjax_convert

pytestmark = pytest.mark.once

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "hf_nat" / "pytorch_model.bin"
WEIGHTS = GOLDEN.read_bytes()


def torch_zip(path, data_pkl, entries=None, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for name, content in ({"version": b"3\n"} if entries is None else entries).items():
            if content is not None:
                archive.writestr(f"archive/{name}", content)
    return path


def text(value):
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


CANARY = "touch CANARY"
ORDERED = b"ccollections\nOrderedDict\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def storage(key="0", numel=4, kind="FloatStorage"):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel) + b"tQ"


def integer(value):
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def tensor(store=None, offset=0, shape=(4,), strides=(1,), hooks=ORDERED + b")R"):
    sizes = b"".join(b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, strides))
    return TENSOR + b"(" + (storage() if store is None else store) + integer(offset) + sizes + b"\x89" + hooks + b"tR"


def state_dict(value):
    return b"\x80\x02}" + text("nat.layernorm.bias") + value + b"s."


def calls(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(text, arguments)) + b"tR"


class Bomb:
    def __reduce__(self):
        return os.system, (CANARY,)


class NumpyBomb:
    def __reduce__(self):
        return np.frombuffer, (b"1234",)


def store(index):
    return pickle.LONG_BINPUT + struct.pack("<I", index)


def again(index):
    return pickle.LONG_BINGET + struct.pack("<I", index)


def mappings(count, names):
    """Many mappings whose entries are the same few names and one tensor, all stored once."""
    stored = b"".join(text(name) + store(1 + i) + b"N" for i, name in enumerate(names))
    mapping = b"}(" + b"".join(again(1 + i) + again(0) for i in range(len(names))) + b"u"
    named = b"".join(text(f"m{i}") + mapping for i in range(count))
    return b"\x80\x02}(" + text("t") + tensor() + store(0) + stored + named + b"u."


def model(prefix, *beside):
    return b"\x80\x02}(" + b"".join(text(prefix + name) + tensor() for name in MODEL) + b"".join(beside) + b"u."


def calls_again(function, arguments, opcode=b"R"):
    """Many calls with the same arguments, which are stored once."""
    return b"\x80\x02(" + arguments + b"t" + store(0) + function + b"q\x01" + (b"h\x01h\x00" + opcode) * MANY + b"}."


DEEP = MANY = 100_000
MODEL = ("patch_embed.norm.weight", "levels.0.blocks.0.norm1.weight")
INERT = b"ctorch\nSize\n"  # what is beside weights becomes a stand-in
HOSTILE = {
    **{
        f"{module}.{name}": state_dict(calls(module, name, CANARY))
        for module, name in [
            ("os", "system"),
            ("posix", "system"),
            ("nt", "system"),
            ("builtins", "eval"),
            ("builtins", "exec"),
            ("__builtin__", "eval"),
            ("subprocess", "Popen"),
            ("torch", "load"),
            ("torch.hub", "load"),
            ("torch", "FloatStorage.__class__"),
            ("collections", "OrderedDict.__init__"),
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
            ("numpy", "load"),
            ("pickle", "loads"),
            ("operator", "attrgetter"),
            ("builtins", "getattr"),
            ("importlib", "import_module"),
        ]
    },
    "reduce": pickle.dumps({"a": Bomb()}, protocol=2),
    "reduce, protocol 0": pickle.dumps({"a": Bomb()}, protocol=0),
    "reduce, protocol 5": pickle.dumps({"a": Bomb()}, protocol=5),
    "numpy": pickle.dumps({"a": np.arange(3)}, protocol=2),
    "numpy, reduce": pickle.dumps({"a": NumpyBomb()}, protocol=4),
    "stack global": state_dict(text("os") + text("system") + b"\x93(" + text(CANARY) + b"tR"),
    "inst": b"(S'" + CANARY.encode() + b"'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "newobj": state_dict(b"cbuiltins\nobject\n)\x81"),
    "newobj_ex": state_dict(ORDERED + b")}\x92"),
    "extension": b"\x82\x01.",
    "a stand-in for a tensor": state_dict(INERT + b"(" + text(CANARY) + b"tR"),
    "a stand-in that is called": state_dict(INERT + b")R(" + text(CANARY) + b"tR"),
    "a stand-in with a state": state_dict(INERT + b")R}" + text("__class__") + ORDERED + b"sb"),
    "a stand-in's attribute": state_dict(calls("torch", "Size.__base__", CANARY)),
    "a class among stand-ins": state_dict(calls("pathlib", "os", CANARY)),
    "a neighbour of stand-ins": state_dict(calls("builtins", "__import__", CANARY)),
    "a name of two words": state_dict(calls("builtins", "int list", CANARY)),
    "a wrapper that holds itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s" + text("net") + b"h\x00s.",
    "wrappers in wrappers": b"\x80\x02" + (b"}" + text("model")) * 20_000 + b"}" + b"s" * 20_000 + b".",
    "persistent id": state_dict(text("x") + b"Q"),
    "persistent id, old": b"Px\n.",
    "attributes of a tensor": state_dict(tensor() + b"}" + text("read") + ORDERED + b"sb"),
    "attributes of a function": state_dict(TENSOR + b"N}" + text("__defaults__") + b")s\x86b"),
    "attributes of a class": state_dict(ORDERED + b"N}" + text("__setstate__") + TENSOR + b"s\x86b"),
    "class with arguments": state_dict(ORDERED + b"(" + b"(" * 5 + b")" + b"t" * 5 + b"tR"),
    "forged storage": state_dict(tensor(store=text("float32") + text("archive/data/0") + integer(2**40) + b"\x87")),
    "storage of another type": state_dict(tensor(store=b"N")),
    "storage key absolute": state_dict(tensor(store=storage("/etc/passwd"))),
    "storage key upwards": state_dict(tensor(store=storage("../../x"))),
    "storage key to the pickle": state_dict(tensor(store=storage("../data.pkl", 1))),
    "storage too long": state_dict(tensor(store=storage(numel=2**40))),
    "storage too short": state_dict(tensor(store=storage(numel=3))),
    "storage negative": state_dict(tensor(store=storage(numel=-4))),
    "storage dtype": state_dict(tensor(store=storage(kind="ComplexFloatStorage"))),
    "offset": state_dict(tensor(offset=1)),
    "offset negative": state_dict(tensor(offset=-1)),
    "offset huge": state_dict(tensor(offset=2**200)),
    "stride negative": state_dict(tensor(strides=(-1,))),
    "stride huge": state_dict(tensor(strides=(2**61,))),
    "shape negative": state_dict(tensor(shape=(-4,))),
    "shape huge": state_dict(tensor(shape=(2**61,), strides=(0,))),
    "shape huge and empty": state_dict(tensor(shape=(0, 2**61, 2**61), strides=(0, 0, 0))),
    "shape of many axes": state_dict(tensor(shape=(1,) * 100, strides=(1,) * 100)),
    "shape and strides differ": state_dict(tensor(shape=(2, 2))),
    "memo": b"\x80\x02}r\xff\xff\xff\xff0j\xff\xff\xff\x00.",
    "memo, huge": b"\x80\x02}r\xff\xff\xff\xff.",
    "memo, missing": b"\x80\x02j\xff\xff\xff\x7f.",
    "deep tuples": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "deep tuple as a key": b"\x80\x02}" + b")" + b"\x85" * DEEP + b"Ns.",
    "deep tuple as a shape": state_dict(TENSOR + b"(" + storage() + b"K\x00)" + b"\x85" * DEEP + b")\x89NtR"),
    "deep tuple as a storage": state_dict(TENSOR + b"()" + b"\x85" * DEEP + b"K\x00))\x89NtR"),
    "deep tuple as a storage key": state_dict(b"(" + text("storage") + b")" + b"\x85" * DEEP + b"NNNtQ"),
    "deep lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep dicts": b"\x80\x02" + b"}" + b"K\x00}" * DEEP + b"s" * DEEP + b".",
    "deep marks": b"\x80\x02" + b"(" * DEEP + b".",
    "itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "itself as its model": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
    "list of itself": b"\x80\x02]q\x00h\x00a.",
    "laughs": b"\x80\x02]" + b"".join(b"q%c](" % i + b"h%c" % i * 10 + b"e" for i in range(100)) + b".",
    "laughs as a shape": state_dict(
        TENSOR
        + b"("
        + storage()
        + b"K\x00)"
        + b"".join(b"q%c0(" % i + b"h%c" % i * 7 + b"t" for i in range(60))
        + b"h\x01\x89NtR"
    ),
    "laughs as keys": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "colliding keys": b"\x80\x02}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(50_000)) + b"u.",
    "long string": b"\x80\x02X\xff\xff\xff\xffabc.",
    "long number": b"\x80\x02\x8b\xff\xff\xff\x7f\x00.",
    "long byte array": b"\x80\x05}" + text("a") + b"\x96" + struct.pack("<Q", 2**62) + b"abcs.",
    "append to a dict": b"\x80\x02}" + text("a") + b"}Nas.",
    "append to a tensor": state_dict(tensor() + b"(NNe"),
    "long frame": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
    "many objects": b"\x80\x02(" + b"}" * (2**22 - 10) + b"l.",
    "many dicts": b"\x80\x02(" + b"}" * 2**21 + b"t.",
    "a module's whole name": state_dict(b"c" + b"x" * 100_000 + b"\ny\n"),
    "no tensors beside a model": model("x.", b"".join(text(f"x.{i}") + b"N" for i in range(30_000))),
    "many models": mappings(320, [f"ema{i}.{name}" for i in range(16) for name in MODEL]),
    "many models with long names": mappings(1000, ["patch_embed._a" * 60_000, *MODEL]),
    "many models with a long prefix": mappings(60, ["a." * 400_000 + name for name in MODEL]),
    "many lists of averages": b"\x80\x02}("
    + (text("model") + model("")[2:-1])
    + (text("list") + b"](" + b"N" * MANY + b"e" + store(0))
    + (text("ema") + b"}(" + b"".join(integer(i) + again(0) for i in range(50_000)) + b"uu."),
    "many arguments": calls_again(INERT, b"N" * MANY),
    "many arguments of a class": calls_again(ORDERED, b"N" * MANY, b"\x81"),
    "many arguments of a tensor": calls_again(TENSOR, storage() + b"K\x00K\x04\x85K\x01\x85" + b"N" * MANY),
    "many tensors": calls_again(TENSOR, storage() + b"K\x00K\x04\x85K\x01\x85\x89N"),
    "many layers": b"\x80\x02}("
    + (text("nat.embeddings.patch_embeddings.projection.0.weight") + tensor(shape=(1,) * 4, strides=(1,) * 4))
    + (text("nat.encoder.levels.0.layers.0.intermediate.dense.weight") + tensor(shape=(1, 1), strides=(1, 1)))
    + (text("x") + tensor(shape=(1, 5, 5), strides=(0, 0, 0)) + store(0))
    + b"".join(text(f"nat.encoder.levels.0.layers.{i}.attention.self.rpb") + again(0) for i in range(10_000))
    + b"u.",
    "no stop": b"\x80\x02}",
    "empty": b"",
    "stop": b".",
    "protocol": b"\x80\xff}.",
    "no mapping": b"\x80\x02N.",
    "no tensors": b"\x80\x02}" + text("a") + b"K\x01s.",
    "no names": b"\x80\x02}K\x01" + tensor() + b"s.",
    "lone surrogate": b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80" + tensor() + b"s.",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle(checkpoint, tmp_path, monkeypatch, case, refuse):
    monkeypatch.chdir(tmp_path)
    weights = torch_zip(checkpoint / "pytorch_model.bin", HOSTILE[case], {"data/0": bytes(16)})
    error = refuse(checkpoint)
    if not error.startswith(f"{weights}: "):  # refused for its content, not while it was read
        (checkpoint / "config.json").unlink()
        refuse(checkpoint)
    assert not (tmp_path / "CANARY").exists()
    if "." in case:
        assert f"asks for {case}, which is not needed for tensors; refused, and nothing was run" in error


def test_the_tensor_these_cases_start_from_is_sound(tmp_path):
    torch_zip(tmp_path / "x.bin", state_dict(tensor()), {"data/0": np.arange(4, dtype="f4").tobytes()})
    read = natjax_convert.read_state_dict(tmp_path / "x.bin")
    np.testing.assert_array_equal(np.asarray(read["nat.layernorm.bias"]), np.arange(4))


def zip_with(changes):
    """A sound zip file, and what `changes` makes of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        changes(archive)
    return buffer.getvalue()


def _twice(archive):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("data.pkl", "data/0", "data/0"):
            archive.writestr(f"archive/{name}", state_dict(tensor()) if name == "data.pkl" else bytes(16))


def _two_pickles(archive):
    for name in ("a/data.pkl", "b/data.pkl"):
        archive.writestr(name, state_dict(tensor()))


def _bomb(name):
    def write(archive):
        archive.writestr("archive/data.pkl" if name != "data.pkl" else "archive/x", state_dict(tensor()))
        archive.writestr(f"archive/{name}", bytes(2**27), compress_type=zipfile.ZIP_DEFLATED)

    return write


def _no_pickle(archive):
    archive.writestr("hello.txt", b"hello")


def _big_endian(archive):
    archive.writestr("archive/data.pkl", state_dict(tensor()))
    archive.writestr("archive/byteorder", b"big")


def _compressed_data(archive):
    archive.writestr("archive/data.pkl", state_dict(tensor()))
    archive.writestr("archive/data/0", bytes(16), compress_type=zipfile.ZIP_DEFLATED)


def _long_name(archive):
    key = "k" * 60_000
    reference = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K\x04tq\x00"
    archive.writestr("archive/data.pkl", b"\x80\x02" + reference + b"h\x00Q" * 600_000 + b"}.")
    archive.writestr(f"archive/data/{key}", bytes(16))


def _overlapping(archive):
    """A model whose tensors are all at the start of storages of their own, which are all the same bytes."""
    numel = 2**22
    tensors = [
        text(name)
        + tensor(storage(str(i), numel), 0, t.shape, [math.prod(t.shape[j + 1 :]) for j in range(len(t.shape))])
        for i, (name, t) in enumerate(natjax_convert.read_state_dict(GOLDEN).items())
    ]
    archive.writestr("archive/data.pkl", b"\x80\x02}(" + b"".join(tensors) + b"u.")
    archive.writestr("archive/data/0", bytes(4 * numel))
    for i in range(1, len(tensors)):
        archive.filelist.append(copy.copy(archive.getinfo("archive/data/0")))
        archive.filelist[-1].filename = f"archive/data/{i}"


ZIPS = {
    "long name": zip_with(_long_name),
    "overlapping": zip_with(_overlapping),
    "twice": zip_with(_twice),
    "two pickles": zip_with(_two_pickles),
    "pickle bomb": zip_with(_bomb("data.pkl")),
    "byteorder bomb": zip_with(_bomb("byteorder")),
    "no pickle": zip_with(_no_pickle),
    "big endian": zip_with(_big_endian),
    "compressed data": zip_with(_compressed_data),
}


@pytest.mark.parametrize("case", ZIPS)
def test_hostile_zip(checkpoint, case, refuse):
    (checkpoint / "pytorch_model.bin").write_bytes(ZIPS[case])
    refuse(checkpoint)


def test_a_bomb_that_lies_about_its_size(checkpoint, refuse, monkeypatch):
    data = ZIPS["pickle bomb"].replace(struct.pack("<I", 2**27), struct.pack("<I", 2**20))
    (checkpoint / "pytorch_model.bin").write_bytes(data)
    monkeypatch.setattr(zlib, "decompressobj", lambda *_: pytest.fail("it is decompressed"))
    refuse(checkpoint)


@pytest.mark.parametrize("offset", [-100, -31, -1, 1, 40, 2**20, 2**31])
def test_entries_elsewhere(checkpoint, offset, refuse):
    """The directory's offsets of the storages point outside the file or into other entries."""
    data = bytearray(WEIGHTS)
    at = data.index(b"PK\x01\x02")
    while data[at : at + 4] == b"PK\x01\x02":
        name, extra, comment = struct.unpack_from("<HHH", data, at + 28)
        if b"/data/" in data[at + 46 : at + 46 + name]:
            (old,) = struct.unpack_from("<I", data, at + 42)
            struct.pack_into("<I", data, at + 42, (old + offset) % 2**32)
        at += 46 + name + extra + comment
    (checkpoint / "pytorch_model.bin").write_bytes(data)
    refuse(checkpoint)


def test_flipped_bits_of_a_pickle_behind_a_valid_checksum(checkpoint, attempt):
    with zipfile.ZipFile(io.BytesIO(WEIGHTS)) as archive:
        content = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    rng = random.Random(1)
    for _ in range(100):
        changed = bytearray(content["data.pkl"])
        for _ in range(rng.choice([1, 3, 10])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        torch_zip(checkpoint / "pytorch_model.bin", bytes(changed), {**content, "data.pkl": None})
        attempt(checkpoint)
