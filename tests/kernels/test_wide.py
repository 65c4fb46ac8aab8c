"""Windows of thousands of tokens along an axis: right, and nothing that a plan or a program holds grows with their squares."""

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import op_oracle
import pytest

import natjax_kernels.axis
import natjax_kernels.xla.halos
import natjax_kernels.xla.tables
import natjax_kernels.xla.tiles
from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights
from natjax_kernels.fused.layout import sizes
from natjax_kernels.plan import plan_axis
from natjax_kernels.window import AxisWindow, Window

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

LENGTH = 2048
SMALL = {
    "1-D": {"shape": (2, 40, 2, 4), "kernel_size": 13, "dilation": 3, "bias": True},
    "no bias": {"shape": (1, 37, 2, 4), "kernel_size": 9, "dilation": 2, "bias": False},
    "strided": {"shape": (1, 40, 2, 4), "kernel_size": 16, "stride": 5, "bias": True},
    "causal, 2-D": {"shape": (3, 11, 9, 2, 4), "kernel_size": (5, 3), "is_causal": (True, False), "bias": True},
    "all of an axis": {"shape": (1, 9, 30, 2, 4), "kernel_size": (3, -1), "bias": False},
    "a ring": {"shape": (1, 8, 24, 2, 4), "kernel_size": (3, 11), "dilation": (1, 2), "periodic": True, "bias": True},
    "3-D": {"shape": (1, 6, 7, 8, 1, 4), "kernel_size": (3, 5, 7), "bias": True},
}


def dense(query, key, value, rpb, causal):
    """Attention of [1, L, N, D] in one piece."""
    length, channels = query.shape[1], query.shape[-1]
    logits = jnp.einsum("blnd,bmnd->bnlm", query, key) * channels**-0.5
    position = jnp.arange(length)
    if rpb is not None:
        logits = logits + rpb[:, position - position[:, None] + length - 1]
    if causal:
        logits = jnp.where(position <= position[:, None], logits, -jnp.inf)
    return jnp.einsum("bnlm,bmnd->blnd", jax.nn.softmax(logits, axis=-1), value)


