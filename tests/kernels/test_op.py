"""The op against NATTEN's goldens, finite differences and the reference, for every implementation.

Goldens: tests/goldens/natten_ops.npz, whose `meta` says how they were made.
"""

import functools
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from op_oracle import TOLERANCE, assert_close, both, draw

from natjax_kernels import neighborhood_attention

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "natten_ops.npz"
with np.load(GOLDENS) as _archive:
    ARRAYS = dict(_archive)
CASES = json.loads(str(ARRAYS["meta"]))["cases"]

# Shapes and options that between them meet every feature: ([B, *spatial, N, D], options, bias).
CALLS = {
    "1-D": ((2, 19, 2, 8), {"kernel_size": 5}, True),
    "1-D dilated": ((1, 23, 1, 4), {"kernel_size": 3, "dilation": 4}, True),
    "2-D": ((2, 9, 14, 2, 4), {"kernel_size": (3, 7)}, True),
    "2-D dilated": ((1, 17, 15, 2, 4), {"kernel_size": (5, 3), "dilation": (2, 5)}, True),
    "2-D exact": ((1, 6, 7, 1, 8), {"kernel_size": (3, 7), "dilation": (2, 1)}, True),
    "2-D even": ((1, 9, 10, 2, 4), {"kernel_size": (4, 2), "dilation": (1, 3)}, False),
    "2-D causal": ((1, 10, 11, 2, 4), {"kernel_size": (3, 4), "is_causal": (True, False)}, False),
    "2-D strided": ((1, 11, 13, 1, 4), {"kernel_size": (5, 4), "stride": (2, 4), "is_causal": (False, True)}, False),
    "3-D": ((1, 5, 6, 7, 1, 4), {"kernel_size": 3, "dilation": (1, 2, 1)}, True),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c["case"])
def test_equals_natten(implementation, precise, case, dtype):
    if dtype == "float64" != precise:
        pytest.skip("it has no float64")
    with jax.enable_x64(dtype == "float64"):
        arrays = {k[3:]: jnp.asarray(v, dtype) for k, v in ARRAYS.items() if k.startswith(case["case"] + "/")}
        arguments = [arrays.get(name) for name in ("query", "key", "value", "rpb")]
        got = both(
            arguments,
            arrays["dout"],
            kernel_size=tuple(case["kernel_size"]),
            dilation=tuple(case["dilation"]),
            implementation=implementation,
        )
    expected = [ARRAYS.get(f"{case['case']}/{name}") for name in ("out", "dquery", "dkey", "dvalue", "drpb")]
    assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_precision(implementation, call, dtype, x64):
    shape, options, bias = call
    arguments, d_out = draw(shape, options["kernel_size"], bias, dtype)
    got = both(arguments, d_out, **options, implementation=implementation)
    exact = jax.tree.map(lambda x: x.astype("float64"), (arguments, d_out))
    assert_close(got, both(*exact, **options, implementation="reference"), TOLERANCE[dtype])


