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
from op_oracle import (
    TOLERANCE,
    assert_all_close,
    assert_close,
    attend_to_case,
    both,
    draw,
    draw_case,
    exact,
    gradients,
    split_static,
)

from natjax_kernels import explain, neighborhood_attention
from natjax_kernels.api import IMPLEMENTATIONS
from natjax_kernels.cases import FEATURES
from natjax_kernels.problem import Problem, make_problem

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "natten_ops.npz"
with np.load(GOLDENS) as _archive:
    ARRAYS = dict(_archive)
GOLDEN_CASES = json.loads(str(ARRAYS["meta"]))["cases"]

every_feature = pytest.mark.parametrize("case", FEATURES, ids=lambda case: case.name)


def feature(name):
    return next(case for case in FEATURES if case.name == name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda c: c["case"])
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


def skip_where_lacking(implementation, case, dtype="float32"):
    """What an implementation has not got it says, in one of these words."""
    arrays = case.problem(dtype).arrays
    described = dict(zip(Problem.ARRAYS, arrays, strict=True))
    try:
        explain(**described, **case.options(), implementation=implementation)
    except NotImplementedError as lacking:
        pytest.skip(str(lacking))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@every_feature
def test_precision(implementation, case, dtype):
    skip_where_lacking(implementation, case, dtype)
    arrays, d_out, _ = draw_case(case, dtype)
    got = gradients(case, arrays, d_out, implementation=implementation)
    assert_all_close(got, exact(case, dtype), TOLERANCE[dtype])


def test_dtypes_of_results_are_those_of_the_arguments(implementation):
    (query, key, value, rpb), d_out = draw((1, 8, 8, 2, 8), 3, True, "bfloat16", value_channels=3)
    options = {"kernel_size": 3, "implementation": implementation}

    @jax.jit
    def run(query, key, value, rpb, d_out):
        out, pull = jax.vjp(
            lambda q, k, v, r: neighborhood_attention(q, k, v, rpb=r, **options), query, key, value, rpb
        )
        return out, pull(d_out)

    out, gradients = run(query, key, value, rpb.astype("float32"), d_out)
    assert out.dtype == "bfloat16"
    assert out.shape == (1, 8, 8, 2, 3)
    assert [g.dtype.name for g in gradients] == ["bfloat16", "bfloat16", "bfloat16", "float32"]


@every_feature
def test_gradients_are_those_of_finite_differences(implementation, case, x64):
    if implementation == "triton":
        pytest.skip("it has no float64")
    arrays, _, _ = draw_case(case, "float64")
    arrays, static = split_static(arrays)
    modes = ["rev", "fwd"] if implementation == "xla_autodiff" else ["rev"]

    def op(arrays):
        return attend_to_case(case, arrays | static, implementation=implementation)

    with jax.numpy_dtype_promotion("standard"):  # JAX's own check mixes dtypes
        jax.test_util.check_grads(jax.jit(op), (arrays,), order=1, modes=modes, atol=1e-6, rtol=1e-6)


@every_feature
def test_log_sum_exp(implementation, precise, case, x64):
    """Its value and its gradient: alone and with that of the output; 0 of queries that see nothing."""
    skip_where_lacking(implementation, case)
    arrays, d_out, d_lse = draw_case(case, precise)
    arrays, static = split_static(arrays)

    def run(name, dtype):
        attend = functools.partial(attend_to_case, case, return_lse=True, implementation=name)
        given, d_given, d_log = jax.tree.map(lambda x: x.astype(dtype), (arrays, d_out, d_lse))
        (out, lse), pull = jax.vjp(lambda arrays: attend(arrays | static), given)
        return (out, lse), pull((jnp.zeros_like(d_given), d_log)), pull((d_given, d_log))

    got = jax.jit(run, static_argnums=(0, 1))(implementation, precise)
    expected = jax.jit(run, static_argnums=(0, 1))("reference", "float64")
    assert got[0][1].dtype == precise
    assert got[0][1].shape == case.out_shape[:-1]
    assert (not case.masked) or (np.isneginf(expected[0][1]).any() != bool(case.additional))
    for a, b in zip(*(map(np.float64, jax.tree.leaves(x)) for x in (got, expected)), strict=True):
        size = max(1.0, np.abs(b, where=np.isfinite(b), out=np.zeros(b.shape)).max(initial=0))
        np.testing.assert_allclose(a / size, b / size, rtol=0, atol=TOLERANCE[precise])


