"""The CPU benchmark: the peer computes what the op does, figures fit together, what cannot run is told. No time is asserted."""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.cpu import models, op, peers, step, summary, targets, timing  # noqa: E402
from benchmarks.cpu.worker import Worker  # noqa: E402
from benchmarks.harness import OUT_OF_TIME, Report, write  # noqa: E402
from natjax.cli import bench  # noqa: E402
from natjax.presets import get_config  # noqa: E402


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "rows.json", "test", {}, 60.0)


def test_runs_are_timed_in_turn_each_after_a_run_of_its_own():
    order = []

    def run(name):
        order.append(name)
        time.sleep(1.1 * timing.SAMPLE)  # so long that a sample is one run

    times = timing.interleaved({name: lambda name=name: run(name) for name in "AB"}, seconds=0.0, least=3)
    assert [len(found) for found in times.values()] == [3, 3]
    assert "".join(order) == "AABB" * 4  # at first they warm up
    row = timing.spread([0.001, 0.002, 0.003, 0.004, 0.1])
    assert (row["milliseconds"], row["samples"]) == (3.0, 5)


@pytest.mark.parametrize("side", [7, 14, 28])
def test_the_masked_peer_is_neighborhood_attention(side):
    torch = pytest.importorskip("torch")
    import jax.numpy as jnp

    from benchmarks.cpu.masked import Attention
    from natjax_kernels import neighborhood_attention

    torch.manual_seed(0)
    attention, x = Attention(16, 2, 7, side), torch.randn(2, side, side, 16)
    with torch.no_grad():
        attention.output.weight.copy_(torch.eye(16))
        attention.output.bias.zero_()
        qkv = attention.qkv(x).view(2, side, side, 3, 2, 8).numpy()
        got = [attention.train(mode)(x).numpy() for mode in (True, False, False)]
        rpb = jnp.asarray(attention.rpb.numpy())
    want = neighborhood_attention(
        *(jnp.asarray(qkv[..., i, :, :]) for i in range(3)), kernel_size=7, rpb=rpb, implementation="reference"
    )
    for one in got:
        np.testing.assert_allclose(one, np.reshape(want, one.shape), atol=1e-6)


def test_the_masked_model_has_all_of_nats_parameters():
    pytest.importorskip("torch")
    from benchmarks.cpu.masked import MaskedNat
    from natjax.model_info import count_parameters

    for name in ("nat_mini", "nat_base"):
        model = MaskedNat(get_config(name), 224)
        assert sum(p.numel() for p in model.parameters()) == count_parameters(get_config(name))


def test_cases_of_the_op(report):
    op.measure_group(report, "small", [op.Case((1, 14, 14, 2, 8)), op.Case((1, 64, 1, 8), 99)], 0.0)
    failed, row = report.content["rows"]
    assert "ValueError" in failed["error"]
    assert row["shape"] == (1, 14, 14, 2, 8)
    for what in ("forward", "both"):
        assert row[what]["nanoseconds_per_token"] == pytest.approx(row[what]["milliseconds"] * 1e6 / 196, rel=0.01)


class Idle(contextlib.AbstractContextManager):
    """A worker that has nothing to do."""

    row = {"seconds": 1.0}  # noqa: RUF012

    def __init__(self, prepare, entrant, *_):
        if entrant == "swin":
            raise RuntimeError("no such thing")

    def run(self):
        pass

    def __exit__(self, *_):
        pass


def test_what_has_no_time_is_recorded(tmp_path, monkeypatch):
    late = Report(tmp_path / "late.json", "test", {}, -1.0)
    cases = [op.Case((1, 14, 14, 2, 8)), op.Case((1, 28, 28, 2, 8))]
    op.measure_group(late, "small", cases, 0.0)
    models.measure_case(late, 0, ["natjax", "sdpa"], "nat_mini", 2, False, 0.0)
    assert [row["skipped"] for row in late.content["rows"]] == [OUT_OF_TIME] * 4
    assert [row.get("shape") or row["entrant"] for row in late.content["rows"]] == [
        *(case.shape for case in cases),
        "natjax",
        "sdpa",
    ]

    report = Report(tmp_path / "rows.json", "test", {}, 60.0)

    class Last(Idle):  # time is up behind the first of them
        def __init__(self, *arguments):
            super().__init__(*arguments)
            monkeypatch.setattr(report, "time_is_up", lambda: True)

    monkeypatch.setattr(models, "Worker", Last)
    models.measure_case(report, 0, ["natjax", "sdpa"], "nat_mini", 2, False, 0.0)
    assert [(row["kind"], row["entrant"], row.get("skipped")) for row in report.content["rows"]] == [
        ("first call", "natjax", None),
        ("first call", "sdpa", OUT_OF_TIME),
        ("time", "natjax", OUT_OF_TIME),
    ]


