"""The GPU benchmark, without a GPU: what is measured, what is left out and why, and that peers compute what the op does."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import ROOT, calls
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import kernels, numerics, op, tuner
from benchmarks.harness import Options, Report
from natjax.presets import PRESETS
from natjax_kernels.cases import FEATURES, Case, levels, published
from natjax_kernels.fused import band, configurations
from natjax_kernels.fused.configurations import KERNELS, Config
from natjax_kernels.triton import support
from natjax_kernels.triton.choice import estimate, programs

pytestmark = pytest.mark.once


def test_sections_need_a_gpu_and_its_packages_but_in_rehearsals():
    full, rehearsal = gpu.sections(rehearse=False), gpu.sections(rehearse=True)
    assert all(section.gpu for section in full.values())
    assert not any(section.gpu or "jax_triton" in section.needs for section in rehearsal.values())
    assert {name for name, section in full.items() if "jax_triton" in section.needs} == set(full) - {"peers"}


def test_all_sections_end_within_ten_minutes():
    *others, peers = gpu.sections(False).values()
    assert sum(section.seconds + section.grace for section in others) + 60 + peers.grace <= gpu.ALL < 600


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("op", {"status": "out of time", "rows": [{"microseconds": 1.0}, {"skipped": "no time"}]}, 0),
        ("op", {"status": "with errors", "rows": [{"error": "no"}]}, 1),
        ("op", {"status": "failed", "rows": [{"microseconds": 1.0}]}, 1),
        ("numerics", {"status": "complete", "rows": [{"passed": False}], "passed": False}, 1),
        ("op", {"status": "skipped", "reason": "no triton", "rows": []}, 1),
        ("op", {"status": "not asked for", "rows": []}, 0),
        ("peers", {"status": "skipped", "reason": "no torch", "rows": []}, 0),
        ("peers", {"status": "timed out", "rows": []}, 1),
    ],
)
def test_success_is_right_figures_of_all_sections(tmp_path, monkeypatch, name, content, code):
    monkeypatch.setattr(gpu, "run", lambda *_: [(name, content)])
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--sections", name, "--out", str(tmp_path)])
    assert gpu.main() == code
    assert json.loads((tmp_path / "gpu_unknown.json").read_text()) == {name: content}


def test_devices_have_files_of_their_own_and_results_of_other_machines_are_added(tmp_path, monkeypatch, capsys):
    def content(device, case):
        origin = {"device": device, "date": "2026-11-27"}
        return {"status": "complete", "provenance": origin, "rows": [{"case": case, "microseconds": 1.0}]}

    brought = tmp_path / "brought.json"
    brought.write_text(json.dumps({"op": content("NVIDIA H200", "level 2"), "kernels": content("NVIDIA H200", "a")}))
    gpu.add(tmp_path, "op", content("NVIDIA H100 80GB HBM3", "level 1"))
    gpu.add(tmp_path, "op", content("NVIDIA H200", "level 1"))
    lost = {"status": "failed", "rows": []}
    assert gpu.add(tmp_path, "op", lost, "NVIDIA H200").name == "gpu_nvidia_h200.json"
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("a summary measures nothing"))
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", str(tmp_path), "--summary", str(brought)])
    assert gpu.main() == 0
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("gpu_*.json")}
    cases = {name: [row["case"] for row in results["op"]["rows"]] for name, results in found.items()}
    assert cases == {"gpu_nvidia_h100_80gb_hbm3.json": ["level 1"], "gpu_nvidia_h200.json": ["level 1", "level 2"]}
    assert found["gpu_nvidia_h200.json"]["kernels"]["rows"] == content("", "a")["rows"]
    said = capsys.readouterr().out
    assert "## op (NVIDIA H100 80GB HBM3, 2026-11-27)" in said
    assert "## op (NVIDIA H200, 2026-11-27)" in said


def results(date, microseconds, device="NVIDIA H200", **more):
    origin = {"device": device, "date": date, **more}
    return {"status": "complete", "provenance": origin, "rows": [{"case": "a", "microseconds": microseconds}]}


def summary(monkeypatch, out, *files):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", str(out), "--summary", *map(str, files)])
    assert gpu.main() == 0
    return json.loads((out / "gpu_nvidia_h200.json").read_text())


def test_results_of_an_earlier_date_replace_none_of_a_later_one(tmp_path, monkeypatch, capsys):
    out, brought = tmp_path / "out", tmp_path / "brought.json"
    later = {"op": results("tuesday", 2.0, kernels_sha256="b"), "kernels": results("tuesday", 3.0)}
    for name, content in later.items():
        out.mkdir(exist_ok=True)
        gpu.add(out, name, content)
    brought.write_text(json.dumps({"op": results("monday", 1.0), "kernels": results("monday", 1.0)}))
    assert summary(monkeypatch, out, brought) == later
    assert "Results of monday are of other device, versions, flags or kernels" in capsys.readouterr().err


def test_what_a_run_left_that_was_ended_from_outside_is_taken_in(tmp_path, monkeypatch, capsys):
    """A partial file from elsewhere, and one in the folder, which the next run deletes, whatever it measures."""
    out, brought, left = tmp_path / "out", tmp_path / "x.partial.json", tmp_path / "out" / "gpu_kernels.partial.json"
    out.mkdir()
    brought.write_text(json.dumps(results("monday", 1.0) | {"section": "op", "status": "running"}))
    left.write_text(json.dumps(results("tuesday", 2.0) | {"section": "kernels", "status": "running"}))
    for _ in range(2):
        found = summary(monkeypatch, out, brought)
        rows = {
            name: [(row["microseconds"], content["status"]) for row in content["rows"]]
            for name, content in found.items()
        }
        assert rows == {"op": [(1.0, "ended from outside")], "kernels": [(2.0, "ended from outside")]}
    assert "This section is not complete: ended from outside." in capsys.readouterr().out
    (out / "gpu_nvidia_h200.json").unlink()
    monkeypatch.setattr(gpu, "run", lambda *_: [("op", results("wednesday", 3.0))])
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--sections", "op", "--out", str(out)])
    assert gpu.main() == 0
    found = json.loads((out / "gpu_nvidia_h200.json").read_text())
    assert {name: content["rows"][0]["microseconds"] for name, content in found.items()} == {"kernels": 2.0, "op": 3.0}
    assert not left.exists()


SHARES = """
import json