def test_dtypes_of_results_are_those_of_the_arguments(implementation):
    channels = 8 if implementation == "triton" else 3
    (query, key, value, rpb), d_out = draw((1, 8, 8, 2, 8), 3, True, "bfloat16", value_channels=channels)
    options = {"kernel_size": 3, "implementation": implementation}

    @jax.jit
    def run(query, key, value, rpb, d_out):
        out, pull = jax.vjp(
            lambda q, k, v, r: neighborhood_attention(q, k, v, rpb=r, **options), query, key, value, rpb
        )
        return out, pull(d_out)

    out, gradients = run(query, key, value, rpb.astype("float32"), d_out)
    assert out.dtype == "bfloat16"
    assert out.shape == (1, 8, 8, 2, channels)
    assert [g.dtype.name for g in gradients] == ["bfloat16", "bfloat16", "bfloat16", "float32"]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gradients_are_those_of_finite_differences(implementation, call, x64):
    if implementation == "triton":
        pytest.skip("it has no float64")
    shape, options, bias = call
    arguments, _ = draw(shape, options["kernel_size"], bias, "float64")

    def op(*args):
        rpb = args[3] if bias else None
        return neighborhood_attention(*args[:3], rpb=rpb, **options, implementation=implementation)

    args = arguments if bias else arguments[:3]
    jax.test_util.check_grads(jax.jit(op), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@st.composite
def calls(draw):
    """Any legal call with at most some hundred tokens."""
    rank = draw(st.integers(1, 3))
    longest = {1: 40, 2: 16, 3: 8}[rank]
    axes = []
    plain = draw(st.booleans())  # without stride and causality, so that there can be a bias
    for _ in range(rank):
        kernel = 2 * draw(st.integers(1, 3)) + 1 if plain else draw(st.integers(2, 6))
        kernel = min(kernel, longest - 1)
        dilation = draw(st.integers(1, min(4, longest // kernel)))
        length = draw(st.integers(kernel * dilation, longest))
        stride = 1 if plain else draw(st.integers(1, kernel))
        axes.append((length, kernel, dilation, stride, not plain and draw(st.booleans())))
    spatial, kernel, dilation, stride, causal = zip(*axes, strict=True)
    shape = (draw(st.integers(0, 3)), *spatial, draw(st.integers(1, 3)), draw(st.integers(1, 6)))
    options = {"kernel_size": kernel, "dilation": dilation, "stride": stride, "is_causal": causal}
    return shape, options, plain and draw(st.booleans()), draw(st.integers(1, 6))


@hypothesis.settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(call=calls())
def test_equals_the_reference(implementation, precise, call):
    if implementation == "reference":
        pytest.skip("it is the reference")
    shape, options, bias, value_channels = call
    if implementation == "triton":  # what it cannot do is in test_triton.py
        shape, value_channels = (max(shape[0], 1), *shape[1:]), shape[-1]
    with jax.enable_x64(True):
        arguments, d_out = draw(shape, options["kernel_size"], bias, precise, value_channels)
        got = both(arguments, d_out, **options, implementation=implementation)
        exact = jax.tree.map(lambda x: x.astype("float64"), (arguments, d_out))
        expected = both(*exact, **options, implementation="reference")
    assert_close(got, expected, TOLERANCE[precise])


def test_scale(implementation, precise, x64):
    atol = TOLERANCE[precise]
    (query, key, value, _), _ = draw((1, 9, 2, 4), 3, False, precise)
    op = functools.partial(neighborhood_attention, kernel_size=3, implementation=implementation)
    mean = op(query, key, value, scale=0.0)
    np.testing.assert_allclose(mean[:, 1], value[:, :3].mean(axis=1), atol=atol)
    np.testing.assert_allclose(op(query, key, value), op(query, key, value, scale=0.5), atol=atol)
    np.testing.assert_allclose(op(query * 3, key, value, scale=1), op(query, key, value, scale=3.0), atol=atol)


def test_large_logits_stay_finite(implementation):
    (query, key, value, rpb), d_out = draw((1, 12, 1, 4), 3, True)
    got = both((query * 1e4, key * 1e4, value, rpb), d_out, kernel_size=3, implementation=implementation)
    assert all(np.isfinite(x).all() for x in got)


@pytest.mark.parametrize("call", [CALLS["1-D"], CALLS["2-D dilated"]], ids=["1-D", "2-D dilated"])
def test_vmap(implementation, precise, call, x64):
    """Also over the bias, and through the gradients."""
    shape, options, _ = call
    (query, key, value, rpb), d_out = draw(shape, options["kernel_size"], True, precise)
    stack = [jnp.stack([x, 2 * x, x - 1]) for x in (query, key, value, rpb, d_out)]

    def run(q, k, v, r, d):
        op = functools.partial(neighborhood_attention, **options, implementation=implementation)
        out, pull = jax.vjp(lambda q, k, v, r: op(q, k, v, rpb=r), q, k, v, r)
        return out, *pull(d)

    together, run = jax.jit(jax.vmap(run))(*stack), jax.jit(run)
    for i in range(3):
        assert_close([x[i] for x in together], run(*(x[i] for x in stack)), 1e-5 if precise == "float32" else 1e-12)


def test_checkpoint(implementation, precise, x64):
    arguments, _ = draw((1, 9, 9, 2, 4), 3, True, precise)

    def loss(q, k, v, r):
        return neighborhood_attention(q, k, v, rpb=r, kernel_size=3, implementation=implementation).sum() ** 2

    plain = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*arguments)
    again = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2, 3)))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE[precise]), again, plain)


def test_export(implementation):
    if implementation == "triton":
        pytest.skip("programs for export take xla")
    arguments, d_out = draw((1, 9, 9, 2, 4), 3, True)

    def run(q, k, v, r):
        return neighborhood_attention(q, k, v, rpb=r, kernel_size=3, implementation=implementation)

    exported = jax.export.export(jax.jit(run))(*arguments)
    out, pull = jax.vjp(exported.call, *arguments)
    expected = both(arguments, d_out, kernel_size=3, implementation=implementation)
    assert_close([out, *pull(d_out)], expected, 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_vmap_takes_the_axis_into_the_batch(implementation, precise, bias, x64):
    """Only some arguments are mapped."""
    (query, key, value, rpb), _ = draw((2, 9, 2, 8), 3, bias, precise)

    def loss(query, value):
        op = functools.partial(neighborhood_attention, kernel_size=3, implementation=implementation)
        return (op(query, key, value, rpb=rpb) ** 2).sum()

    queries = jnp.stack([query, query + 1, query * 2])
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, None)))(queries, value)
    for i in range(3):
        alone = jax.jit(jax.grad(loss, argnums=(0, 1)))(queries[i], value)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, atol=2e-4), together, alone)  # noqa: B023


def test_shape_only_evaluation(implementation):
    tokens = jax.ShapeDtypeStruct((2, 64, 64, 4, 32), "bfloat16")
    op = functools.partial(neighborhood_attention, kernel_size=7, implementation=implementation)
    assert jax.eval_shape(op, tokens, tokens, tokens) == tokens