ROWS = {
    "floor": {"kind": "product", "name": "level 1 qkv"},
    "parts": {"kind": "compile", "batch": 8},
    "step": {"kind": "compile", "name": "attention"},
    "op": {"group": "sides", "shape": [1, 448, 448, 2, 32], "kernel_size": 7, "dilation": 1},
    "start": {"kind": "start", "entrant": "natjax", "repeat": 0},
    "models": {"kind": "time", "model": "nat_tiny", "batch": 8, "what": "inference", "entrant": "natjax"},
}


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("floor", "product, level 1 qkv"),
        ("parts", "compile, batch 8"),
        ("step", "compile, attention"),
        ("op", "sides, 1x448x448x2x32, kernel size 7, dilation 1"),
        ("start", "start, natjax, repeat 0"),
        ("models", "time, nat_tiny, batch 8, inference, natjax"),
    ],
)
def test_every_part_tells_what_it_lacks_and_why(part, what):
    rows = [{**ROWS[part], "error": "ValueError: two\nlines"}, *[{**ROWS[part], "skipped": OUT_OF_TIME}] * 8]
    said = summary.section(part, {"rows": rows, "status": "failed", "output": "Traceback: no such thing\n"})
    assert f"\n- ValueError: two lines: {what}\n" in said
    assert f"- {OUT_OF_TIME}: {what}; " in said
    assert f"{what}; and 2 more\n" in said
    assert said.endswith(
        "**This part is not complete: failed.** The end of its output:\n\n```\nTraceback: no such thing\n```"
    )
    assert "Load" not in said
    quiet = summary.section(part, {"rows": [], "status": "complete", "load_before_run": 0.4})
    assert "Load" not in quiet
    assert "not complete" not in quiet
    assert "Load of the machine before the run: 1.3." in summary.section(part, {"rows": [], "load_before_run": 1.29})


@pytest.mark.parametrize(
    ("ended", "lack", "status", "code"),
    [
        ("complete", {}, "complete", 0),
        ("complete", {"skipped": "natten cannot be imported"}, "complete", 0),
        ("complete", {"skipped": OUT_OF_TIME}, "out of time", 1),
        ("complete", {"error": "ValueError: no"}, "with errors", 1),
        ("timed out", {"error": "ValueError: no"}, "timed out", 1),
    ],
)
def test_success_is_reported_of_what_was_measured_only(tmp_path, monkeypatch, capsys, ended, lack, status, code):
    command = importlib.import_module("benchmarks.cpu.__main__")

    def run_section(path, part, *_):
        write(path, {"section": part, "status": ended, "seconds": 1.0, "rows": [{**ROWS[part], **lack}]})

    monkeypatch.setattr(command, "run_section", run_section)
    monkeypatch.setattr(sys, "argv", ["benchmarks.cpu", "--only", "op", "--out", str(tmp_path)])
    assert command.main() == code
    out, err = capsys.readouterr()
    assert f"  {status} after 1.0 s: 1 rows" in err
    assert ("not complete" in out) == bool(code)
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert results["op"]["status"] == status
    assert "load_before_run" in results["op"]

    monkeypatch.setattr(sys, "argv", ["benchmarks.cpu", "--only", "start", "--out", str(tmp_path)])
    assert command.main() == code
    assert list(json.loads((tmp_path / "cpu.json").read_text())) == ["op", "start"]


@pytest.mark.parametrize("text", ["", '{"op": {"rows": [', "[1]", "3"])
def test_damaged_results_are_told_and_start_afresh(tmp_path, capsys, text):
    command = importlib.import_module("benchmarks.cpu.__main__")
    (tmp_path / "cpu.json").write_text(text)
    assert command.read(tmp_path / "cpu.json") == {}
    assert "cpu.json is empty or damaged" in capsys.readouterr().err
    assert command.read(tmp_path / "gone.json") == {}
    assert capsys.readouterr().err == ""


def test_entrants_that_fail_leave_the_others(report, monkeypatch):
    monkeypatch.setattr(models, "Worker", Idle)
    monkeypatch.setattr(peers, "missing", lambda entrant: "it lacks" if entrant == "convnext" else None)
    models.measure_case(report, 0, ["natjax", "swin", "convnext", "sdpa"], "nat_mini", 2, False, 0.0)
    rows = report.content["rows"]
    assert [row["entrant"] for row in rows if row["kind"] == "time"] == ["natjax", "sdpa"]
    said = summary.section("models", report.content)
    about = "first call, nat_mini, batch 2, inference"
    assert f"- RuntimeError: no such thing: {about}, swin\n- it lacks: {about}, convnext\n" in said
    assert len([line for line in said.splitlines() if line.startswith("| nat_mini")]) == 2


def test_an_entrant_that_dies_while_it_is_timed_ends_its_case_alone(report, monkeypatch):
    class Dying(Idle):
        def run(self):
            raise RuntimeError("the process of natjax ended with exit code -9")

    monkeypatch.setattr(models, "Worker", Dying)
    monkeypatch.setattr(peers, "missing", lambda entrant: None)
    models.measure_case(report, 0, ["natjax", "sdpa"], "nat_mini", 2, False, 0.0)
    errors = [row["error"] for row in report.content["rows"] if row["kind"] == "time"]
    assert errors == ["the process of natjax ended with exit code -9"] * 2