import benchmarks
import jax
from benchmarks.gpu import numerics
from natjax_kernels.triton.launch import Launch

found, shares = {}, Launch.shares


def record(launch, batch, programs):
    runs, share = shares(launch, batch, programs)
    found[name].append([share, int((runs[..., 1] - runs[..., 0]).max())])
    return runs, share


Launch.shares = record
for case in numerics.LARGE:
    for dtype in numerics.TOLERANCE:
        name = f"{case.name} {dtype}"
        found[name] = []
        arrays = jax.eval_shape(lambda: numerics.drawn(case, jax.random.key(0), dtype))
        jax.eval_shape(numerics.op(case, "triton"), arrays)
print(json.dumps(found))
"""


def interpreted(code):
    """Returns what code prints where kernels run in Triton's interpreter, as on a Hopper."""
    pytest.importorskip("triton")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_numerics_go_through_batches_and_runs_of_tiles():
    """As the batch of 128 that is timed does; and in one call all kernels have programs of several tiles."""
    level_1, many_heads = numerics.LARGE
    assert (level_1.batch, level_1.spatial) == (128, (56, 56))
    found = interpreted(SHARES)
    for dtype in numerics.TOLERANCE:
        both = [*found[f"{level_1.name} {dtype}"], *found[f"{many_heads.name} {dtype}"]]
        assert len(both) == (8 if dtype == "float32" else 6)  # whose bias's gradient is a launch of its own
        assert all(share > 1 for share, _ in both)
        assert all(longest > 1 for _, longest in found[f"{many_heads.name} {dtype}"])


def test_runs_agree_bitwise_or_not_at_all():
    one = {"out": np.ones((2, 3), np.float32), "drpb": np.zeros(2, np.float16)}
    assert numerics.identical(one, {name: x.copy() for name, x in one.items()})
    assert not numerics.identical(one, one | {"drpb": -one["drpb"]})  # minus zero
    assert not numerics.identical(one, one | {"out": np.nextafter(one["out"], np.float32(2))})


def test_numerics_check_every_feature_that_the_kernels_have():
    gpu = support.GPU(90, "NVIDIA H200", 132)
    had = [case for case in FEATURES if support.why_not_on(case.problem("float32"), gpu) is None]
    checked = {case.name for case in (*numerics.CALLS, *numerics.FEATURES)}
    assert {case.name for case in had} <= checked
    assert set(numerics.FEATURES) <= set(had)


