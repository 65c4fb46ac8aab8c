"""`natjax bench op`: figures that fit together, counts as the definition has them, one clear line for what goes wrong.

No time is asserted.
"""

import dataclasses
import json
import math
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

from natjax.benchmarking import Program, costs, in_turn, op
from natjax.cli import main
from natjax_kernels.cases import Case
from natjax_kernels.fused import band, configurations
from natjax_kernels.reference import neighbours
from natjax_kernels.triton import launch, support

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ["bench", "op", "--shape", "1,9,8,2,4", "--kernel", "3", "--seconds", "0.01"]
H100 = support.GPU(90, "", 132)
WINDOWS = [
    Case("1-D dilated", 2, (23,), 3, 4, 3, 4),
    Case("2-D even, causal", 1, (10, 11), 2, 4, (3, 4), is_causal=(True, False), bias=False),
    Case("2-D strided", 1, (11, 13), 1, 4, (5, 4), stride=(2, 4), is_causal=(False, True), bias=False),
    Case("3-D", 1, (5, 6, 7), 1, 4, 3, (1, 2, 1)),
]
STREAMED = Case("bias's gradient is a launch of its own", 3, (30, 40), 2, 32, 7)


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: JAX promotes in its dense attention of half precision."""
    return


@pytest.fixture(autouse=True)
def small_rates(monkeypatch):
    """What rates are measured with is small here; nothing is interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(op, "_COPIED", 1024)
    monkeypatch.setattr(op, "_SIDES", {"cpu": 16})


def arrays(problem):
    return problem.query, problem.key, problem.value, problem.rpb


def document(arguments, capsys):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_table(capsys):
    assert main(SMALL) == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        "1 map of 9 x 8 tokens, 2 heads of 4 channels, float32, forward, on cpu (cpu)\nkernel 3 x 3, with bias\n"
    )
    head, xla, dense = out.split("\n\n")[1].splitlines()
    assert head.split()[:4] == ["compile", "s", "p50", "ms"]
    assert xla.split()[0] == "xla"
    assert len(xla.split()) == 7
    assert dense.startswith("  dense attention ")
    assert out.endswith("\nxla: not triton, as the fused kernels run on NVIDIA GPUs and this is cpu\n")
    assert err == ""


@pytest.mark.parametrize("backward", [False, True])
def test_json(backward, capsys):
    arguments = [*SMALL, "--dtype", "bfloat16", "--implementation", "xla", "reference", *["--backward"] * backward]
    found = document(arguments, capsys)
    assert (found["shape"], found["kernel_size"], found["dtype"]) == ([1, 9, 8, 2, 4], [3, 3], "bfloat16")
    assert (found["bias"], found["backward"], found["device"]) == (True, backward, jax.devices()[0].device_kind)
    assert list(found["measured"]) == ["xla", "reference", "dense attention"]
    assert found["no_dense"] is None
    limits = [found["bytes"], found["flops"]]
    for limit in limits:
        assert limit["milliseconds"] == pytest.approx(limit["least"] / limit["per_second"] * 1e3)
    assert found["floor_milliseconds"] == max(limit["milliseconds"] for limit in limits)
    for row in found["measured"].values():
        assert 0 < row["p50_milliseconds"] <= row["p95_milliseconds"]
        assert row["times_the_floor"] == pytest.approx(row["p50_milliseconds"] / found["floor_milliseconds"])
        assert row["compile_seconds"] > 0
        assert row["memory_megabytes"] > 0
    assert found["measured"]["reference"]["useful_share"] == 9 / 72
    assert found["measured"]["reference"]["reason"] == "named by the caller"


def test_dense_attention_that_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(op, "_free_bytes", lambda: 3 * 2 * 72**2 * 4 - 1)
    found = document(SMALL, capsys)
    assert list(found["measured"]) == ["xla"]
    assert found["no_dense"].startswith("its scores take 0.0 GB")
    monkeypatch.setattr(op, "_free_bytes", lambda: 3 * 2 * 72**2 * 4)
    assert document(SMALL, capsys)["no_dense"] is None


