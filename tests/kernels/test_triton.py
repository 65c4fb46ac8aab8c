"""What is the fused kernels' own: configurations, large windows, refusals. test_op.py says that they compute the op."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from op_oracle import TOLERANCE, assert_all_close, assert_close, both, draw, draw_case, exact, gradients

from natjax_kernels import default_implementation, explain, neighborhood_attention
from natjax_kernels.bias import sum_by_segment
from natjax_kernels.cases import Case as OpCase
from natjax_kernels.fused import band
from natjax_kernels.fused.configurations import KERNELS, Case, Config, override
from natjax_kernels.fused.layout import layout
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.logits import Logits
from natjax_kernels.plan import Window
from natjax_kernels.problem import make_problem
from natjax_kernels.triton import choice, support
from natjax_kernels.triton import launch as launching
from natjax_kernels.triton.choice import candidates, choose, estimate

pytestmark = pytest.mark.once  # all of it is static, or in Triton's interpreter

# What there is besides the choices that test_op.py meets: a call, and a configuration for every kernel.
CONFIGURED = [
    (OpCase("blocks of keys", 1, (13, 14), 1, 8, (9, 10), bias=False), Config((4, 4), (4, 8), 16, False, 1)),
    (OpCase("blocks of keys, bias", 1, (11, 12), 2, 8, 7), Config((4, 4), (8, 8), 32, False, 1)),
    (OpCase("1-D blocks", 2, (50,), 1, 16, 21, is_causal=True, bias=False), Config((16,), (16,), 16, False, 1)),
    (OpCase("3-D blocks", 1, (6, 7, 8), 1, 8, (3, 5, 6), bias=False), Config((2, 3, 4), (4, 4, 4), 32, False, 1)),
    (OpCase("table on chip", 3, (9, 9), 2, 8, 5), Config((4, 5), None, 32, True, 1)),
    (OpCase("table on chip, one chunk", 3, (9, 9), 2, 8, 3), Config((3, 3), None, 32, True, 1)),
    (OpCase("table off chip", 3, (9, 9), 2, 8, 5), Config((4, 5), None, 32, False, 1)),
    (OpCase("dilated", 1, (26, 24), 1, 8, (9, 7), (2, 3)), Config((5, 4), (8, 4), 32, False, 1)),
]
# Programs work through many tiles and entries of the batch, or through one: as `test_op.py` has it, of chunks on and off chip.
MANY_PROGRAMS = ("blocks of keys, bias", "table on chip", "table off chip")


@pytest.mark.parametrize(
    ("case", "config", "programs"),
    [
        pytest.param(case, config, programs, id=f"{case.name}, {programs} programs")
        for case, config in CONFIGURED
        for programs in (1, 1024)
        if programs == 1 or case.name in MANY_PROGRAMS
    ],
)
def test_any_configuration_computes_the_op(monkeypatch, case, config, programs):
    config = dataclasses.replace(config, programs=1)
    monkeypatch.setattr("natjax_kernels.triton.op.choose", lambda case, device: config)
    monkeypatch.setattr("natjax_kernels.triton.op.multiprocessors", lambda: programs)
    assert_right(case)


def assert_right(case):
    """Compares outputs and gradients of the kernels with the reference's."""
    arrays, d_out, _ = draw_case(case, "float32")
    assert_all_close(
        gradients(case, arrays, d_out, implementation="triton"), exact(case, "float32"), TOLERANCE["float32"]
    )


@pytest.mark.parametrize("channels", [8, 16, 24, 64, 128])
def test_channels_of_a_head(channels):
    assert_right(OpCase("channels", 1, (7, 8), 2, channels, 3))


@pytest.mark.parametrize(("channels", "values"), [(8, 40), (24, 3), (256, 200)])
def test_values_of_other_channels(channels, values):
    dtype = "bfloat16" if channels > 128 else "float32"
    case = OpCase("values", 1, (7, 8), 2, channels, 3)
    arguments, d_out = draw(case.shape, 3, True, dtype, values)
    got = both(arguments, d_out, kernel_size=3, implementation="triton")
    expected = both(
        *jax.tree.map(lambda x: x.astype("float32"), (arguments, d_out)), kernel_size=3, implementation="xla"
    )
    assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("entries", [1, 8, 9, 1000])