def test_inputs_are_drawn_without_compiling_once_the_call_is_compiled():
    import jax

    case, key = Case("", 1, (6, 5), 1, 8, 3), jax.random.key(0)
    op.compile_op(case, "both", "bfloat16", "xla", 3, key)
    programs = calls.draw._cache_size()
    sets = calls.arguments(case, key, 3, "bfloat16")
    assert calls.draw._cache_size() == programs
    arrays = [np.asarray(x, np.float32) for one in sets for x in one]
    assert [x.shape for x in sets[0]] == [case.shape] * 3 + [case.rpb_shape, case.shape]
    assert len({x.tobytes() for x in arrays}) == len(arrays) == 15


def described(kernel="fwd"):
    """Returns what a configuration of a kernel is for at level 1 on a Hopper."""
    level = levels(128, 2, "tiny")[0]
    return configurations.Case(kernel, level.spatial, level.window, 32, "bfloat16", True, 90)


def test_alternatives_differ_from_what_is_chosen_and_fit_the_kernels():
    found = {kernel: kernels.alternatives(described(kernel), estimate(described(kernel))) for kernel in KERNELS}
    assert found["fwd"]["4 x 4 resident, 1 warps"] == Config((4, 4), None, 128, True, 1, programs=8)
    assert found["fwd"]["band, 2 stages"].design == "band"
    assert "chunks of 64" in found["bwd_dkv"]
    for kernel, others in found.items():
        assert len({estimate(described(kernel)), *others.values()}) == 1 + len(others)
    chosen = found["fwd"]["band, 2 stages"]
    others = kernels.alternatives(described(), chosen)
    assert "band, 1 stages" in others
    assert len({chosen, *others.values()}) == 1 + len(others)
    assert all(kernels.computes(described(), config) for config in others.values())


def test_alternatives_run_as_many_programs_as_a_multiprocessor_holds_of_them():
    """A chosen number, which may be measured, is of the chosen configuration and its other stages alone."""
    chosen = Config((7, 8), None, 64, True, 4, programs=1)
    for kernel in KERNELS:
        case = described(kernel)
        others = kernels.alternatives(case, chosen)
        assert {others.pop(f"{n} stages").programs for n in (1, 3)} == {1}
        assert all(c.programs == programs(case, c) for c in others.values() if c.design == "tiles")
    assert kernels.alternatives(described(), chosen)["8 x 8"].programs == 3
    assert kernels.alternatives(described(), chosen)["table streamed"].programs == 3


def test_predictions_stand_beside_the_configurations_that_they_are_of(monkeypatch, tmp_path):
    """Not beside a measured one."""
    case = calls.groups(Options(small=True))["tiny"][0]

    def choose(case, device):
        found = estimate(case)
        return dataclasses.replace(found, num_stages=4) if case.kernel == "bwd_dkv" else found

    replaced = {
        "copy_rate": lambda small: 1.0,
        "Alone": lambda *_: None,
        "capability": lambda: 90,
        "device_kind": lambda: "",
        "tuned": lambda _, dtype, kernel: dataclasses.replace(described(kernel), dtype=dtype),
        "choose": choose,
        "compiled": lambda *_: None,
        "row": lambda *_: {},
        "predictions": lambda _: {(kernels.level(case), kernel): {"predicted_at_least": 1.0} for kernel in KERNELS},
    }
    for name, replacement in replaced.items():
        monkeypatch.setattr(kernels, name, replacement)
    report = Report(tmp_path / "x.json", "kernels", {}, 60)
    kernels.measure(report, Options(small=True, threads=1))
    found = {(row["kernel"], row["config"]) for row in report.content["rows"] if "predicted_at_least" in row}
    assert found == {("fwd", kernels.CHOSEN), ("bwd_dq", kernels.CHOSEN), ("bwd_dq", kernels.LESS)}


def test_fused_calls_that_fail_leave_the_times_of_xla(monkeypatch, tmp_path):
    def launch(*_):
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(op, "smallest_fused_call", launch)
    report = Report(tmp_path / "x.json", "op", {}, 60)
    op.time_cases(report, Options(small=True), [(calls.SMALL["tiny"], ("xla", "bfloat16"))])
    assert report.content["ceilings"]["smallest_fused_call_error"] == "RuntimeError: no ptxas"
    assert [row["what"] for row in report.content["rows"] if row["microseconds"] > 0] == ["forward", "both"]