def test_programs_compute_what_they_say():
    problem = Case("", 1, (6, 7), 2, 4, 3).problem("float32")
    out, (*gradients, d_rpb) = op.attention(problem, "xla", backward=True).run()
    assert out.shape == problem.query.shape
    assert [x.shape for x in (*gradients, d_rpb)] == [*[problem.query.shape] * 3, problem.rpb.shape]
    assert np.abs(d_rpb).max() > 0
    whole = Case("", 1, (6, 7), 2, 4, (6, 7), bias=False).problem("float32")  # windows that are the map
    np.testing.assert_allclose(op.attention(whole, "xla").run(), op.dense(whole).run(), rtol=1e-4, atol=1e-5)
    copy, nbytes = op.copying()
    copy.run()
    assert nbytes == 2 * (copy.memory_bytes - 4)  # in place; the number that is added is no part of it
    product, flops = op.multiplying("bfloat16")
    assert product.run().shape == (16, 16)
    assert flops == 2 * 16**3


def test_heads_that_share_keys(capsys):
    arguments = ["bench", "op", "--shape", "1,6,7,4,4", "--kernel", "3", "--seconds", "0.01", "--key-heads", "2"]
    found = document([*arguments, "--implementation", "xla", "--backward"], capsys)
    assert (found["shape"], found["key_heads"]) == ([1, 6, 7, 4, 4], 2)
    assert found["bytes"]["least"] == 3 * 4 * (4 + 2 + 2 + 4) * 6 * 7 * 4
    assert list(found["measured"]) == ["xla", "dense attention"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "4 heads of 4 channels (2 of keys)" in capsys.readouterr().out
    assert main([*arguments[:-1], "3", "--dry-run"]) == 1
    assert "heads that divide the 4 of query" in capsys.readouterr().err


def test_programs_are_timed_in_turn():
    log = []
    programs = {name: Program(lambda name=name: log.append(name), 0.0, None, calls=2) for name in "ab"}
    seen = []
    times = in_turn(programs, 1e-9, lambda *progress: seen.append(progress))
    assert "".join(log) == "aaabbb" * 3
    assert {name: len(x) for name, x in times.items()} == {"a": 3, "b": 3}
    assert seen == [(i + 1, 6) for i in range(6)]


def test_several_calls_are_in_flight_on_an_accelerator(monkeypatch):
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2,), "float32")).compile()
    on_cpu = op._in_flight(program, [(np.zeros(2, "f"),)], 0.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ready = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or ready(x))
    waited = []
    on_gpu = op._in_flight(program, [(np.zeros(2, "f"),), (np.ones(2, "f"),)], 0.0)
    assert (on_cpu.calls, on_gpu.calls) == (1, 8)
    waited.clear()
    assert float(on_gpu.run()[0]) == 2  # of the second set, as two runs of one call and one of eight end there
    assert len(waited) == 1


@pytest.mark.parametrize("case", WINDOWS, ids=lambda case: case.name)
def test_counts_are_those_of_the_definition(case):
    problem = case.problem("float32")
    scores = neighbours(problem.spatial, problem.window)[0].sum()
    assert costs.window_scores(problem) == scores
    tokens = 4 * math.prod(case.shape)
    assert costs.least_bytes(problem) == 4 * tokens
    assert costs.least_bytes(problem, backward=True) == 12 * tokens
    products = 2 * scores * case.batch * case.heads * case.channels
    assert costs.least_flops(problem) == 2 * products
    assert costs.least_flops(problem, backward=True) == 7 * products