ENTRANT = """
import os


def prepare(what):
    if what == "broken":
        raise ValueError("no such thing")
    if what == "dies":
        os._exit(3)
    return lambda: open(what, "a").write("ran in %d\\n" % os.getpid()), {"prepared in": os.getpid()}
"""


def test_a_worker_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "some_entrant.py").write_text(ENTRANT)
    monkeypatch.syspath_prepend(tmp_path)
    prepare = importlib.import_module("some_entrant").prepare
    with pytest.raises(RuntimeError, match="ValueError: no such thing"):
        Worker(prepare, "broken")
    with pytest.raises(RuntimeError, match="the process of dies ended with exit code 3"):
        Worker(prepare, "dies")
    with Worker(prepare, str(tmp_path / "runs")) as worker:
        process = worker.row["prepared in"]
        worker.run()
        worker.run()
        assert (tmp_path / "runs").read_text() == f"ran in {process}\n" * 2
        assert process != os.getpid()
        os.kill(process, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended with exit code -9"):
            worker.run()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


TRACES = {"attention": " log ", "norms": " rsqrt ", "GELU": " erf ", "convolutions": " concatenate["}  # in its program


@pytest.mark.parametrize("part", [*step.WITHOUT])
def test_steps_lack_what_they_say(part):
    """And gradients reach every parameter all the same: what stands in for a part depends on all that the part does."""
    import jax
    import optax
    from flax import nnx

    config = get_config("nat_mini", embed_dim=8, depths=(1, 1), num_heads=(1, 1), kernel_size=3)
    pixels = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)

    def gradients():
        graphdef, params = bench.random_model(config, "float32", "float32")
        gradients = jax.grad(lambda params: nnx.merge(graphdef, params)(pixels).logits[0, 0])
        return str(jax.make_jaxpr(gradients)(params)), lambda: jax.jit(gradients)(params)

    whole, _ = gradients()
    with step.WITHOUT[part]():
        assert (optax.adamw is optax.sgd) == (part == "AdamW")
        lacking, run = gradients()
        kept = {name: lacking.count(trace) == whole.count(trace) for name, trace in TRACES.items()}
        assert kept == {name: name != part for name in TRACES}
        for path, gradient in jax.tree.leaves_with_path(run()):
            assert np.abs(gradient).max() > 0, path
    assert gradients()[0] == whole


def test_shares_of_a_step_are_what_its_absence_saves(report, monkeypatch):
    class Timed(Idle):
        def __init__(self, prepare, lacks):
            self.row = {"compile_seconds": 1.0, "memory_bytes": 10**6}
            self.run = lambda: {"attention": 0.6, "AdamW": 1.02}.get(lacks, 1.0)

    monkeypatch.setattr(step, "Worker", Timed)
    monkeypatch.setattr(step, "interleaved", lambda runs, **_: {name: [run()] * 3 for name, run in runs.items()})
    step.measure(report, quick=False)
    whole, *rows = report.content["rows"]
    assert (whole["kind"], whole["name"]) == ("compile", "whole")
    assert {row["name"]: row["share"] for row in rows if row["share"]} == {"attention": 0.4, "AdamW": -0.02}
    assert [row["name"] for row in rows] == [*step.WITHOUT]
    assert "| attention | 600.0 | 1000.0 | 40% | 1.0 | 1 |" in summary.section("step", report.content)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "natten" else name)
    assert peers.missing("hf natten").startswith("natten cannot be imported")
    assert peers.missing("swin compiled") is None


def test_targets_and_tables_of_nothing_and_of_something(tmp_path):
    assert {t.verdict for t in targets.targets({})} == {"not measured"}
    labels = {"kind": "time", "model": "nat_tiny", "batch": 8, "what": "inference"}
    figures = {"milliseconds": 1.0, "p95_milliseconds": 2.0, "ratio": 5.0}
    figures |= {"images_per_second": 8.0, "images_per_second_per_gflop": 1.0}
    rows = [
        {**labels, **figures, "entrant": "hf natten", "gigamacs_per_image": 4.0},
        {**labels, **figures, "entrant": "natjax", "gigamacs_per_image": 4.0},
        {**labels, **figures, "entrant": "swin", "gigamacs_per_image": 8.0, "ratio": 0.5},
        {**labels, **figures, "entrant": "swin compiled", "gigamacs_per_image": 8.0, "ratio": 0.7},
    ]
    calls = [{**row, "kind": "first call", "seconds": 7.0} for row in rows]
    results = {"models": {"rows": [*calls, *rows]}}
    verdicts = {t.name: t.verdict for t in targets.targets(results)}
    assert [t.got for t in targets.targets(results) if "Swin" in t.name] == [None, 1.0]
    assert verdicts["nat_tiny, batch 8, inference: times as fast as on NATTEN"] == "met"
    assert verdicts["nat_tiny, batch 8: images/s per GMAC over Swin-Tiny's"] == "missed"
    assert verdicts["nat_tiny: seconds to compile"] == "missed"
    assert "| nat_tiny | 8 | inference | natjax | 1.0 |" in summary.markdown(results)
    summary.draw(results, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").stat().st_size > 1000