def test_the_kernel_that_runs_behind_another_has_its_own_time():
    def program(seconds):
        alone = types.SimpleNamespace(case="level 1", error=lambda *_: 1e-3, times=lambda _: [seconds] * 3)
        return lambda: (alone, Config((4, 4), None, 64, True, 4), None)

    before = {}
    with pytest.raises(ValueError, match="no time of bwd_dq"):
        kernels.row(program(5e-6), "bwd_dkv", kernels.CHOSEN, 1e-6, before)
    whole = kernels.row(program(4e-6), "bwd_dq", kernels.CHOSEN, 1e-6, before)
    assert not before
    kernels.row(program(3e-6), "bwd_dq", kernels.LESS, 1e-6, before)
    behind = kernels.row(program(5e-6), "bwd_dkv", "3 stages", 1e-6, before)
    assert (whole["microseconds"], behind["microseconds"], behind["times_the_floor"]) == (4.0, 2.0, 2.0)
    assert behind["configuration"]["tile"] == (4, 4)


def test_predictions_are_those_of_the_levels_that_are_timed():
    predicted = kernels.predictions("H200")
    named = [kernels.level(case) for case in levels(128, 2, "tiny", (8, 4, 2, 1))]
    assert set(predicted) == {(level, kernel) for level in named for kernel in KERNELS}
    assert all(found["predicted_at_least"] <= found["predicted_at_most"] for found in predicted.values())
    assert kernels.predictions(None) == {}


def test_floors_are_bytes_and_products_of_the_window():
    case, ceilings = levels(128, 2, "tiny")[0], {"copy_gigabytes_per_second": 4000.0, "matmul_teraflops": 800.0}
    found = calls.floors(case, "bfloat16", ceilings)
    tensor, scores = 128 * 56 * 56 * 2 * 32 * 2, 128 * 56 * 56 * 2 * 49
    assert found["forward"]["memory"] == pytest.approx(4 * tensor / 4e12 * 1e6)
    assert found["both"]["matrix"] == pytest.approx(7 * 2 * 32 * scores / 800e12 * 1e6)
    assert found["both"]["floor"] == found["both"]["memory"]


def test_cases_are_chosen_by_their_names():
    chosen = calls.groups(Options(cases=["tiny level 1*", "1-D*"]))
    names = {group: [case.name for case in found] for group, found in chosen.items()}
    assert names == {
        "tiny": ["tiny level 1"],
        "dilated": ["tiny level 1 dilation 8"],
        "large": ["1-D of 32768"],
        "base": [],
    }


def test_tuning_knows_every_attention_of_every_published_model():
    known = {(case.spatial, case.kernel_size, case.dilation) for case in published()}
    wanted = set()
    for preset in PRESETS.values():
        for level in range(preset.config.num_levels):
            side = preset.image_size // preset.config.patch_size >> level
            for dilation in preset.config.layer_dilations(level):
                wanted.add(((side, side), preset.config.kernel_size, dilation))
    assert known == wanted
    assert len({case.name for case in published()}) == len(known)


def test_configurations_are_merged_and_sorted(tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps({"Z": {"kept": {"tile": [1]}}}))
    one = Config((4, 4), None, 64, True, 4)
    tuner.merge(path, "A", "b", one)
    tuner.merge(path, "A", "a", dataclasses.replace(one, num_warps=2))
    content = json.loads(path.read_text())
    assert list(content) == ["A", "Z"]
    assert list(content["A"]) == ["a", "b"]
    assert content["Z"] == {"kept": {"tile": [1]}}
    assert content["A"]["a"]["num_warps"] == 2