def test_tiles_of_xla():
    """As docs/performance.md has them, and as many steps as the loop takes."""
    level_1 = costs.xla_tiles(Case("", 1, (56, 56), 2, 32, 7).problem("float32"))
    assert level_1 == {"tile": [4, 4], "halo": [10, 10], "tiles": 196, "steps": 1, "useful_share": pytest.approx(0.49)}
    problem = Case("", 8, (256, 256), 2, 32, 7).problem("float32")
    steps = costs.xla_tiles(problem)["steps"]
    assert steps > 1
    assert f"length={steps}" in str(jax.make_jaxpr(op.call(problem, "xla"))(*arrays(problem)))


def test_programs_of_fused_kernels_are_those_launched(monkeypatch):
    grids = []

    def launched(name, *arguments):
        *_, outputs, grid, _, _ = arguments
        grids.append((name, math.prod(grid)))
        return [jax.numpy.zeros(x.shape, x.dtype) for x in outputs]

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # Triton itself is not imported: what would run is replaced
    monkeypatch.setattr(launch, "_interpret", launched)
    problem = STREAMED.problem("float32")

    def both(*arrays):
        out, pull = jax.vjp(op.call(problem, "triton"), *arrays)
        return pull(out)

    jax.eval_shape(both, *arrays(problem))
    found = costs.fused_kernels(problem, costs.gpu(), backward=True)
    assert [kernel["kernel"] for kernel in found] == ["fwd", "bwd_dq", "bwd_dq, bias", "bwd_dkv"]
    of_name = [(kernel["kernel"].split(",")[0], kernel["launched"]) for kernel in found]
    assert sorted(grids) == sorted(of_name)


def test_scores_of_the_band_design():
    """A band of 8 rows of 16 keys, of which a window has 49: 38 % (`natjax_kernels.fused.band`)."""
    problem = Case("", 4, (56, 56), 2, 32, 7).problem("bfloat16")
    (case, _), *_ = support.configured(problem, H100)
    with configurations.override(case, band.configurations(case)[0]):
        (kernel,) = costs.fused_kernels(problem, H100)
    assert kernel["useful_share"] == 49 / (8 * 16)
    assert (kernel["design"], kernel["halo"], kernel["tiles"]) == ("band", [14, 16], 49)


def test_shared_memory_is_no_more_than_what_was_compiled():
    shapes = runpy.run_path(str(ROOT / "tests/deviceless/resources.py"))["SHAPES"]
    rows = json.loads((ROOT / "benchmarks/results/resources.json").read_text())["rows"]
    fields = ("tile", "block", "chunk", "resident", "num_warps", "num_stages", "programs", "design")
    assert {row["design"] for row in rows} == {"tiles", "band"}
    for row in rows:
        call, dtype = shapes[row["shape"]]
        kernel = "fwd" if row["kernel"] == "band" else row["kernel"]
        case = configurations.Case(
            kernel, call.spatial, call.window, call.channels, dtype, call.bias, row["architecture"]
        )
        config = configurations.read({name: row[name] for name in fields})
        assert row["shared_bytes"] / 20 <= costs.least_shared_bytes(case, config) <= row["shared_bytes"], row
        wider = dataclasses.replace(case, value_dim=3 * case.head_dim)
        assert costs.least_shared_bytes(wider, config) > costs.least_shared_bytes(case, config)


