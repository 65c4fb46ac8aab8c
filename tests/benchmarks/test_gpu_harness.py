"""The harness of the benchmarks: what fails or hangs is recorded, and the rest goes on; configurations can be overridden."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import sys
import threading
import time

import jax
import pytest

from natjax.presets import PRESETS
from natjax_kernels import neighborhood_attention
from natjax_kernels.fused.configurations import KERNELS, Case, Config, override
from natjax_kernels.plan import Window
from natjax_kernels.triton.choice import candidates, choose

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import harness, provenance, tune  # noqa: E402
from benchmarks.gpu import __main__ as gpu  # noqa: E402
from benchmarks.gpu import cases, summary, timing  # noqa: E402


def run(tmp_path, name, code, limit=60.0):
    """Runs a section of this code, which finds its file's path in sys.argv; returns its status and its file."""
    path = tmp_path / f"gpu_{name}.json"
    code = f"import sys, time, pathlib; path = pathlib.Path(sys.argv[1])\nfrom benchmarks.harness import Report\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    status = harness.run_section(path, name, [sys.executable, "-c", code, str(path)], limit, environment)
    return status, json.loads(path.read_text())


def test_sections_that_fail_or_hang_are_recorded_with_what_they_have(tmp_path):
    row = "report = Report(path, 'x', {}, 60); report.measure(lambda: {'microseconds': 1}, case='first')\n"
    status, content = run(tmp_path, "fails", row + "raise RuntimeError('no such kernel')")
    assert status == content["status"] == "failed"
    assert content["exit_code"] == 1
    assert "no such kernel" in content["output"]
    assert [r["microseconds"] for r in content["rows"]] == [1]

    started = time.monotonic()
    status, content = run(tmp_path, "hangs", row + "time.sleep(600)", limit=3.0)
    assert time.monotonic() - started < 30
    assert status == content["status"] == "timed out"
    assert len(content["rows"]) == 1

    status, content = run(tmp_path, "dies", "import os; os.abort()")
    assert (status, content["rows"]) == ("failed", [])
    status, content = run(tmp_path, "works", row)
    assert (status, content["status"], len(content["rows"])) == ("complete", "complete", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"gpu_{n}.json" for n in ("dies", "fails", "hangs", "works")]


def test_what_a_hanging_section_started_ends_with_it(tmp_path):
    child = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)\ntime.sleep(600)"
    _, content = run(tmp_path, "hangs", child, limit=2.0)
    pid = int(content["output"].split()[-1])
    time.sleep(0.2)
    state = pathlib.Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_a_measurement_that_fails_costs_only_itself(tmp_path):
    report = harness.Report(tmp_path / "x.json", "x", {"device": "none"}, 60)
    report.measure(lambda: 1 / 0, case="bad")
    report.measure(lambda: {"microseconds": 2}, case="good")
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["rows"][0]["error"].startswith("ZeroDivisionError")
    assert content["rows"][1]["microseconds"] == 2
    late = harness.Report(tmp_path / "y.json", "y", {}, -1)
    assert late.time_is_up()
    assert "skipped" in late.measure(lambda: pytest.fail("it has no time"), case="late")


def test_what_runs_when_time_is_up_is_skipped_whatever_it_catches(tmp_path):
    def stubborn():
        try:
            time.sleep(60)
        except Exception:
            pytest.fail("interrupted as if something had gone wrong")
        return {"microseconds": 1}

    report = harness.Report(tmp_path / "x.json", "x", {}, 0.1)
    with harness.interrupted(0.2):
        assert report.measure(stubborn, case="long")["skipped"] == harness.OUT_OF_TIME
        assert report.measure(stubborn, case="next")["skipped"] == harness.OUT_OF_TIME
    with harness.interrupted(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_jobs_are_left_behind_when_time_is_up():
    release = threading.Event()
    started = time.monotonic()
    try:
        with pytest.raises(harness.TimeUp), harness.interrupted(0.2):
            timing.side_by_side({i: lambda: release.wait(60) for i in range(3)}, threads=1)
        assert time.monotonic() - started < 30
    finally:
        release.set()
    results = timing.side_by_side({"bad": lambda: 1 / 0, "good": lambda: 2}, threads=2)
    assert results["good"]() == 2
    with pytest.raises(ZeroDivisionError):
        results["bad"]()


def test_missing_packages_skip_what_needs_them(monkeypatch):
    missing = {"jax_triton", "optax", "transformers"}
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name in missing else name)
    assert gpu.lacking(gpu.SECTIONS, rehearse=False) == {
        **dict.fromkeys(("numerics", "op", "scaling"), "skipped: no jax_triton"),
        "models": "skipped: no jax_triton, optax",
        "peers": "without Swin and ConvNeXt: no transformers",
    }