@pytest.mark.parametrize("implementation", ["xla", "xla_autodiff"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_whole_axes_are_dense_attention(bias, causal, implementation, x64):
    arguments, d_out = op_oracle.draw((1, LENGTH, 1, 4), LENGTH, bias, "float64")
    got = op_oracle.both(arguments, d_out, kernel_size=-1, is_causal=causal, implementation=implementation)
    out, pull = jax.vjp(functools.partial(dense, causal=causal), *arguments)
    op_oracle.assert_close(got, [out, *pull(d_out)], 1e-10)


@pytest.fixture
def small_calls_as_large(monkeypatch):
    """Returns a function from which on the smallest call is computed as a large one."""

    def change():
        jax.clear_caches()
        monkeypatch.setattr(natjax_kernels.axis, "_LARGEST_CONSTANT", 0)
        monkeypatch.setattr(natjax_kernels.xla.halos, "_MANY", 0)
        monkeypatch.setattr(natjax_kernels.xla.tables, "_LARGEST_TABLE", 0)

    yield change
    jax.clear_caches()


@pytest.mark.parametrize("call", SMALL.values(), ids=SMALL)
def test_large_calls_compute_what_small_ones_do(call, small_calls_as_large, monkeypatch, x64):
    """Every kind of window, at once and in steps: tables by step, positions of the program's, halos added one by one."""
    call = dict(call)
    shape, bias = call.pop("shape"), call.pop("bias")
    (query, key, value, rpb), d_out = op_oracle.draw(shape, call["kernel_size"] if bias else 2, bias, "float64")
    key, value = key[..., : max(1, shape[-2] // 2), :], value[..., : max(1, shape[-2] // 2), :]  # shared key heads
    call["key_mask"] = jnp.asarray(np.random.default_rng(1).random(shape[:-2]) < 0.5)
    of_sizes = dict(call, sizes=jnp.asarray([shape[1:-2]] * shape[0], "int32"))

    def run(implementation, **call):
        return op_oracle.both((query, key, value, rpb), d_out, **call, implementation=implementation)

    def with_weights(**call):  # compiled as a whole: operations one by one would each be compiled, too
        op = functools.partial(neighborhood_attention_with_weights, **call)
        return jax.jit(lambda rpb, *tokens: op(*tokens, rpb=rpb))(rpb, query, key, value)

    def run_all():
        results = [run("xla", **call), run("xla_autodiff", **call)]
        if not call.get("periodic"):
            results += [run("xla", **of_sizes), with_weights(**of_sizes)]
        return *results, with_weights(**call)

    expected, close = run_all(), functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
    small_calls_as_large()
    jax.tree.map(close, run_all(), expected)
    jax.clear_caches()
    monkeypatch.setattr(natjax_kernels.xla.tiles, "_scores_per_row", lambda query, axes, together: 10)
    monkeypatch.setattr(natjax_kernels.xla.tiles, "scores_per_step", lambda: 20)
    jax.tree.map(close, run("xla", **call), expected[0])


@pytest.mark.usefixtures("x64")
def test_what_is_no_neighbour_of_a_large_call_reaches_nothing(small_calls_as_large):
    small_calls_as_large()
    arguments, d_out = op_oracle.draw((1, 60, 1, 4), 9, True, "float64")
    op = functools.partial(op_oracle.both, kernel_size=9, implementation="xla")
    broken = [x if x is None or x.ndim == 2 else x.at[:, 50].set(jnp.nan) for x in arguments]
    out, d_query, d_key, d_value, _ = op(broken, d_out)
    expected = op(arguments, d_out)
    for name, a, b in zip(["out", "query", "key", "value"], (out, d_query, d_key, d_value), expected, strict=False):
        np.testing.assert_allclose(a[:, :40], b[:, :40], atol=1e-10, err_msg=name)
        assert np.isnan(a[:, 50]).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "axis", [AxisWindow(8192), AxisWindow(8192, causal=True), AxisWindow(4096), AxisWindow(4096, 2)], ids=str
)
def test_plans_grow_with_an_axis_and_not_with_its_windows(axis, transposed, biased):
    tracemalloc.start()
    made = plan_axis.__wrapped__(8192, axis, 64, transposed, biased)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500 * 8192  # bytes; one per pair of tokens would be 8192 of them
    arrays = [*vars(made).values(), *vars(made.pairs).values()]
    assert max(x.size for x in arrays if isinstance(x, np.ndarray)) == 8192


def test_tiles_of_whole_axes_look_alike_without_bias():
    assert len(plan_axis(8192, AxisWindow(8192), 64, biased=False).pairs) == 1
    assert len(plan_axis(8192, AxisWindow(8192), 64).pairs) == 128
    # Windows of a border differ in nothing but the bias, and so do those between borders.
    assert len(plan_axis(8192, AxisWindow(2048), 64, biased=False).pairs) < 5


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize(("length", "kernel"), [(8192, -1), (65536, 4096)])
def test_programs_grow_with_an_axis_and_not_with_its_windows(length, kernel, causal, bias):
    tokens = jax.ShapeDtypeStruct((1, length, 2, 8), "float32")
    rpb = jax.ShapeDtypeStruct((2, 2 * (length if kernel == -1 else kernel) - 1), "float32") if bias else None

    def run(query, rpb):
        op = functools.partial(neighborhood_attention, kernel_size=kernel, is_causal=causal, implementation="xla")
        out, pull = jax.vjp(lambda q, r: op(q, q, q, rpb=r), query, rpb)
        return pull(out)

    tracemalloc.start()
    lowered = jax.jit(run).lower(tokens, rpb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * length  # bytes
    assert len(lowered.as_text()) < 200 * length  # characters; an index for every tile and key would be 1000 of them
    if length == 8192:
        assert (
            lowered.compile().memory_analysis().temp_size_in_bytes < length * length
        )  # 2 L L scores would be 8 of them


def test_layouts_of_fused_kernels_compare_few_blocks():
    tracemalloc.start()
    found = sizes((8192,), Window((8192,), (1,), (1,), (False,)), (64,), (64,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.rows == 255  # whose tokens are as far from each other as 128 tiles from 128 blocks
    assert peak < 8 * 8192 * 8192 / 4  # bytes