def test_sums_by_segment(entries):
    """Of segments from one entry to nearly all, not in order."""
    rng = np.random.default_rng(entries)
    segments = rng.permutation(np.minimum(np.arange(entries), 5))
    x = rng.integers(-9, 9, (entries, 2, 3)).astype(np.float32)
    expected = np.zeros((segments.max() + 1, 2, 3))
    np.add.at(expected, segments, x)
    assert (sum_by_segment(jnp.asarray(x), segments) == expected).all()


def test_vmap_of_vmap():
    """Over different arguments, of which none is the bias."""
    (_, _, _, rpb), _ = draw((2, 9, 2, 8), 3, True)
    (query, key, value, _), _ = draw((2, 3, 2, 9, 2, 8), 3, False)  # two mapped axes in front

    def each(implementation):
        def op(query, key, value):
            return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=3, implementation=implementation)

        inner = jax.vmap(op, in_axes=(0, None, 0))
        return jax.jit(jax.vmap(inner, in_axes=(0, 0, None)))(query, key[:, 0], value[0])

    np.testing.assert_allclose(each("triton"), each("reference"), atol=1e-5)


@pytest.mark.parametrize("transform", [jax.hessian, lambda f: jax.grad(lambda x: jax.grad(f)(x).sum())])
def test_second_derivatives_are_refused(transform):
    (query, *_), _ = draw((1, 9, 1, 8), 3, False)

    def loss(x):
        return neighborhood_attention(x, x, x, kernel_size=3, implementation="triton").sum()

    with pytest.raises(NotImplementedError, match='no second derivative; use implementation="xla"'):
        transform(loss)(query)


