"""The GPU benchmark and tuning run to their ends on a CPU, by the commands of the README, and leave complete files."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks import ROOT

pytest.importorskip("triton")
pytest.importorskip("optax")
SECTIONS = ("numerics", "kernels", "op", "models", "peers", "scaling")
pytestmark = [pytest.mark.slow, pytest.mark.once]


def run(*command):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


def test_benchmark(tmp_path):
    done = run("benchmarks.gpu", "--rehearse", "--seconds", "240", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    contents = json.loads((tmp_path / "gpu_cpu.json").read_text())
    assert contents.keys() == {*SECTIONS}
    for section, content in contents.items():
        if section == "peers" and not importlib.util.find_spec("torch"):
            assert content["status"] == "skipped"
            continue
        assert content["status"] == "complete"
        assert content["provenance"]["small"]
        assert content["rows"]
        assert not [row for row in content["rows"] if "error" in row]
    assert contents["numerics"]["passed"]
    assert "2-D of capped logits" in {row["call"] for row in contents["numerics"]["rows"]}  # one of the features
    for row in contents["scaling"]["rows"]:
        tensors = {"forward": 4, "both": 8}[row["what"]]  # of 2 heads of 32 channels in bfloat16, held at once
        assert row["peak_bytes_per_token"] >= tensors * 2 * 32 * 2 + row["temporary_bytes_per_token"]
    assert all(f"## {section}" in done.stdout for section in SECTIONS)


def test_tuning(tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps({"Other": {"kept": {}}}))
    done = run("benchmarks.tune", "--rehearse", "--configs", str(path), "--device-kind", "Rehearsed")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(path.read_text())
    assert content["Other"] == {"kept": {}}
    assert [key.split()[0] for key in content["Rehearsed"]] == ["bwd_dkv", "bwd_dq", "fwd"]  # sorted