def test_an_unused_log_sum_exp_costs_nothing():
    """Of `xla`, the program of a gradient has no operand for it."""
    tokens = jax.ShapeDtypeStruct((1, 9, 9, 2, 4), "float32")

    def gradient(used, q):
        def loss(q):
            out, lse = IMPLEMENTATIONS["xla"].attend(make_problem(q, q, q, kernel_size=3))
            return out.sum() + (lse.sum() if used else 0)

        return jax.grad(loss)(q)

    plain = jax.jit(jax.grad(lambda q: neighborhood_attention(q, q, q, kernel_size=3, implementation="xla").sum()))
    counts = [program.lower(tokens).compile().cost_analysis()["flops"]
              for program in (plain, *(jax.jit(functools.partial(gradient, used)) for used in (False, True)))]  # fmt: skip
    assert counts[0] == counts[1] < counts[2]


@st.composite
def calls(draw, longest, most_entries, most_heads):
    """Any legal call on maps whose sides, by rank, are at most so long."""
    rank = draw(st.integers(1, 3))
    axes = []
    plain = draw(st.booleans())  # without stride and causality, so that there can be a bias
    for _ in range(rank):
        kernel = 2 * draw(st.integers(1, 3)) + 1 if plain else draw(st.integers(2, 6))
        kernel = min(kernel, longest[rank] - 1)
        dilation = draw(st.integers(1, min(4, longest[rank] // kernel)))
        length = draw(st.integers(kernel * dilation, longest[rank]))
        stride = 1 if plain else draw(st.integers(1, kernel))
        axes.append((length, kernel, dilation, stride, not plain and draw(st.booleans())))
    spatial, kernel, dilation, stride, causal = zip(*axes, strict=True)
    shape = (draw(st.integers(0, most_entries)), *spatial, draw(st.integers(1, most_heads)), draw(st.integers(1, 6)))
    options = {"kernel_size": kernel, "dilation": dilation, "stride": stride, "is_causal": causal}
    return shape, options, plain and draw(st.booleans()), draw(st.integers(1, 6))


CALLS = calls({1: 40, 2: 16, 3: 8}, 3, 3)
SMALL_CALLS = calls({1: 24, 2: 10, 3: 6}, 1, 2)  # for Triton's interpreter; more entries and heads are in `FEATURES`


@pytest.mark.once  # the newer Python runs test_definition.py's slow test
@hypothesis.settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(data=st.data())
def test_equals_the_reference(implementation, precise, data):
    if implementation == "reference":
        pytest.skip("it is the reference")
    shape, options, bias, value_channels = data.draw(SMALL_CALLS if implementation == "triton" else CALLS)
    if implementation == "triton":  # what it cannot do is in test_triton_support.py
        shape = (max(shape[0], 1), *shape[1:])
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


@pytest.mark.parametrize("cap", [2e-38, 0.1, 50.0, 1e4, 1e30])
def test_soft_caps_of_any_size(implementation, cap, x64):
    arguments, d_out = draw((1, 12, 2, 8), 5, True)
    arguments = 4 * arguments[0], *arguments[1:]  # logits to some 30
    options = {"kernel_size": 5, "logits_soft_cap": cap}
    got = both(arguments, d_out, **options, implementation=implementation)
    exact = jax.tree.map(lambda x: x.astype("float64"), (arguments, d_out))
    assert_close(got, both(*exact, **options, implementation="reference"), TOLERANCE["float32"])


def test_large_logits_stay_finite(implementation):
    (query, key, value, rpb), d_out = draw((1, 12, 1, 4), 3, True)
    got = both((query * 1e4, key * 1e4, value, rpb), d_out, kernel_size=3, implementation=implementation)
    assert all(np.isfinite(x).all() for x in got)


SATURATED = {"5e3": (64, 80, 1), "1e7": (4096, 2448, 1), "1e9": (32768, 30720, 64)}
SATURATED = {f"{size} {dtype}": (SATURATED[size], dtype) for size in SATURATED for dtype in ("float32", "bfloat16")}
del SATURATED["5e3 bfloat16"]  # whose own rounding is larger than what a rounded log-sum-exp would do to it


@pytest.mark.parametrize(("numbers", "dtype"), SATURATED.values(), ids=SATURATED)
def test_weights_sum_to_one_where_logits_are_large(implementation, numbers, dtype):
    """Also those of the backward pass. Logits are large * more + step * (0 to 3), exactly, of numbers that bfloat16 has.

    In base 2, as fused kernels compute, such logits would be rounded to other ones: there all are alike.
    """
    large, more, step = numbers
    (_, _, value, _), d_out = draw((1, 9, 10, 1, 4), 5, False, dtype)
    levels = np.random.default_rng(1).integers(0, 1 if implementation == "triton" else 4, value.shape[:-1])
    query = jnp.asarray([large, 1, 0, 0], dtype) * jnp.ones_like(value)
    key = jnp.stack([jnp.full_like(levels, more), levels * step, 0 * levels, 0 * levels], axis=-1).astype(dtype)
    options = {"kernel_size": 5, "scale": 1.0}
    got = both((query, key, value, None), d_out, **options, implementation=implementation)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype("float64"), ((query, key, value, None), d_out))
        expected = both(*exact, **options, implementation="reference")
    # Gradients of query and key are sums of terms as large as key and query.
    scales = 1, more, large, 1
    got, expected = ([x / scale for x, scale in zip(xs[:4], scales, strict=True)] for xs in (got, expected))
    assert_close([*got, None], [*expected, None], TOLERANCE[dtype])


@pytest.mark.parametrize("case", [feature("1-D"), feature("2-D exact")], ids=lambda case: case.name)
def test_vmap(implementation, precise, case, x64):
    """Also over the bias, and through the gradients."""
    (query, key, value, rpb), d_out = draw(case.shape, case.kernel_size, True, precise)
    stack = [jnp.stack([x, 2 * x, x - 1]) for x in (query, key, value, rpb, d_out)]

    def run(q, k, v, r, d):
        op = functools.partial(neighborhood_attention, **case.options(), implementation=implementation)
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


@pytest.mark.parametrize("shape", ["b, 16, 2, 4", "b, 9, 10, 2, 4", "b, 4, 5, 6, 1, 4"])
def test_export_of_any_batch(implementation, shape):
    (query, key, _, _), _ = draw((5, *map(int, shape.split(", ")[1:])), 3, False)

    def run(query, key):
        op = functools.partial(neighborhood_attention, kernel_size=3, implementation=implementation)
        out, pull = jax.vjp(lambda q: op(q, key, q), query)
        return out, *pull(key)

    tokens = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), "float32")
    if implementation == "triton":
        with pytest.raises(NotImplementedError, match="the number of batch entries; it is symbolic"):
            jax.export.export(jax.jit(run))(tokens, tokens)
        return
    exported = jax.export.export(jax.jit(run))(tokens, tokens)
    for entries in (1, 5):
        expected = jax.jit(run)(query[:entries], key[:entries])
        for got, right in zip(exported.call(query[:entries], key[:entries]), expected, strict=True):
            np.testing.assert_allclose(got, right, atol=1e-5)


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


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        ((3, 4), {"dilation": (2, 1)}),
        ((4, 3), {"stride": (3, 2), "is_causal": (False, True)}),
        ((3, 3), {"is_causal": True, "dilation": (1, 2)}),
    ],
)
def test_maps_of_mixed_sizes_give_what_each_gives_alone(implementation, precise, kernel_size, options, x64):
    if implementation == "triton":
        pytest.skip("it has no sizes")
    arrays, d_out = draw((3, 11, 12, 2, 4), kernel_size, True, precise)
    sizes = np.array([[11, 12], [6, 7], [8, 6]])
    options = {"kernel_size": kernel_size, "implementation": implementation, **options}
    inside = np.stack([(np.indices((11, 12)) < size[:, None, None]).all(axis=0) for size in sizes])[..., None, None]
    # Beyond their sizes, tokens may be anything.
    arrays = [*(jnp.where(inside, x, np.nan) for x in arrays[:3]), arrays[3]]
    together = both(arrays, d_out, **options, sizes=jnp.asarray(sizes))
    d_rpb = 0
    for entry, (height, width) in enumerate(sizes):
        here = np.s_[entry : entry + 1, :height, :width]
        alone = both([*(x[here] for x in arrays[:3]), arrays[3]], d_out[here], **options)
        for got, expected in zip(together[:4], alone[:4], strict=True):
            np.testing.assert_allclose(got[here], expected, atol=1e-10)
        d_rpb = d_rpb + alone[4]
    np.testing.assert_allclose(together[4], d_rpb, atol=1e-10)
    for x in together[:4]:
        assert (x[~np.broadcast_to(inside, x.shape)] == 0).all()