LEGACY_PRECISIONS = ["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]
PRESETS = [preset.name for preset in jax.lax.DotAlgorithmPreset if preset.name != "DEFAULT"]


@pytest.mark.parametrize("asked", [None, *LEGACY_PRECISIONS, *PRESETS])
def test_float32_products_are_no_less_precise_than_asked(asked):
    with jax.default_matmul_precision(asked):
        one = asked in ("bfloat16", "tensorfloat32", "BF16_BF16_F32", "TF32_TF32_F32")
        assert launching.float32_products() == ("tf32" if one else "tf32x3")


@pytest.mark.parametrize("batch", [1, 5, 7])
def test_shares_of_a_batch_that_are_not_alike(monkeypatch, batch):
    monkeypatch.setattr(Schedule, "shares", lambda *_: (1, min(batch, 3)))
    assert_right(OpCase("shares", batch, (9, 9), 2, 8, 3))


def test_offsets_are_of_64_bits_where_an_image_needs_them(monkeypatch):
    window = Window((3,), (1,), (1,), (False,))
    plan = layout((64,), window, (64,), None)
    launch = launching.Launch((64,), window, Logits(1.0), Config((64,), None, 64, False, 4), 132, "ieee")

    def wide(length, heads):
        monkeypatch.setattr(
            launching, "layout", lambda *_: dataclasses.replace(plan, tokens=length, halo_tokens=length)
        )
        return launch.static(heads, 1, 128)["WIDE"]

    assert not wide(2**23, 1)
    assert wide(2**24, 1)
    assert wide(2**22, 4)


def case(kernel="fwd", spatial=(56, 56), size=7, dilation=1, channels=32, dtype="bfloat16", bias=True, capability=90):
    rank = len(spatial)
    window = Window((size,) * rank, (dilation,) * rank, (1,) * rank, (False,) * rank)
    return Case(kernel, spatial, window, channels, dtype, bias, capability)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spatial", [(7,), (4096,), (56, 56), (7, 7), (112, 96), (8, 9, 10)], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_configurations_are_legal(kernel, spatial, capability):
    for dtype, bias, channels in (("bfloat16", True, 32), ("float32", True, 64), ("float16", False, 128)):
        this = case(kernel, spatial, channels=channels, dtype=dtype, bias=bias, capability=capability)
        for config in [estimate(this), *candidates(this)]:
            assert config.slots in (16, 32, 64)
            assert config.chunk in (16, 32, 64, 128, 256)
            assert config.num_warps in (1, 2, 4, 8, 16)
            assert not (config.resident and config.block)


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_of_wide_floats_are_small(kernel, capability):
    """Larger ones need more shared memory than a block of sm_89 may have: tests/deviceless/test_resources.py compiles some."""
    for channels, most in ((32, 64), (64, 16 if kernel == "bwd_dq" else 32), (65, 16), (128, 16)):
        this = case(kernel, channels=channels, dtype="float32", capability=capability)
        assert max(config.slots for config in candidates(this)) == most


@pytest.mark.parametrize("kernel", KERNELS)
def test_consumer_blackwell_is_short_of_registers_too(kernel):
    """It lacks the matrix units of sm_90 and sm_100, which read their operands from shared memory."""
    of = {
        capability: [estimate(case(kernel, dilation=d, capability=capability)) for d in (1, 8)]
        for capability in (89, 100, 120, 121)
    }
    assert of[120] == of[121] == of[89]
    assert kernel == "fwd" or of[100] != of[89]


def test_measured_configurations_come_first(monkeypatch):
    this = case()
    measured = Config((4, 4), None, 128, True, 2, 3)
    table = json.loads(json.dumps({"NVIDIA H200": {this.key: dataclasses.asdict(measured)}}))
    monkeypatch.setattr(choice, "_measured", lambda: table)
    assert choose(this, "NVIDIA H200") == measured
    assert choose(case(capability=80), "NVIDIA A100") == estimate(case(capability=80))
    assert choose(case(bias=False), "NVIDIA H200") == estimate(case(bias=False))


def test_measured_configurations_serve_other_devices_of_the_architecture(monkeypatch):
    """But come after those of the device itself."""
    this, both = case(), case("bwd_dq")
    other, own = Config((4, 4), None, 128, True, 2, 3), Config((8, 8), None, 64, False, 4, 2)
    table = {
        "NVIDIA H100 80GB HBM3": {c.key: dataclasses.asdict(other) for c in (this, both)},
        "NVIDIA H200": {both.key: dataclasses.asdict(own)},
    }
    monkeypatch.setattr(choice, "_measured", lambda: table)
    assert choose(this, "NVIDIA H200") == choose(this, "NVIDIA GH200 480GB") == other
    assert choose(both, "NVIDIA H200") == own
    assert choose(both, "NVIDIA H100 80GB HBM3") == other
    for capability in (89, 100):
        elsewhere = case(capability=capability)
        assert choose(elsewhere, "NVIDIA L4") == estimate(elsewhere)


def test_measured_configurations_of_a_design_that_changed_are_passed_over(monkeypatch):
    """Where they were named, they are refused."""
    this = case()
    stale = dataclasses.replace(band.configurations(this)[0], num_warps=8)
    table = {"NVIDIA H200": {this.key: dataclasses.asdict(stale)}}
    monkeypatch.setattr(choice, "_measured", lambda: table)
    assert choose(this, "NVIDIA H200") == estimate(this)
    with override(this, stale), pytest.raises(NotImplementedError, match="the band design cannot compute"):
        choose(this, "NVIDIA H200")


@pytest.mark.parametrize("scale", [-0.5, 0.0, -0.0, 1e-9])
def test_any_scale(scale):
    (query, key, value, rpb), d_out = draw((2, 7, 8, 2, 8), 3, True)

    def run(implementation):
        def op(*primals):
            query, key, value, rpb = primals
            return neighborhood_attention(
                query, key, value, rpb=rpb, kernel_size=3, scale=scale, implementation=implementation
            )

        out, pull = jax.vjp(op, query, key, value, rpb)
        return [out, *pull(d_out)]

    for got, right in zip(run("triton"), run("reference"), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


def test_a_refusal_is_that_of_the_configurations_of_now():
    """Of tiles of one query, whose tables do not fit, while somebody names them."""
    x = jax.ShapeDtypeStruct((1, 96, 96, 4, 16), "bfloat16")
    rpb = jax.ShapeDtypeStruct((4, 121, 121), "bfloat16")
    window = Window((61, 61), (1, 1), (1, 1), (False, False))
    this = Case("bwd_dq", (96, 96), window, 16, "bfloat16", True, 90)
    ask = functools.partial(explain, x, x, x, rpb=rpb, kernel_size=61, implementation="triton")
    assert ask().startswith("triton")
    with (
        override(this, dataclasses.replace(estimate(this), tile=(1, 1))),
        pytest.raises(NotImplementedError, match="would take arrays of"),
    ):
        ask()
    assert ask().startswith("triton")


def test_measured_configurations_can_be_read(monkeypatch):
    """As they come back from the file: those that are there, and one as `benchmarks.tune` would write it."""
    this, measured = case(), Config((4, 4), (8, 8), 64, False, 2, 3)
    written = json.loads(json.dumps({"NVIDIA H200": {this.key: dataclasses.asdict(measured)}}))
    monkeypatch.setattr(choice, "_measured", lambda: written)
    assert choose(this, "NVIDIA H200") == measured
    monkeypatch.undo()
    for cases in choice._measured().values():
        for found in cases.values():
            Config(**found)


def test_keys_of_cases_tell_them_apart():
    cases = [
        case(), case("bwd_dkv"), case(size=5), case(dilation=2), case(channels=64), case(dtype="float32"),
        case(bias=False), case(spatial=(56, 57)), case(spatial=(56,)), case(capability=100),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (2, 1), (False, False))),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (1, 1), (True, False))),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (1, 1), (False, False), (True, False))),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (1, 1), (False, False), (), (1, 2))),
        dataclasses.replace(case(), value_dim=16), dataclasses.replace(case(), group=2), dataclasses.replace(case(), masked=True),
    ]  # fmt: skip
    assert len({c.key for c in cases}) == len(cases)
    assert case().key == "fwd 56:7x1 56:7x1 D32 bfloat16 rpb sm_90"  # as files of measured ones have it