def test_all_sections_end_within_eight_minutes():
    others = sum(seconds + harness.GRACE for section, seconds in gpu.SECTIONS.items() if section != "peers")
    assert others + 60 + harness.GRACE <= gpu.ALL < 480  # a minute and more is left for the peers


def test_summary_says_met_missed_and_not_measured(tmp_path):
    def row(case, implementation, microseconds, **more):
        labels = {"case": case, "dtype": "bfloat16", "implementation": implementation, "what": "forward"}
        return labels | {"microseconds": microseconds} | more

    op = [row("tiny level 1", "triton", 100.0, times_the_floor=2.5, target_times_the_floor=2.0, target_met=False)]
    peers = [row("tiny level 1", None, 400.0, peer="flex_attention", bias=True)]
    for name, rows in (("op", op), ("peers", peers)):
        (tmp_path / f"gpu_{name}.json").write_text(json.dumps({"rows": rows}))
    found = summary.summarise(tmp_path)
    verdicts = {target["target"]: (target["got"], target["met"]) for target in found["targets"]}
    assert verdicts["forward, tiny level 1, bfloat16: times the floor"] == (2.5, False)
    assert verdicts["forward, tiny level 1, bfloat16: flex_attention's time over ours"] == (4.0, True)
    assert verdicts["numerics: share of calls that pass"] == (None, None)
    text = summary.table(found)
    assert all(word in text for word in ("MISSED", "met", "not measured"))


def test_provenance_changes_with_the_kernels(tmp_path, monkeypatch):
    found = provenance.provenance(note="x")
    assert {"date", "device", "cpu", "python", "versions", "commit", "uncommitted_changes", "note"} <= set(found)
    monkeypatch.setattr(provenance, "KERNELS", tmp_path)
    for name in ("configs.json", "kernels.py"):
        (tmp_path / name).write_text("{}")
    before = provenance.kernels_hash()
    (tmp_path / "kernels.py").write_text("changed")
    assert provenance.kernels_hash() != before != found["kernels_sha256"]


def test_tuning_knows_every_attention_of_every_published_model():
    known = {(case.spatial, case.kernel_size, case.dilation) for case in cases.published()}
    wanted = set()
    for preset in PRESETS.values():
        for level in range(preset.config.num_levels):
            side = preset.image_size // 4 >> level
            for dilation in preset.config.layer_dilations(level):
                wanted.add(((side, side), (preset.config.kernel_size,) * 2, dilation))
    assert known == wanted
    assert len({case.name for case in cases.published()}) == len(known)


def test_configurations_are_merged_and_sorted(tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps({"Z": {"kept": {"tile": [1]}}}))
    one = Config((4, 4), None, 64, True, 4)
    tune.merge(path, "A", "b", one)
    tune.merge(path, "A", "a", dataclasses.replace(one, num_warps=2))
    content = json.loads(path.read_text())
    assert list(content) == ["A", "Z"]
    assert list(content["A"]) == ["a", "b"]
    assert content["Z"] == {"kept": {"tile": [1]}}
    assert content["A"]["a"]["num_warps"] == 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_overriding_configuration_is_what_the_op_uses(kernel, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    case = Case(kernel, (8, 8), Window((3, 3), (1, 1), (1, 1), (False, False)), 16, "float32", False, 90)
    tokens = jax.ShapeDtypeStruct((1, 8, 8, 1, 16), "float32")

    def op(q, k, v):
        return neighborhood_attention(q, k, v, kernel_size=3, implementation="triton")

    def program():
        text = str(jax.make_jaxpr(lambda *x: jax.vjp(op, *x)[1](x[0]))(tokens, tokens, tokens))
        return re.sub(r"0x[0-9a-f]+", "", text)  # addresses of functions

    chosen = choose(case, "cpu")
    other = next(c for c in candidates(case) if c.tile != chosen.tile)
    before = program()
    assert program() == before
    with override(case, other):
        assert choose(case, "cpu") == other
        assert program() != before
        with override(case, chosen):
            assert choose(case, "cpu") == chosen
        assert choose(case, "cpu") == other
    assert choose(case, "cpu") == chosen
