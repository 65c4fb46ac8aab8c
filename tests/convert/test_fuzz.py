"""Damaged checkpoints: each is refused with a CheckpointError within a second, and leaves nothing behind.

Damage that cannot be noticed (safetensors has no checksum of its data) may pass, with the model's own shapes.
"""

import functools
import json
import os
import pathlib
import random
import struct

import numpy as np
import pytest

import natjax
import natjax_convert
from natjax_convert.safetensors_file import write_safetensors

pytestmark = pytest.mark.once

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
WEIGHTS = {name: (GOLDENS / "hf_nat" / name).read_bytes() for name in ("model.safetensors", "pytorch_model.bin")}


@pytest.mark.parametrize("name", WEIGHTS)
def test_truncated(checkpoint, name, attempt, refuse):
    data, rng = WEIGHTS[name], random.Random(0)
    lengths = [0, 1, 7, 8, 9, 30, 100, len(data) // 2, len(data) - 1000, len(data) - 22, len(data) - 1]
    for length in lengths + [rng.randrange(len(data)) for _ in range(40)]:
        (checkpoint / name).write_bytes(data[:length])
        error = refuse(checkpoint)
        if length > 20:
            assert error.endswith(f"{name}: truncated: the end of the file is missing. Download or copy it again.")
    (checkpoint / name).write_bytes(data + b"x" * 100)
    attempt(checkpoint)


def regions(name):
    data = WEIGHTS[name]
    if name == "model.safetensors":
        size = int.from_bytes(data[:8], "little")
        return {"size": (0, 8), "header": (8, 8 + size), "data": (8 + size, len(data))}
    start = data.index(b"\x80\x02}")
    directory = data.index(b"PK\x01\x02")
    return {"pickle": (start, start + 4000), "data": (start + 20000, directory), "directory": (directory, len(data))}


@pytest.mark.parametrize(("name", "region"), [(name, region) for name in WEIGHTS for region in regions(name)])
def test_flipped_bits(checkpoint, name, region, attempt):
    start, end = regions(name)[region]
    rng, refused = random.Random(region), 0
    for _ in range(10 if region == "data" else 40):
        data = bytearray(WEIGHTS[name])
        for _ in range(rng.choice([1, 1, 5])):
            data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        (checkpoint / name).write_bytes(data)
        refused += attempt(checkpoint) is not None
    if region in ("size", "header", "pickle"):
        assert refused > 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "neither a safetensors file nor"),
        ("model.safetensors", b"<!DOCTYPE html><html>", "a download that went wrong"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "neither"),
        ("model.safetensors", b"PK\x03\x04" + bytes(100), "truncated"),
        ("model.safetensors", b"PK\x03\x04PK\x05\x06" + b"\xff" * 16 + b"\0\0", "damaged"),
        ("model.safetensors", struct.pack("<Q", 2**63) + b"{}", "damaged safetensors"),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}", "of no NAT or DiNAT"),
        ("model.safetensors", struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "damaged safetensors"),
        ("pytorch_model.bin", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.rest", "before version 1.6"),
        ("pytorch_model.bin", b"cposix\nsystem\n(S'true'\ntR.", "neither"),
        ("model.safetensors.index.json", b"{", "not the index"),
        ("model.safetensors.index.json", b"[]", "neither"),
        ("model.safetensors.index.json", b'{"weight_map": 5}', "not the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["x"]}}', "not the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 5}}', "names the shard 5"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 5, "b": "x"}}', "not the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}', "file beside the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "/etc/passwd"}}', "file beside the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ".."}}', "file beside the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ""}}', "file beside the index"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "x\\u0000"}}', "cannot read"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "\\ud800"}}', "cannot read"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "missing.safetensors"}}', "cannot read"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors.index.json"}}', "neither"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "of no NAT or DiNAT"),
        ("model.safetensors.index.json", b'{"weight_map": ' + b"[" * 100_000, "not the index"),
        ("model.safetensors.index.json", b"{\xff", "not the index"),
    ],
)
def test_odd_files(checkpoint, name, content, message, refuse):
    (checkpoint / name).write_bytes(content)
    assert message in refuse(checkpoint)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}},
        {"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}},
        {"a": 5},
        {"__metadata__": 5},
        {"classifier.weight": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}},
        {"nat.embeddings.patch_embeddings.projection.0.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_odd_safetensors_headers(checkpoint, header, refuse):
    text = json.dumps(header).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    refuse(checkpoint)
    (checkpoint / "config.json").unlink()  # and where the configuration is to be inferred
    refuse(checkpoint)


def test_changed_tensors(checkpoint, refuse):
    original = {n: np.asarray(t) for n, t in natjax_convert.read_state_dict(GOLDENS / "hf_nat").items()}
    rng = random.Random(2)
    for _ in range(80):
        tensors, name = dict(original), rng.choice(list(original))
        values = tensors.pop(name)
        change = rng.choice(["missing", "renamed", "shape", "extra", "integer", "empty"])
        if change == "renamed":
            tensors[rng.choice([name[:-1], name.upper(), "modul." + name, "\x1b[31m" + name, "\n"])] = values
        elif change == "shape":
            tensors[name] = rng.choice([values[None], values[..., :-1], values.reshape(-1)[:-1], np.float32(0)])
        elif change == "extra":
            tensors |= {name: values, f"nat.{rng.random()}": np.zeros(3, np.float32)}
        elif change == "integer":
            tensors[name] = values.astype(rng.choice(["i4", "i8", "u1", "?"]))
        elif change == "empty":
            tensors[name] = np.zeros((0, *values.shape), np.float32)
        write_safetensors(checkpoint / "model.safetensors", tensors)
        error = refuse(checkpoint)
        assert "\x1b" not in error


def test_thousands_of_wrong_names(checkpoint, refuse):
    """The search for the nearest name takes time."""
    names = [f"nat.encoder.levels.0.layers.{i}.attention.self.query.weights" for i in range(5000)]
    write_safetensors(checkpoint / "model.safetensors", {name: np.zeros(1, np.float32) for name in names})
    assert "5000 left over" in refuse(checkpoint)


def test_odd_paths(tmp_path, refuse):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").mkdir()
    for source in ("folder", "folder/model.safetensors", "missing", "missing/missing", "a\0b", "x" * 5000):
        refuse(tmp_path / source)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads everything")
def test_unreadable_file(checkpoint, refuse):
    (checkpoint / "model.safetensors").write_bytes(WEIGHTS["model.safetensors"])
    (checkpoint / "model.safetensors").chmod(0)
    assert "cannot read" in refuse(checkpoint)


CONFIGS = {
    "empty": b"",
    "list": b"[]",
    "deep": b'{"a":' * 100_000,
    "deep list": b'{"depths": ' + b"[" * 100_000,
    "not text": b"\xff\xfe\x00",
    "another model": b'{"model_type": "swin"}',
    "model type": b'{"model_type": []}',
    "no fields": b"{}",
}
FIELDS = (
    [{"embed_dim": value} for value in (10**9, 10**30, -2, 0, 1.5, "64", None, [], {}, True, 3)]
    + [
        {"depths": value}
        for value in (10, [], [0], [-1], [10**9, 1, 2], [10**30, 1, 2], "123", [[2], 1, 2], None, [2.0, 1, 2])
    ]
    + [{"num_heads": value} for value in (5, [1, 2], [0, 1, 2], [10**9, 1, 1], {"a": 1})]
    + [{"mlp_ratio": value} for value in (float("nan"), float("inf"), -1, 0, "2", None, [])]
    + [{"kernel_size": value} for value in (4, 1, 10**9 + 1, -7, [7], None)]
    + [
        {"layer_norm_eps": float("nan")},
        {"qkv_bias": "yes"},
        {"hidden_act": []},
        {"hidden_act": "swish"},
        {"out_features": ["nowhere"]},
        {"out_features": {}},
        {"out_indices": [10**9]},
        {"id2label": [1, 2]},
        {"id2label": {"a": "b"}},
        {"id2label": {"0": 5}},
        {"id2label": {"9" * 5000: "x"}},
        {"num_channels": 10**9},
        {"layer_scale_init_value": 1e-5},
        {"model_type": "dinat"},
        {"model_type": "dinat", "dilations": [[10**9] * 2, [1], [1] * 2]},
        {"model_type": "dinat", "dilations": 5},
        {"patch_size": 8},
    ]
)


def configured(checkpoint, content):
    (checkpoint / "model.safetensors").write_bytes(WEIGHTS["model.safetensors"])
    (checkpoint / "config.json").write_bytes(content)


@pytest.mark.parametrize("case", CONFIGS)
def test_damaged_configuration(checkpoint, case, refuse):
    configured(checkpoint, CONFIGS[case])
    refuse(checkpoint)


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:40])
def test_odd_configuration(checkpoint, fields, refuse, quick_error):
    original = json.loads((GOLDENS / "hf_nat" / "config.json").read_text())
    configured(checkpoint, json.dumps(original | fields).encode())
    refuse(checkpoint)
    for model_class in (natjax.NatForImageClassification, natjax.NatBackbone):
        load = functools.partial(model_class.from_pretrained, checkpoint, replace_head=True)
        assert quick_error(load) is not None
