"""The CPU benchmark: the peer computes what the op does, figures fit together, what cannot run is told. No time is asserted."""

import contextlib
import importlib
import json
import sys

import numpy as np
import pytest

from benchmarks import sections, tables
from benchmarks.cpu import models, op, parts, peers
from benchmarks.harness import OUT_OF_TIME, RESULTS, Options, Report
from natjax import benchmarking
from natjax.flops import count_macs
from natjax.presets import get_config


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "rows.json", "test", {}, 60.0)


@pytest.mark.once
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


@pytest.mark.once
def test_the_masked_model_has_all_of_nats_parameters():
    pytest.importorskip("torch")
    from benchmarks.cpu import peers
    from natjax_convert.shapes import count_parameters

    for name, side in (("nat_mini", 224), ("nat_base", 224), ("upernet_nat_mini", 448)):
        config, model = get_config(name), peers.make("sdpa", name, side)
        kind = "segmentation" if name.startswith("upernet") else "classifier"
        assert sum(p.numel() for p in model.parameters()) == count_parameters(config, kind)


@pytest.mark.once
def test_cases_of_the_op(report):
    op.measure_group(report, "small", [op.Case("", 1, (14, 14), 2, 8, 7), op.Case("", 1, (64,), 1, 8, 99)], 0.0)
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


@pytest.mark.once
def test_what_has_no_time_is_recorded(tmp_path, monkeypatch):
    late = Report(tmp_path / "late.json", "test", {}, -1.0)
    cases = [op.Case("", 1, (side, side), 2, 8, 7) for side in (14, 28)]
    op.measure_group(late, "small", cases, 0.0)
    models.measure_case(late, 0, ["natjax", "sdpa"], "nat_mini", 2, False, 0.0)
    assert [row["skipped"] for row in late.content["rows"]] == [OUT_OF_TIME] * 4
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


@pytest.mark.once
@pytest.mark.parametrize(
    ("ended", "lack", "status", "code"),
    [
        ("", {}, "complete", 0),
        ("", {"skipped": "natten cannot be imported"}, "complete", 0),
        ("", {"skipped": OUT_OF_TIME}, "out of time", 1),
        ("", {"error": "ValueError: no"}, "with errors", 1),
        ("timed out", {"error": "ValueError: no"}, "timed out", 1),
    ],
)
def test_success_is_reported_of_what_was_measured_only(tmp_path, monkeypatch, capsys, ended, lack, status, code):
    command = importlib.import_module("benchmarks.cpu.__main__")

    def run_section(path, part, *_):
        rows = [{"kind": "start", **lack}]
        return {"section": part, "status": ended or sections.outcome(rows), "seconds": 1.0, "rows": rows}

    monkeypatch.setattr(sections, "run_section", run_section)
    for part in ("op", "start"):
        monkeypatch.setattr(sys, "argv", ["benchmarks.cpu", "--only", part, "--out", str(tmp_path)])
        assert command.main() == code
    out, err = capsys.readouterr()
    assert f"  {status} after 1.0 s: 1 rows" in err
    assert ("not complete" in out) == bool(code)
    results = json.loads((tmp_path / "cpu.json").read_text())
    assert {part: content["status"] for part, content in results.items()} == {"op": status, "start": status}
    assert "load_before_run" in results["op"]


@pytest.mark.once
def test_entrants_that_fail_or_are_missing_leave_the_others(report, monkeypatch):
    monkeypatch.setattr(models, "Worker", Idle)
    monkeypatch.setattr(peers, "missing", lambda entrant: "it lacks" if entrant == "convnext" else None)
    models.measure_case(report, 0, ["natjax", "swin", "convnext", "sdpa"], "nat_mini", 2, False, 0.0)
    rows = report.content["rows"]
    assert [row["entrant"] for row in rows if row["kind"] == "time"] == ["natjax", "sdpa"]
    said = tables.section("models", report.content)
    assert (
        "\n- RuntimeError: no such thing: kind first call, entrant swin, case 0, model nat_mini, batch 2, what inference"
        in said
    )
    assert "\n- it lacks: " in said