def test_dry_run(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(op, "attention", lambda *_, **__: pytest.fail("this is work"))
    arguments = ["bench", "op", "--shape", "8,56,56,2,32", "--dtype", "bfloat16", "--dry-run"]
    found = document([*arguments, "--backward", "--capability", "8.0"], capsys)
    assert found["capability"] == 8.0
    kernels = found["configurations"]["triton"]
    assert [kernel["kernel"] for kernel in kernels] == ["fwd", "bwd_dq", "bwd_dkv"]
    problem = Case("", 8, (56, 56), 2, 32, 7).problem("bfloat16")
    for kernel, (case, config) in zip(kernels, support.configured(problem, support.GPU(80, "", 132)), strict=True):
        assert (kernel["tile"], kernel["chunk"]) == (list(config.tile), config.chunk), case
    assert found["configurations"]["xla"]["tile"] == [4, 4]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "triton, compute capability 9.0, 132 multiprocessors:\n" in out
    assert "bwd_dkv" not in out
    assert "  tile                    4 x 4\n" in out


def test_dry_run_where_there_are_no_kernels(capsys):
    arguments = ["bench", "op", "--shape", "1,16,2,512", "--dry-run", "--implementation", "triton", "reference"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "multiprocessors:\nthe fused kernels take heads of at most" in out
    assert "reference: dense attention" in out
    assert main([*arguments[:3], "1,16,2,32", *arguments[4:], "--capability", "7.5"]) == 0
    assert "need compute capability 8.0 and this is 7.5" in capsys.readouterr().out


def test_windows(capsys):
    arguments = ["bench", "op", "--shape", "1,20,30,1,8", "--kernel", "3,6", "--dilation", "2,1", "--dry-run"]
    arguments += ["--stride", "1,2", "--causal", "0,1", "--no-bias"]
    found = document(arguments, capsys)
    window = ("kernel_size", "dilation", "stride", "is_causal", "bias")
    assert [found[name] for name in window] == [[3, 6], [2, 1], [1, 2], [False, True], False]
    assert main(arguments) == 0
    said = "kernel 3 x 6, dilation 2 x 1, stride 1 x 2, causal along axis 1, without bias"
    assert capsys.readouterr().out.splitlines()[1] == said
    assert document([*arguments, "--causal"], capsys)["is_causal"] == [True, True]
    ring = [*arguments[:9], "--periodic", "1,0"]
    assert document(ring, capsys)["periodic"] == [True, False]
    assert main(ring) == 0
    assert "kernel 3 x 6, dilation 2 x 1, periodic along axis 0, with bias\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: --shape"),
        (
            "--shape 1,8,8",
            "must be batch, 1 to 3 sides of the map, heads, channels of a head, as in 1,56,56,2,32; got '1,8,8'",
        ),
        ("--shape 1,8,0,2,4", "got '1,8,0,2,4'"),
        ("--shape 1,8,8,2,x", "got '1,8,8,2,x'"),
        ("--shape 1,8,2,4 --kernel big", "must be an integer or one per axis, as in 3,7; got 'big'"),
        ("--shape 1,8,2,4 --key-heads 0", "argument --key-heads: must be"),
        ("--shape 1,8,2,4 --causal yes", "must be 0 or 1, or one per axis, as in 1,0; got 'yes'"),
        ("--shape 1,8,2,4 --capability 9", "must be a compute capability, as in 9.0; got '9'"),
        ("--shape 1,8,2,4 --dtype int8", "invalid choice: 'int8'"),
        ("--shape 1,8,2,4 --dilatation 2", "Did you mean --dilation?"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "op", *arguments.split()])
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("natjax bench op: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--kernel 9 --dilation 2", "along spatial axis 0, 9 * 2 = 18 > 8."),
        ("--kernel 3,3,3", "kernel_size must be one integer or one per spatial axis (1); got (3, 3, 3)."),
        ("--kernel 3 --implementation xls", "got 'xls'. Did you mean xla?"),
        ("--kernel 3 --implementation triton", "cannot run: the fused kernels run on NVIDIA GPUs and this is cpu."),
        ("--kernel 3 --capability 9.0", "--capability is for --dry-run"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(op, "attention", lambda *_, **__: pytest.fail("this is work"))
    assert main(["bench", "op", "--shape", "1,8,2,4", *arguments.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("natjax: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", ["100000000000,8,8,1,8", "1,8000,8000,1,8 --implementation reference"], ids=["op", "reference"]
)
def test_out_of_memory(arguments, capsys):
    assert main(["bench", "op", "--kernel", "3", "--shape", *arguments.split()]) == 1
    assert (
        capsys.readouterr().err
        == "natjax: error: The problem does not fit into the memory of cpu; give a smaller --shape.\n"
    )


def test_a_folder_named_op_is_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "./op"]) == 1
    assert "error: ./op: no such file or directory" in capsys.readouterr().err
