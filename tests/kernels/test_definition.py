"""The definition (definition.py) against what is written by hand."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from definition import Axis, Call, attend, neighbours

# Programs that run once: XLA takes a quarter of the time to compile them so.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    QUICK |= {"xla_cpu_parallel_codegen_split_count": 1, "xla_cpu_use_fusion_emitters": False}

WINDOWS = {
    "odd": (Axis(5, 3), ["012", "012", "123", "234", "234"]),
    "even": (Axis(6, 4), ["0123", "0123", "0123", "1234", "2345", "2345"]),
    "dilated": (Axis(7, 3, 2), ["024", "135", "024", "135", "246", "135", "246"]),
    "dilated groups of two lengths": (Axis(5, 2, 2), ["02", "13", "02", "13", "24"]),
    "strided": (Axis(6, 3, stride=2), ["012", "012", "234", "234", "345", "345"]),
    "strided, even": (Axis(8, 4, stride=3), ["0123", "0123", "0123", "2345", "2345", "2345", "4567", "4567"]),
    "strided, a share left over": (Axis(5, 3, stride=3), ["012", "012", "012", "234", "234"]),
    "causal": (Axis(5, 3, is_causal=True), ["0", "01", "012", "123", "234"]),
    "causal, strided": (Axis(6, 3, stride=2, is_causal=True), ["0", "01", "12", "123", "34", "345"]),
    "causal, a share left over": (Axis(4, 2, stride=2, dilation=1, is_causal=True), ["0", "01", "2", "23"]),
    "causal, dilated": (Axis(6, 2, 2, is_causal=True), ["0", "1", "02", "13", "24", "35"]),
    "periodic": (Axis(5, 3, periodic=True), ["401", "012", "123", "234", "340"]),
    "periodic, even": (Axis(5, 4, periodic=True), ["3401", "4012", "0123", "1234", "2340"]),
    "periodic, dilated": (Axis(6, 2, 2, periodic=True), ["40", "51", "02", "13", "24", "35"]),
    "periodic, strided": (Axis(4, 3, stride=2, periodic=True), ["012", "012", "230", "230"]),
    "all": (Axis(4, -1), ["0123"] * 4),
    "all of a group": (Axis(6, -1, 2), ["024", "135"] * 3),
    "all, causal": (Axis(3, -1, is_causal=True), ["0", "01", "012"]),
    "twice the queries": (Axis(4, 3, queries=8), ["012", "012", "012", "012", "123", "123", "123", "123"]),
    "half the queries": (Axis(6, 3, queries=3), ["012", "234", "345"]),
    "a third of the queries": (Axis(9, 3, queries=3), ["012", "345", "678"]),
    "half the queries, causal": (Axis(4, 3, is_causal=True, queries=2), ["01", "123"]),
    "half the queries, dilated": (Axis(8, 2, 2, queries=4), ["13", "13", "35", "57"]),
}
BIASES = {  # by kernel size - 1 plus how many steps a key is after the query
    "odd": [[2, 3, 4], [1, 2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2]],
    "even": [[3, 4, 5, 6], [2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3]],
    "dilated": [[2, 3, 4], [2, 3, 4], [1, 2, 3], [1, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 2]],
    "strided": [[2, 3, 4], [1, 2, 3], [2, 3, 4], [1, 2, 3], [1, 2, 3], [0, 1, 2]],
    "causal, strided": [[2], [1, 2], [1, 2], [0, 1, 2], [1, 2], [0, 1, 2]],
    "periodic": [[1, 2, 3]] * 5,
    "periodic, strided": [[2, 3, 4], [1, 2, 3]] * 2,
    "twice the queries": [[2, 3, 4]] * 2 + [[1, 2, 3]] * 4 + [[0, 1, 2]] * 2,
    "half the queries": [[1, 2, 3], [1, 2, 3], [0, 1, 2]],
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_definition_lists_windows_as_written_by_hand(name):
    axis, windows = WINDOWS[name]
    assert [[key for key, _ in window] for window in axis.neighbours()] == [[int(key) for key in w] for w in windows]
    if name in BIASES:
        assert [[bias for _, bias in window] for window in axis.neighbours()] == BIASES[name]


def test_the_definition_combines_axes():
    """A causal axis of 2 and one of 3: keys are 3 * y + x, biases 3 * that of y + that of x."""
    keys, biases = neighbours((Axis(2, 2, is_causal=True), Axis(3, 2)))
    none = [-1, -1]
    assert keys.tolist() == [
        [0, 1, *none], [0, 1, *none], [1, 2, *none], [0, 1, 3, 4], [0, 1, 3, 4], [1, 2, 4, 5],
    ]  # fmt: skip
    assert biases.tolist() == [
        [4, 5, *none], [3, 4, *none], [3, 4, *none], [1, 2, 4, 5], [0, 1, 3, 4], [0, 1, 3, 4],
    ]  # fmt: skip


def test_the_definition_computes_what_can_be_computed_by_hand(x64):
    """Logits are logarithms of whole numbers, so that weights are fractions. Two heads share one of keys."""
    call = Call((Axis(3, 2, is_causal=True),), 2, 1, 1, 1, bias=True, additional=1, scale=1.0)
    arrays = {
        "query": [[[[1.0], [0.0]], [[1.0], [0.0]], [[1.0], [0.0]]]],
        "key": [[[[np.log(2)]], [[np.log(3)]], [[np.log(5)]]]],
        "value": [[[[10.0]], [[20.0]], [[30.0]]]],
        "rpb": [
            [0.0, np.log(4), 0.0],
            [np.log(7), 0.0, np.log(99)],
        ],  # a step before the query, the query, a step after
        "additional_keys": [[[[np.log(6)]]]],
        "additional_values": [[[[1.0]]]],
    }
    arrays = jax.tree.map(jnp.asarray, arrays, is_leaf=lambda x: isinstance(x, list))
    out, lse = attend(call, arrays)
    # Head 0 weighs keys by exp(logit) * exp(bias): [2 * 4, 6], [2, 3 * 4, 6], [3, 5 * 4, 6]; head 1, whose query is 0, by
    # [1, 1], [7, 1, 1], [7, 1, 1].
    np.testing.assert_allclose(np.exp(lse[0]), [[14, 2], [20, 9], [29, 9]], rtol=1e-15)
    expected = [[86 / 14, 11 / 2], [266 / 20, 91 / 9], [666 / 29, 171 / 9]]
    np.testing.assert_allclose(out[0, ..., 0], expected, rtol=1e-15)
    mask = np.array([[False, True, False]])
    out, lse = attend(call, arrays, mask)
    np.testing.assert_allclose(np.exp(lse[0]), [[6, 1], [18, 2], [9, 8]], rtol=1e-15)
    np.testing.assert_allclose(out[0, ..., 0], [[1, 1], [246 / 18, 21 / 2], [66 / 9, 141 / 8]], rtol=1e-15)


def test_the_definition_of_what_sees_nothing(x64):
    call = Call((Axis(4, 2),), 2, 1, 3, 2, bias=True)
    arrays, _, cotangents = call.draw()
    (out, lse), gradients = evaluated(functools.partial(attend, call), arrays, np.zeros((1, 4), bool), cotangents)
    assert not out.any()
    assert np.isneginf(lse).all()
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_gradients_of_the_definition_are_those_of_finite_differences(x64):
    axes = Axis(4, 3, stride=2, is_causal=True), Axis(6, 2, dilation=2, periodic=True, queries=3)
    call = Call(axes, 4, 2, 3, 2, batch=2, bias=True, additional=2, masked="all")
    arrays, mask, _ = call.draw()
    op = jax.jit(lambda arrays: attend(call, arrays, mask))
    jax.test_util.check_grads(op, (arrays,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def evaluated(op, arrays, mask, cotangents):
    """Returns op(arrays, mask), and by name the gradients of its arrays for cotangents of out and lse, all float64."""

    def run(arrays, mask, cotangents):
        results, pull = jax.vjp(lambda arrays: op(arrays, mask), arrays)
        return results, *pull(cotangents)

    results = jax.jit(run, compiler_options=QUICK)(arrays, mask, cotangents)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), results)
