"""A run that natjax 0.1.0 wrote (tests/goldens/run_0_1_0): it resumes, and its exported model loads."""

from __future__ import annotations

import json
import pathlib
import shutil
import zlib

import jax
import numpy as np
import pytest

import natjax
from natjax_train import loop
from natjax_train.checkpoint import Checkpoints
from natjax_train.recipes import find_recipe

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "run_0_1_0"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def test_it_resumes(tmp_path, monkeypatch):
    out, restored = tmp_path / "run", []
    shutil.copytree(GOLDEN / "run", out)
    restore = Checkpoints.restore

    def recorded(*arguments):
        restored.append(jax.device_get(restore(*arguments)))
        return jax.device_put(restored[0], jax.tree.map(lambda leaf: leaf.sharding, arguments[1]))

    monkeypatch.setattr(Checkpoints, "restore", recorded)
    loop.train(find_recipe(str(out / "recipe.json")), "digits", out, resume=True)

    leaves, _ = jax.tree_util.tree_flatten_with_path(restored[0])
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): zlib.crc32(leaf.tobytes()) for path, leaf in leaves
    }
    assert found == EXPECTED["crc32"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name, key, tolerance in (("losses", "loss", 1e-4), ("top1", "top1", 0.02)):
        got = {str(row["step"]): row[key] for row in rows if key in row}
        assert got == pytest.approx(EXPECTED[name], abs=tolerance)


def test_its_model_loads():
    model = natjax.NatForImageClassification.from_pretrained(GOLDEN / "run" / "model")
    image = (np.arange(32 * 32, dtype=np.float32).reshape(1, 32, 32, 1) % 37) / 18 - 1
    np.testing.assert_allclose(model(image).logits[0], EXPECTED["logits"], atol=1e-5)
