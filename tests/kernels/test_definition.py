"""The definition (definition.py) against what is written by hand, and every implementation against the definition.

Calls are drawn from combinations of everything that the op has.
"""

import dataclasses
import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from definition import Axis, Call, attend, neighbours
from op_oracle import TOLERANCE

from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights, neighbors

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


SIZED = {  # of maps that are shorter than the axis
    "odd": (Axis(7, 3), 4, ["012", "012", "123", "123", "", "", ""]),
    "dilated": (Axis(7, 2, 2), 5, ["02", "13", "02", "13", "24", "", ""]),
    "strided": (Axis(8, 3, stride=2), 5, ["012", "012", "234", "234", "234", "", "", ""]),
    "causal": (Axis(5, 3, is_causal=True), 3, ["0", "01", "012", "", ""]),
    "causal, strided": (Axis(6, 3, stride=2, is_causal=True), 5, ["0", "01", "12", "123", "234", ""]),
    "twice the queries": (Axis(5, 3, queries=10), 3, ["012"] * 6 + [""] * 4),
    "smaller than the window": (Axis(6, 5), 3, ["012"] * 3 + [""] * 3),
    "all, smaller than the window": (Axis(6, -1, 2), 3, ["02", "1", "02", "", "", ""]),
    "nothing": (Axis(3, 2), 0, ["", "", ""]),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_definition_lists_windows_as_written_by_hand(name):
    axis, windows = WINDOWS[name]
    assert [[key for key, _ in window] for window in axis.neighbours()] == [[int(key) for key in w] for w in windows]
    if name in BIASES:
        assert [[bias for _, bias in window] for window in axis.neighbours()] == BIASES[name]


@pytest.mark.parametrize("name", SIZED)
def test_the_definition_lists_windows_of_shorter_maps_as_written_by_hand(name):
    axis, size, windows = SIZED[name]
    found = [[key for key, _ in window] for window in axis.neighbours(size)]
    assert found == [[int(key) for key in window] for window in windows]


def test_the_definition_of_a_map_that_is_smaller_than_the_axes():
    """A map of 2 x 3 in axes of 3 x 4: keys are 4 * y + x, and nothing past the map has or is a neighbour."""
    keys, biases = neighbours((Axis(3, 2), Axis(4, 2)), (2, 3))
    none = [-1] * 4
    assert keys.tolist() == [*[[0, 1, 4, 5], [0, 1, 4, 5], [1, 2, 5, 6], none] * 2, *[none] * 4]
    assert biases.tolist() == [
        [4, 5, 7, 8], [3, 4, 6, 7], [3, 4, 6, 7], none, [1, 2, 4, 5], [0, 1, 3, 4], [0, 1, 3, 4], none, *[none] * 4,
    ]  # fmt: skip


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


def test_the_definition_of_maps_of_mixed_sizes(x64):
    """Each gives what it gives alone; beyond it there is nothing, though additional keys are seen by all."""
    axes = Axis(5, 3, stride=2, is_causal=True), Axis(6, 2, dilation=2, queries=12)
    call = Call(axes, 4, 2, 3, 2, batch=2, bias=True, additional=2, masked="some", sizes=((3, 5), (4, 4)))
    arrays, mask, _ = call.draw()
    run = jax.jit(attend, static_argnums=0, compiler_options=QUICK)
    out, lse = run(call, arrays, mask)
    for entry, (height, width) in enumerate(call.sizes):
        cut = dataclasses.replace(axes[0], length=height), dataclasses.replace(axes[1], length=width, queries=2 * width)
        alone = {name: x if name == "rpb" else x[entry : entry + 1] for name, x in arrays.items()}
        alone |= {name: alone[name][:, :height, :width] for name in ("key", "value")}
        alone["query"] = alone["query"][:, :height, : 2 * width]
        call_alone = dataclasses.replace(call, axes=cut, sizes=None)
        expected = run(call_alone, alone, mask[entry : entry + 1, :height, :width])
        for got, right, beyond in zip((out, lse), expected, (0, -np.inf), strict=True):
            inside = np.zeros(got.shape[1:3], bool)
            inside[:height, : 2 * width] = True
            np.testing.assert_allclose(got[entry, :height, : 2 * width], right[0], rtol=1e-14)
            assert (got[entry][~inside] == beyond).all()


def test_gradients_of_the_definition_are_those_of_finite_differences(x64):
    axes = Axis(4, 3, stride=2, is_causal=True), Axis(6, 2, dilation=2, periodic=True, queries=3)
    call = Call(axes, 4, 2, 3, 2, batch=2, bias=True, additional=2, masked="all")
    arrays, mask, _ = call.draw()
    op = jax.jit(lambda arrays: attend(call, arrays, mask))
    jax.test_util.check_grads(op, (arrays,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def evaluated(op, arrays, hidden, cotangents):
    """Returns op(arrays, hidden), and by name the gradients of its arrays for cotangents of out and lse, all float64."""

    def run(arrays, hidden, cotangents):
        results, pull = jax.vjp(lambda arrays: op(arrays, hidden), arrays)
        return results, *pull(cotangents)

    results = jax.jit(run, compiler_options=QUICK)(arrays, hidden, cotangents)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), results)


def assert_equal_to_the_definition(implementation, call, dtype, seed):
    """Compares out, lse and all gradients; where there is a forward mode, that with the gradients."""
    arrays, mask, cotangents = call.draw(dtype, seed)
    options = call.options() | {"return_lse": True, "implementation": implementation}

    def op(arrays, hidden):
        return neighborhood_attention(**arrays, **hidden, **options)

    hidden = {"key_mask": mask, "sizes": call.sizes and jnp.asarray(call.sizes)}
    got = evaluated(op, arrays, hidden, cotangents)
    exact = jax.tree.map(lambda x: x.astype("float64"), (arrays, cotangents))
    expected = evaluated(functools.partial(attend, call), exact[0], mask, exact[1])
    for (path, right), result in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        size = max(1.0, np.abs(right[np.isfinite(right)]).max(initial=0))
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(result / size, right / size, rtol=0, atol=TOLERANCE[dtype], err_msg=name)
    if implementation == "xla_autodiff":
        tangents = jax.tree.map(jnp.nan_to_num, call.draw(dtype, seed + 1)[0])

        def forward(hidden, *args):
            return jax.jvp(lambda arrays: op(arrays, hidden), *args)[1]

        forward = jax.jit(forward, compiler_options=QUICK)
        along_tangents = sum(map(jnp.vdot, forward(hidden, (arrays,), (tangents,)), cotangents))
        along_gradients = sum(np.vdot(gradient, tangents[name]) for name, gradient in expected[1].items())
        np.testing.assert_allclose(along_tangents, along_gradients, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@st.composite
def axes(draw, longest, sized=False):
    """Any legal axis, or any that maps of mixed sizes can have."""
    dilation = draw(st.integers(1, min(3, longest // 2)))
    kernel = draw(st.integers(2, min(6, longest // dilation)))
    stride = draw(st.integers(1, min(kernel, 4)))
    lengths = range(kernel * dilation, longest + 1)
    even = [n for n in lengths if n % (stride * dilation) == 0]  # whose dilation groups and strides are all alike
    length = draw(st.sampled_from(even)) if even and draw(st.booleans()) else draw(st.sampled_from(lengths))
    periodic = not sized and length in even and draw(st.booleans())
    causal = not periodic and draw(st.booleans())
    if length % dilation == 0 and draw(st.integers(0, 4)) == 0:
        kernel = -1
    finer = [n * length for n in (2, 3) if n * length <= 2 * longest]
    coarser = [length // n for n in range(2, length + 1) if length % n == 0]
    queries = draw(st.one_of(st.none(), st.sampled_from(finer), st.nothing() if sized else st.sampled_from(coarser)))
    return Axis(length, kernel, dilation, stride, causal, periodic, queries)


@st.composite
def calls(draw, longest, most_entries, sized):
    """Any legal call on axes that, by their number, are at most so long; `sized` draws whether maps have sizes of their own."""
    rank, key_heads, sized = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(sized)
    several, batch = [draw(axes(longest[rank], sized)) for _ in range(rank)], draw(st.integers(1, most_entries))
    # Maps that are smaller than their windows, too, which only traced sizes can be.
    sides = [st.integers(axis.kernel * axis.dilation, axis.length) | st.integers(0, axis.length) for axis in several]
    return Call(
        axes=tuple(several),
        heads=key_heads * draw(st.integers(1, 3)),
        key_heads=key_heads,
        channels=draw(st.integers(1, 5)),
        value_channels=draw(st.integers(1, 5)),
        batch=batch,
        bias=draw(st.booleans()),
        additional=draw(st.sampled_from([None, 0, 1, 3])),
        masked=draw(st.sampled_from(["none", "some", "all"])),
        sizes=tuple(tuple(draw(side) for side in sides) for _ in range(batch)) if sized else None,
        scale=draw(st.sampled_from([None, 0.7])),
        logits_soft_cap=draw(st.sampled_from([None, None, 0.8])),
    )


CALLS = calls({1: 20, 2: 8, 3: 5}, 2, st.sampled_from([False, False, True]))
SMALL_CALLS = calls({1: 10, 2: 5, 3: 4}, 1, st.just(False))  # for Triton's interpreter; it has no sizes


def sweep(implementation, precise, examples):
    """Compares so many calls."""
    number = itertools.count(1)

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
    @hypothesis.given(SMALL_CALLS if implementation == "triton" else CALLS, st.integers(0, 9))
    def run(call, seed):
        assert_equal_to_the_definition(implementation, call, precise, seed)
        if next(number) % 100 == 0:
            jax.clear_caches()  # programs of thousands of calls take gigabytes

    with jax.enable_x64(True):
        run()


@pytest.mark.once  # the newer Python runs the slow one
def test_equals_the_definition(implementation, precise):
    # Of the same sequence: in Triton's interpreter, where a call takes six seconds, the rest is for the slow one alone.
    sweep(implementation, precise, examples=5 if implementation == "triton" else 20)


@pytest.mark.slow
def test_equals_the_definition_in_many_calls(implementation, precise):
    examples = {"reference": 40, "xla": 150, "xla_autodiff": 50, "triton": 25}  # a second each
    sweep(implementation, precise, examples[implementation])


@functools.cache
def every_axis(longest):
    """Returns every legal axis with as many queries as keys, of at most so many."""
    found = []
    for length, dilation in itertools.product(range(2, longest + 1), range(1, longest)):
        kernels = range(2, length // dilation + 1)
        whole = [-1] if kernels and length % dilation == 0 else []
        for kernel in [*kernels, *whole]:
            for stride in range(1, (length // dilation if kernel == -1 else kernel) + 1):
                kinds = [(False, False), (True, False)] + [(False, True)] * (length % (dilation * stride) == 0)
                found += [Axis(length, kernel, dilation, stride, *kind) for kind in kinds]
    return found


def lists_of(table):
    """Returns the rows of a table as lists without its -1."""
    return [[entry for entry in row if entry >= 0] for row in table.tolist()]


@pytest.mark.parametrize("grid", ["as many", "finer", "coarser"])
def test_neighbors_of_every_axis(grid):
    for plain in every_axis(12):
        length = plain.length
        coarser = [length // n for n in range(2, length + 1) if length % n == 0]
        for queries in {"as many": [length], "finer": [2 * length, 3 * length], "coarser": coarser}[grid]:
            axis = dataclasses.replace(plain, queries=queries)
            table = neighbors((length,), **Call((axis,)).windows(), query_spatial=(queries,))
            assert table.dtype == np.int32
            assert table.shape == (queries, axis.kernel)
            assert lists_of(table) == [[key for key, _ in window] for window in axis.neighbours()], axis


@hypothesis.settings(max_examples=200, derandomize=True, deadline=None, database=None)
@hypothesis.given(st.lists(axes(5), min_size=2, max_size=3))
def test_neighbors_of_several_axes(several):
    spatial, grid = tuple(axis.length for axis in several), tuple(axis.query_length for axis in several)
    table = neighbors(spatial, **Call(tuple(several)).windows(), query_spatial=grid)
    count = math.prod(axis.kernel for axis in several)
    assert table.shape == (*grid, count)
    assert lists_of(table.reshape(-1, count)) == lists_of(neighbours(several)[0])


def in_order(axes, size):
    """Returns the keys that each query of a map has for all neighbours along all axes, [Q, K]; -1 for those that it has not."""
    padded = [
        [[key for key, _ in window] + [None] * (axis.kernel - len(window)) for window in axis.neighbours(n)]
        for axis, n in zip(axes, size, strict=True)
    ]
    spatial = [axis.length for axis in axes]
    return np.array(
        [
            [-1 if None in key else np.ravel_multi_index(key, spatial) for key in itertools.product(*windows)]
            for windows in itertools.product(*padded)
        ]
    )


@hypothesis.settings(max_examples=10, derandomize=True, deadline=None, database=None)
@hypothesis.given(calls({1: 12, 2: 5, 3: 4}, 1, st.booleans()))
def test_weights_are_those_of_neighbors_in_their_order(call):
    """Values are unit vectors, so that the definition's output is one weight per key, and then per additional key."""
    more = call.additional or 0
    tokens = math.prod(axis.length for axis in call.axes)
    call = dataclasses.replace(call, key_heads=1, value_channels=tokens + more)
    with jax.enable_x64(True):
        arrays, mask, _ = call.draw()
        units = jnp.eye(tokens + more)[None, :, None]
        arrays["value"] = units[:, :tokens].reshape(arrays["value"].shape)
        if call.additional is not None:
            arrays["additional_values"] = units[:, tokens:]
        op = functools.partial(neighborhood_attention_with_weights, key_mask=mask, **call.options())
        sizes = call.sizes and jnp.asarray(call.sizes)
        _, weights = jax.jit(lambda arrays, sizes: op(**arrays, sizes=sizes), compiler_options=QUICK)(arrays, sizes)
        expected, _ = jax.jit(functools.partial(attend, call), compiler_options=QUICK)(arrays, mask)
    spatial, grid = tuple(axis.length for axis in call.axes), tuple(axis.query_length for axis in call.axes)
    index = in_order(call.axes, call.sizes[0] if call.sizes else spatial)[:, None]
    if call.sizes is None:
        np.testing.assert_array_equal(
            index, neighbors(spatial, **call.windows(), query_spatial=grid).reshape(index.shape)
        )
    index = np.concatenate([index, np.broadcast_to(tokens + np.arange(more), (*index.shape[:2], more))], axis=-1)
    expected = np.take_along_axis(expected.reshape(len(index), call.heads, -1), index, axis=-1)
    expected = np.where(index < 0, 0, expected)  # [Q, N, K + S]
    assert weights.shape == (1, call.heads, *grid, index.shape[-1])
    np.testing.assert_allclose(weights.reshape(call.heads, len(index), -1).swapaxes(0, 1), expected, rtol=0, atol=1e-12)