CASES = [
    Case("even kernel, full blocks", 1, (1000,), 1, 16, 600, bias=False),
    Case("dilated, whole blocks", 1, (1024,), 2, 16, 5, 8),
    Case("uneven sides", 2, (20, 33), 2, 16, (9, 5), 2),
    Case("3-D", 1, (9, 6, 7), 2, 16, (3, 3, 5)),
    Case("3-D even", 1, (9, 6, 7), 1, 16, (8, 4, 6), bias=False),
]
FIELDS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # slow, and as exact
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flex_attention_computes_what_the_op_does(case, monkeypatch):
    """From the blocks that PyTorch would make."""
    torch = pytest.importorskip("torch")
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")
    import jax.numpy as jnp

    from benchmarks.gpu import peers

    def both(mask, tokens, place):
        ours = block_mask(mask, tokens, place, rows=2)
        theirs = flex_attention.create_block_mask(mask, None, None, tokens, tokens, device=place)
        assert ours.seq_lengths == theirs.seq_lengths
        assert [name for name in FIELDS if not torch.equal(getattr(ours, name), getattr(theirs, name))] == []
        return ours

    block_mask = peers.block_mask
    monkeypatch.setattr(peers, "block_mask", both)
    torch.manual_seed(0)
    inputs = [torch.randn((case.batch, case.heads, math.prod(case.spatial), case.channels)) for _ in range(3)]
    rpb = torch.randn(case.rpb_shape) if case.bias else None
    out = peers.flex(case, rpb, "cpu", compiled=False)(*inputs)
    query, key, value = (jnp.asarray(x.transpose(1, 2).reshape(case.shape).numpy()) for x in inputs)
    bias = None if rpb is None else jnp.asarray(rpb.numpy())
    want = calls.op(case, "forward", "reference")(query, key, value, bias)
    np.testing.assert_allclose(out.transpose(1, 2).reshape(case.shape).numpy(), want, atol=1e-5)


def test_natten_is_asked_for_the_window_of_a_case(monkeypatch):
    """By the names and the layout of its own function, which a stand-in has."""
    torch = pytest.importorskip("torch")
    import jax.numpy as jnp

    from benchmarks.gpu import peers

    def na2d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False):
        options = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation, "is_causal": is_causal}
        arrays = (jnp.asarray(x.numpy()) for x in (query, key, value))
        return neighborhood_attention(*arrays, **options, implementation="reference")

    from natjax_kernels import neighborhood_attention

    old, new = types.SimpleNamespace(__version__="0.17.5"), types.SimpleNamespace(na2d=na2d, HAS_LIBNATTEN=True)
    case = Case("", 1, (9, 7), 2, 4, (3, 2), (2, 1), stride=(1, 2), is_causal=(False, True), bias=False)
    inputs = [torch.randn(case.shape) for _ in range(3)]
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "natten", new)
    assert peers.without_natten(small=False) is None
    want = calls.op(case, "forward", "reference")(*(jnp.asarray(x.numpy()) for x in inputs), None)
    np.testing.assert_array_equal(peers.natten(case)(*inputs), want)
    monkeypatch.setitem(sys.modules, "natten", old)
    assert "0.17.5 is installed" in peers.without_natten(small=False)
    new.HAS_LIBNATTEN = False
    monkeypatch.setitem(sys.modules, "natten", new)
    assert "libnatten" in peers.without_natten(small=False)


ALONE = """
import dataclasses
import json

import benchmarks
from benchmarks.gpu import alone
from natjax_kernels.cases import Case
from natjax_kernels.triton import launch
from natjax_kernels.triton.choice import estimate

case = Case("", 2, (6, 7), 2, 16, 3)
call, launched, found = alone.Alone(case, "float32"), [], {}
launch_one = launch._interpret
launch._interpret = lambda name, *rest: launched.append((name, rest[-1].chunk)) or launch_one(name, *rest)
for kernel, bias in (("fwd", True), ("bwd_dq", True), ("bwd_dq", False), ("bwd_dkv", True)):
    chosen = estimate(alone.tuned(case, "float32", kernel))
    launched.clear()
    run = call.compile(kernel, dataclasses.replace(chosen, chunk=16), bias=bias)
    calls = run.func.as_text().count('custom_call_target="xla_ffi_python')
    found[f"{kernel} {bias}"] = [calls, (kernel, 16) in launched, call.error(kernel, run)]
half = alone.Alone(dataclasses.replace(case, batch=1), "bfloat16")
chosen = estimate(alone.tuned(case, "bfloat16", "bwd_dq"))
for bias in (True, False):
    text = half.compile("bwd_dq", chosen, bias=bias).func.as_text()
    found[f"bfloat16 {bias}"] = [chosen.resident, text.count('custom_call_target="xla_ffi_python')]
(results, *_) = run()
for wrong in (1.1, float("nan")):
    try:
        call.error("bwd_dkv", lambda: [[x * wrong for x in results]])
    except ArithmeticError as error:
        found[str(wrong)] = str(error)
print(json.dumps(found))
"""