REFUSALS = {
    "float64": ((1, 8, 8, 2, 8), "float64", 8, "compute in float32, bfloat16, float16; query is float64"),
    "wide heads": ((1, 8, 8, 2, 129), "float32", 129, "at most 128 channels in float32; these have 129"),
    "wide values": ((1, 8, 8, 2, 8), "bfloat16", 257, "at most 256 channels in bfloat16; these have 257"),
    "empty batch": ((0, 8, 8, 2, 8), "float32", 8, "at least one batch entry"),
    "many heads": (
        (1, 8, 8, 65536, 8),
        "float32",
        8,
        "at most 65535 programs for all heads of a tile; these need 65536",
    ),
    "vast maps": ((1, 2**16, 2**15, 1, 8), "float32", 8, "fewer than 2\\*\\*31 tokens"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_why(refusal, x64):
    shape, dtype, channels, reason = refusal
    query, value = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((*shape[:-1], channels), dtype)
    with pytest.raises(NotImplementedError, match=f"implementation='triton' cannot run: .*{reason}"):
        explain(query, query, value, kernel_size=3, implementation="triton")


def test_maps_whose_halos_reach_past_32_bits_are_refused():
    """The blocks of a large halo may end behind it, past the end of the map, before they are held to it by a minimum."""
    query = jax.ShapeDtypeStruct((1, 1000, 1000, 2147, 1, 8), "bfloat16")  # 483648 tokens fewer than 2**31
    refusal = r"count fewer than 2\*\*31 tokens; those of \(1000, 1000, 2147\) and their halos are 21\d{8}"
    with pytest.raises(NotImplementedError, match=refusal):
        explain(query, query, query, kernel_size=10, implementation="triton")
    assert explain(query, query, query, kernel_size=3, implementation="triton").startswith("triton")


def test_tables_that_are_too_large_are_refused():
    x = jax.ShapeDtypeStruct((1, 256, 256, 4, 128), "bfloat16")
    rpb = jax.ShapeDtypeStruct((4, 189, 189), "bfloat16")
    with pytest.raises(
        NotImplementedError, match=r"the bias of this window would take arrays of 1\.\d GiB, more than 1"
    ):
        explain(x, x, x, rpb=rpb, kernel_size=95, implementation="triton")
    assert explain(x, x, x, kernel_size=80, implementation="triton") == "triton: named by the caller"


def test_the_interpreter_runs_only_when_named():
    x = jax.ShapeDtypeStruct((1, 8, 8, 2, 8), "float32")
    assert explain(x, x, x, kernel_size=3).startswith("xla: not triton, as Triton's interpreter is for tests")


def test_wide_offsets_compute_the_op(monkeypatch):
    static = launching.Launch.static
    monkeypatch.setattr(launching.Launch, "static", lambda *arguments: {**static(*arguments), "WIDE": True})
    assert_right(OpCase("wide", 2, (5, 6), 2, 8, 3))


@pytest.mark.parametrize("before", [None, "", "/somewhere"])
def test_importing_jax_triton_leaves_tritons_cache_alone(monkeypatch, tmp_path, before):
    """jax-triton 0.3 empties the variable, and Triton then has no cache for launches of its own."""
    (tmp_path / "jax_triton.py").write_text("import os\nos.environ['TRITON_CACHE_DIR'] = ''\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jax_triton", raising=False)
    if before is None:
        monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    else:
        monkeypatch.setenv("TRITON_CACHE_DIR", before)
    assert launching._jax_triton() is sys.modules.pop("jax_triton")
    assert os.environ.get("TRITON_CACHE_DIR") == before


@dataclasses.dataclass
class Gpu:
    """A device that is not here."""

    device_kind: str = "NVIDIA H200"
    platform: str = "gpu"
    compute_capability: str = "9.0"


@pytest.mark.parametrize(
    ("gpu", "missing", "version", "reason"),
    [
        (Gpu(), [], "3.6.0", None),
        (Gpu(), [], "3.9.0", r"for Triton 3.6 and 3.9.0 is installed: pip install .*'triton>=3.6,<3.7'"),
        (Gpu(), ["jax_triton"], "3.6.0", r"jax_triton cannot be imported: pip install 'jax-triton>="),
        (Gpu("Tesla V100-SXM2-16GB", "gpu", "7.0"), [], "3.6.0", "need compute capability 8.0 and .* has 7.0"),
        (Gpu("AMD Instinct MI300X", "gpu", "gfx942"), [], "3.6.0", "run on NVIDIA GPUs and this is AMD Instinct MI300X"),
        (Gpu("TPU v5e", "tpu", ""), [], "3.6.0", "run on NVIDIA GPUs and this is TPU v5e"),
    ],
)  # fmt: skip
def test_devices(monkeypatch, gpu, missing, version, reason):
    monkeypatch.setattr(support, "interpreted", lambda: False)
    monkeypatch.setattr(launching, "interpreted", lambda: False)
    monkeypatch.setattr(support, "device", lambda: gpu)
    monkeypatch.setattr(support, "_triton_version", lambda: version)
    monkeypatch.setattr(launching, "device", lambda: gpu)
    find = importlib.util.find_spec
    here = ("triton", "jax_triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name not in missing if name in here else find(name))
    x = jax.ShapeDtypeStruct((1, 56, 56, 2, 32), "bfloat16")
    why = support.why_not(make_problem(x, x, x, kernel_size=7), named=False)
    assert why is None if reason is None else re.search(reason, why)


def test_a_gpu_that_is_not_here():
    x, wide = (jax.ShapeDtypeStruct((1, 56, 56, 2, d), "bfloat16") for d in (32, 512))
    problem, gpu = make_problem(x, x, x, kernel_size=7), support.GPU(80, "NVIDIA A100-SXM4-80GB", 108)
    found = support.configured(problem, gpu)
    assert [case.kernel for case, _ in found] == list(KERNELS)
    assert {case.capability for case, _ in found} == {80}
    assert [config for _, config in found] == [choose(case, gpu.kind) for case, _ in found]
    assert support.why_not_on(problem, gpu) is None
    assert "these have 512" in support.why_not_on(make_problem(wide, wide, wide, kernel_size=7), gpu)


def test_exporting_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(support, "_why_not_here", lambda named: None)  # as if the default device were one
    x = jax.ShapeDtypeStruct((1, 8, 8, 2, 8), "float32")
    assert explain(x, x, x, kernel_size=3) == "triton: the fastest one"
    with default_implementation("xla"):
        exported = jax.export.export(jax.jit(lambda x: neighborhood_attention(x, x, x, kernel_size=3)))(x)
        with default_implementation(None):
            assert explain(x, x, x, kernel_size=3) == "triton: the fastest one"
    assert explain(x, x, x, kernel_size=3) == "triton: the fastest one"
    np.testing.assert_array_equal(exported.call(ones := np.ones(x.shape, x.dtype)), ones)
    with pytest.raises(ValueError, match="implementation must be None or one of"), default_implementation("cuda"):
        pass
