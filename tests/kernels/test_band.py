"""The band design: its layout, its kernel in the interpreter for Gluon, and the op that names it."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_oracle import TOLERANCE, assert_all_close, draw, draw_case, exact, gradients

from natjax_kernels import neighborhood_attention, reference
from natjax_kernels.bias import bias_table
from natjax_kernels.cases import Case as OpCase
from natjax_kernels.cases import levels
from natjax_kernels.fused.band import band, configurations, why_not
from natjax_kernels.fused.configurations import Case, Config, override
from natjax_kernels.logits import Logits
from natjax_kernels.problem import make_problem
from natjax_kernels.triton.band_launch import BandLaunch
from natjax_kernels.triton.choice import choose, estimate
from natjax_kernels.window import Window

pytestmark = pytest.mark.once  # all of it is static, or in an interpreter

KERNELS = list(itertools.product(range(2, 8), range(2, 8)))
MAPS = [(8, 16), (16, 16), (16, 24), (24, 16), (40, 16)]


def square(kernel_size):
    return Window(kernel_size, (1, 1), (1, 1), (False, False))


@pytest.mark.parametrize("spatial", MAPS, ids=str)
def test_layouts_hold_every_pair_once(spatial):
    tokens, width = math.prod(spatial), spatial[1]
    for kernel_size in KERNELS:
        plan, window = band(spatial, square(kernel_size)), square(kernel_size)
        table = np.asarray(bias_table(plan.relative, None, jnp.float32, masked=-math.inf))[:, 0] == 0
        slots = np.arange(table.shape[2])
        counts = np.zeros((tokens, tokens), int)
        for (first_query, first_column, row_class, rows, *_), query in itertools.product(plan.tiles, range(64)):
            y, x = divmod(query, 8)
            row = plan.box_rows[rows][y // 2 * 2 + slots // 16]  # of the query's warp
            keys = (row * width + first_column + slots % 16)[table[row_class, query]]
            np.add.at(counts, (first_query + y * width + x, keys), 1)
        assert (counts == reference.neighbours(spatial, window)[0]).all(), kernel_size


def run(
    spatial,
    kernel_size,
    channels,
    bias,
    num_stages,
    dtype="float64",
    eager=False,
    share=2,
    batch=3,
    scale=0.3,
    **changed,
):
    """Runs the kernel in the interpreter; returns what it writes, and output and log-sum-exp of the reference."""
    pytest.importorskip("triton")
    from natjax_kernels.triton import band as kernels
    from natjax_kernels.triton.interpret_gluon import run

    rng = np.random.default_rng(0)
    shape, heads = (batch, *spatial, 2, channels), 2
    arrays = {name: rng.normal(size=shape).astype(dtype) for name in ("query", "key", "value")} | changed
    rpb = jnp.asarray(rng.normal(size=(heads, *(2 * k - 1 for k in kernel_size))), dtype) if bias else None
    launch = BandLaunch(spatial, square(kernel_size), Logits(scale), config(kernel_size, channels, num_stages), 132)
    plan = launch.layout
    table = np.asarray(
        bias_table(plan.relative, None if rpb is None else rpb / scale, jnp.dtype(dtype), masked=-math.inf)
    )
    flat = [x.reshape(batch, -1, heads, channels) for x in arrays.values()]
    rows = jax.ShapeDtypeStruct((batch, heads, math.prod(spatial)), dtype)
    got = run(
        kernels.band,
        (len(plan.tiles), heads, math.ceil(batch / share)),
        (batch, share),
        launch.static(heads, table.shape[1], channels),
        [jax.ShapeDtypeStruct(flat[0].shape, dtype), rows, rows],
        *flat,
        table,
        plan.tiles,
        plan.box_rows,
        eager=eager,
    )
    problem = make_problem(*map(jnp.asarray, arrays.values()), kernel_size=kernel_size, rpb=rpb, scale=scale)
    return got, reference.attend(problem)


def config(kernel_size, channels, num_stages):
    case = Case("fwd", (16, 16), square(kernel_size), channels, "bfloat16", False, 90)
    return dataclasses.replace(configurations(case)[0], num_stages=num_stages)


def assert_right(got, expected, tolerance=1e-13):
    (out, maxima, logs), (right, lse) = got, expected
    np.testing.assert_allclose(out.reshape(right.shape), right, rtol=0, atol=tolerance)
    found = ((maxima + logs) * math.log(2)).swapaxes(1, 2).reshape(lse.shape)
    np.testing.assert_allclose(found, lse, rtol=0, atol=tolerance)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize("spatial", MAPS, ids=str)
def test_the_kernel_is_exact_in_float64(spatial, num_stages, eager, x64):
    """Whenever its copies to shared memory arrive."""
    for channels, bias, kernel_size in ((32, True, (7, 7)), (16, False, (7, 7)), (64, True, (5, 5))):
        assert_right(*run(spatial, kernel_size, channels, bias, num_stages, eager=eager))


@pytest.mark.parametrize("bias", [False, True])
def test_kernels_of_every_size(bias, x64):
    for kernel_size in KERNELS:
        if not bias or all(k % 2 for k in kernel_size):
            assert_right(*run((16, 24), kernel_size, 16, bias, 2, batch=1))


@pytest.mark.parametrize("share", [1, 2, 3, 5])
def test_shares_of_a_batch(share, x64):
    assert_right(*run((8, 16), (3, 3), 16, True, 2, batch=5, share=share))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_large_and_small_logits(scale, x64):
    assert_right(*run((16, 16), (7, 7), 16, True, 2, scale=scale), 1e-11)


def test_what_is_not_finite():
    """It reaches the queries whose band holds it, if any of the tile sees its column; no weights at all give NaN, as in `fwd`."""
    value = np.ones((1, 24, 32, 2, 16), np.float32)
    value[0, 12, 26, 1] = np.nan
    (out, _, _), _ = run((24, 32), (3, 3), 16, False, 2, "float32", batch=1, value=value)
    reached = np.zeros((24, 32, 2, 16), bool)
    reached[10:14, 24:, 1] = True
    assert (np.isnan(out.reshape(reached.shape)) == reached).all()

    key = np.full((1, 16, 16, 2, 16), -np.inf, np.float32)
    query = np.ones_like(key)
    (out, maxima, logs), _ = run((16, 16), (3, 3), 16, False, 1, "float32", batch=1, query=query, key=key)
    assert np.isnan(out).all()
    assert (maxima == np.float32(-3e38)).all()
    assert (logs == -np.inf).all()


def named(case: OpCase, dtype: str, num_stages: int = 2):
    """Names the design for a case of the op."""
    described = Case("fwd", case.spatial, case.window, case.channels, dtype, case.bias, 90)
    chosen = next(c for c in configurations(described) if c.num_stages == num_stages)
    return override(described, chosen)


OPS = {
    "level 1": (OpCase("level 1", 3, (16, 24), 2, 32, 7), "bfloat16", 2),
    "float16, one stage": (OpCase("float16", 3, (16, 16), 2, 16, 7), "float16", 1),
    "no bias": (OpCase("no bias", 2, (8, 16), 1, 32, 6, bias=False), "float16", 2),
    "64 channels": (OpCase("64 channels", 2, (16, 16), 2, 64, 5), "bfloat16", 1),
}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_op_and_its_gradients(monkeypatch, op):
    """With the backward kernels over tiles, on what the band kernel wrote."""
    pytest.importorskip("triton")
    case, dtype, num_stages = op
    monkeypatch.setattr(
        "natjax_kernels.triton.op.multiprocessors", lambda: 1
    )  # so that a program takes several entries
    ran = []
    monkeypatch.setattr(
        BandLaunch, "__call__", lambda *a, call=BandLaunch.__call__, **o: ran.append(1) or call(*a, **o)
    )
    with named(case, dtype, num_stages):
        arrays, d_out, _ = draw_case(case, dtype)
        got = gradients(case, arrays, d_out, implementation="triton")
    assert ran
    assert_all_close(got, exact(case, dtype), TOLERANCE[dtype])


def test_vmap():
    pytest.importorskip("triton")
    case = OpCase("vmap", 1, (8, 16), 2, 16, 3)
    (query, key, value, rpb), _ = draw(case.shape, 3, True, "float16")
    query, key, value, rpb = (jnp.stack([x, x[::-1] / 2]) for x in (query, key, value, rpb))

    def each(implementation):
        def op(query, key, value, rpb):
            return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=3, implementation=implementation)

        return jax.vmap(op)(query, key, value, rpb)

    with named(case, "float16"):
        np.testing.assert_allclose(each("triton"), each("reference"), atol=4e-3)


def case(kernel="fwd", spatial=(56, 56), size=(7, 7), channels=32, dtype="bfloat16", **window):
    window = dataclasses.replace(square(size), **window)
    return Case(kernel, spatial, window, channels, dtype, True, 90)


REFUSALS = {
    "backward": (case("bwd_dq"), "it is a forward kernel, and this is bwd_dq"),
    "1-D": (case(spatial=(64,)), "for 2-D windows without dilation, stride and causality"),
    "dilation": (case(dilation=(2, 1)), "for 2-D windows without dilation"),
    "stride": (case(stride=(1, 2)), "for 2-D windows without dilation, stride"),
    "causal": (case(is_causal=(True, False)), "for 2-D windows without dilation, stride and causality"),
    "sides": (case(spatial=(56, 28)), r"multiples of 8, the second at least 16; the map is \(56, 28\)"),
    "narrow": (case(spatial=(16, 8)), "the second at least 16"),
    "float32": (case(dtype="float32"), "it computes in bfloat16 and float16; this is float32"),
    "channels": (case(channels=24), "heads of 16, 32, 64 channels; these have 24"),
    "kernel 9": (case(size=(9, 7)), r"kernels of at most 7 with 32 channels; this one is \(9, 7\)"),
    "wide heads": (case(channels=64), "kernels of at most 5 with 64 channels"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_why(refusal):
    this, reason = refusal
    if len(this.spatial) == 1:
        this = dataclasses.replace(this, window=Window((7,), (1,), (1,), (False,)))
    with (
        override(this, configurations(this)[0]),
        pytest.raises(NotImplementedError, match=f"the band design .*{reason}"),
    ):
        choose(this, "NVIDIA H200")


@pytest.mark.parametrize("changes", [{"num_warps": 8}, {"tile": (4, 4)}, {"num_stages": 3}, {"chunk": 64}], ids=str)
def test_other_configurations_are_refused(changes):
    named = dataclasses.replace(configurations(case())[0], **changes)
    with override(case(), named), pytest.raises(NotImplementedError, match="its configurations are"):
        choose(case(), "NVIDIA H200")


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_a_scale_that_is_not_positive(scale):
    pytest.importorskip("triton")
    case = OpCase("scale", 1, (8, 16), 2, 16, 3)
    (query, key, value, rpb), _ = draw(case.shape, 3, True, "float16")
    run = functools.partial(neighborhood_attention, query, key, value, rpb=rpb, kernel_size=3, scale=scale)
    with named(case, "float16"):
        np.testing.assert_allclose(run(implementation="triton"), run(implementation="reference"), atol=4e-3)


def test_it_is_off_unless_named():
    for level, capability in itertools.product(levels(1, 2, "", (1, 1, 1, 1)), (80, 90, 100, 120)):
        this = Case("fwd", level.spatial, level.window, level.channels, "bfloat16", True, capability)
        assert estimate(this).design == "tiles"
    assert Config((8, 8), None, 64, True, 4).design == "tiles"
    assert why_not(case(), configurations(case())[0]) is None