def test_kernels_run_alone_in_the_configuration_that_is_asked_for_and_are_checked():
    found = interpreted(ALONE)
    assert "off by" in found.pop("1.1")
    assert "off by inf" in found.pop("nan")
    # With the table on chip the launch writes the bias's gradient whether or not it is summed.
    assert found.pop("bfloat16 True") == found.pop("bfloat16 False") == [True, 1]
    assert kernels.LESS.endswith("bias's gradient not summed")
    # Of each of four sets: the bias's gradient in float32 is a launch of its own, and bwd_dkv follows bwd_dq.
    assert {kernel: calls for kernel, (calls, *_) in found.items()} == {
        "fwd True": 4,
        "bwd_dq True": 8,
        "bwd_dq False": 4,
        "bwd_dkv True": 8,
    }
    assert all(configured and error < 1e-5 for _, configured, error in found.values())


def test_variants_change_one_thing_at_a_time():
    """But for programs, which follow warps: a multiprocessor holds another number of them."""
    case = described()
    config = Config((8, 8), None, 64, False, 4, programs=3)
    variants = tuner._variants(case, config)
    assert len(set(variants)) == len(variants)
    assert config not in variants
    assert {(c.num_warps, c.programs) for c in variants if c.num_warps != 4} == {(2, 6), (8, 1)}
    for variant in (c for c in variants if c.num_warps == 4):
        assert sum(a != b for a, b in zip(dataclasses.astuple(variant), dataclasses.astuple(config), strict=True)) == 1
    assert {c.programs for c in variants if c.num_warps == 4} == {2, 3, 4}
    assert {c.chunk for c in variants} == {32, 64, 128}
    resident = tuner._variants(case, dataclasses.replace(config, resident=True, chunk=128, programs=1))
    assert {c.chunk for c in resident} == {64, 128}
    assert min(c.programs for c in resident) == 1


def test_tuning_tries_variants_of_the_best_and_programs_of_what_ran(monkeypatch):
    """But none that the band design refuses, or that could not be timed."""
    case, timed = described(), []
    guess, others = estimate(case), kernels.alternatives(case, estimate(case))
    best, failing = others["band, 2 stages"], others["8 x 8"]

    def times(alone, kernel, configs, deadline, threads):
        timed.extend(configs)
        return {config: 1.0 + (config != best) for config in configs if config != failing}

    monkeypatch.setattr(tuner, "_times", times)
    monkeypatch.setattr(tuner, "tuned", lambda *_: case)
    alone = types.SimpleNamespace(case=None, dtype="bfloat16")
    assert tuner.tune(alone, "fwd", 5, math.inf, 1) == (case.key, best)
    assert len(set(timed)) == len(timed)
    assert {config for config in timed if config.design == "band"} == set(band.configurations(case))
    ran = [config for config in others.values() if config.design == "tiles" and config != failing]
    assert {dataclasses.replace(config, programs=config.programs + 1) for config in ran} <= set(timed)
    assert dataclasses.replace(failing, programs=failing.programs + 1) not in timed
    assert timed[0] == guess


def test_a_case_that_fails_ends_no_tuning(monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    from benchmarks import tune
    from benchmarks.gpu import alone

    def make(case, dtype):
        if case.name == "tiny level 1":
            raise MemoryError("too large")
        return case

    found = Config((4, 4), None, 64, True, 4)
    monkeypatch.setattr(alone, "Alone", make)
    monkeypatch.setattr(tuner, "tune", lambda alone, kernel, *_: (f"{alone.name} {kernel}", found))
    path, names = tmp_path / "configs.json", ["tiny level 1", "tiny level 2"]
    command = ["benchmarks.tune", "--configs", str(path), "--device-kind", "A", "--cases"]
    monkeypatch.setattr(sys, "argv", [*command, *names])
    tune.main()
    assert set(json.loads(path.read_text())["A"]) == {f"tiny level 2 {kernel}" for kernel in KERNELS}
    assert "MemoryError: too large" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, names[0]])
    with pytest.raises(SystemExit, match="Nothing could be timed"):
        tune.main()