@pytest.mark.once
def test_an_entrant_that_dies_while_it_is_timed_ends_its_case_alone(report, monkeypatch):
    class Dying(Idle):
        def run(self):
            raise RuntimeError("the process of natjax ended with exit code -9")

    monkeypatch.setattr(models, "Worker", Dying)
    monkeypatch.setattr(peers, "missing", lambda entrant: None)
    models.measure_case(report, 0, ["natjax", "sdpa"], "nat_mini", 2, False, 0.0)
    errors = [row["error"] for row in report.content["rows"] if row["kind"] == "time"]
    assert errors == ["the process of natjax ended with exit code -9"] * 2


TRACES = {"attention": " log ", "norms": " rsqrt ", "GELU": " erf ", "convolutions": " concatenate["}  # in its program


@pytest.mark.parametrize("part", [*parts.WITHOUT])
def test_steps_lack_what_they_say(part):
    """And gradients reach every parameter all the same: what stands in for a part depends on all that the part does."""
    import jax
    from flax import nnx

    from natjax_train import optim

    whole_optimizer = optim.make_optimizer
    config = get_config("nat_mini", embed_dim=8, depths=(1, 1), num_heads=(1, 1), kernel_size=3)
    pixels = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)

    def gradients():
        graphdef, params = benchmarking.random_model(config, "float32", "float32")
        gradients = jax.grad(lambda params: nnx.merge(graphdef, params)(pixels).logits[0, 0])
        return str(jax.make_jaxpr(gradients)(params)), lambda: jax.jit(gradients)(params)

    whole, _ = gradients()
    with parts.WITHOUT[part]():
        assert (optim.make_optimizer is whole_optimizer) == (part != "AdamW")
        lacking, run = gradients()
        kept = {name: lacking.count(trace) == whole.count(trace) for name, trace in TRACES.items()}
        assert kept == {name: name != part for name in TRACES}
        for path, gradient in jax.tree.leaves_with_path(run()):
            assert np.abs(gradient).max() > 0, path
    assert gradients()[0] == whole


@pytest.mark.once
def test_shares_of_a_step_are_what_its_absence_saves(report, monkeypatch):
    class Timed(Idle):
        def __init__(self, prepare, lacks):
            self.row = {"compile_seconds": 1.0, "memory_bytes": 10**6}
            self.run = lambda: {"attention": 0.6, "AdamW": 1.02}.get(lacks, 1.0)

    monkeypatch.setattr(parts, "Worker", Timed)
    monkeypatch.setattr(parts, "interleaved", lambda runs, **_: {name: [run()] * 3 for name, run in runs.items()})
    parts.measure_step(report, Options())
    whole, *rows = report.content["rows"]
    assert (whole["kind"], whole["name"]) == ("compile", "whole")
    assert {row["name"]: row["share"] for row in rows if row["share"]} == {"attention": 0.4, "AdamW": -0.02}
    assert [row["name"] for row in rows] == [*parts.WITHOUT]


@pytest.mark.once
def test_a_models_figures_are_beside_natjaxs_of_the_same_case():
    figures = models.row("swin", "nat_tiny", 8, [0.75, 0.75], [0.5, 0.5])
    assert (figures["images_per_second"], figures["ratio"]) == (10.67, 1.5)
    gflops = count_macs(get_config("nat_tiny"), (224, 224)) / 1e9
    assert figures["ratio_per_gflop"] == pytest.approx(1.5 * peers.GFLOPS["swin"] / gflops, abs=0.01)


@pytest.mark.once
def test_recorded_results_are_tables_and_a_picture(tmp_path):
    results = json.loads((RESULTS / "cpu.json").read_text())
    for part, number in {"floor": 2, "parts": 2, "step": 1, "op": 1, "start": 2, "models": 2}.items():
        assert tables.section(part, results[part]).count("| --- |\n") == number, part
    tables.draw(results, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").stat().st_size > 1000
