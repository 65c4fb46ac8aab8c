"""The op with its weights: what they are, their order, their gradients and dropout."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights

CALLS = {
    "1-D": ((2, 19, 2, 4), {"kernel_size": (5,), "dilation": (3,)}, True),
    "2-D": ((1, 9, 13, 2, 4), {"kernel_size": (3, 5), "dilation": (2, 1)}, True),
    "2-D causal": ((1, 9, 10, 1, 4), {"kernel_size": (3, 4), "stride": (2, 1), "is_causal": (True, False)}, False),
    "3-D": ((1, 4, 6, 5, 1, 3), {"kernel_size": (2, 3, 3), "is_causal": (True, False, True)}, False),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def draw(call):
    shape, options, bias = call
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=shape)) for _ in range(3))
    rpb = jnp.asarray(rng.normal(size=(shape[-2], *(2 * k - 1 for k in options["kernel_size"])))) if bias else None
    return (query, key, value, rpb), options


def neighbours(length, kernel, dilation, stride, causal):
    """For every query of an axis its neighbours in order; None, at the end, for those that are missing."""
    rows = []
    for query in range(length):
        group = list(range(query % dilation, length, dilation))
        place = group.index(query)
        leader = place // stride * stride + (stride - 1 if causal else stride // 2)
        leader = min(leader, len(group) - 1)
        if causal:
            run = group[max(leader - kernel + 1, 0) : place + 1]
            rows.append(run + [None] * (kernel - len(run)))
        else:
            first = min(max(leader - kernel // 2, 0), len(group) - kernel)
            rows.append(group[first : first + kernel])
    return rows


@every_call
def test_output_and_gradients_are_those_of_the_op(call, x64):
    (*arrays, rpb), options = draw(call)
    arguments = [*arrays, rpb] if rpb is not None else arrays

    def outputs(function):
        def run(*args):
            out = function(*args[:3], rpb=args[3] if len(args) > 3 else None, **options)
            return out[0] if isinstance(out, tuple) else out

        out, pull = jax.vjp(run, *arguments)
        return out, *pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    got = jax.jit(lambda: outputs(neighborhood_attention_with_weights))()
    expected = jax.jit(lambda: outputs(functools.partial(neighborhood_attention, implementation="reference")))()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@every_call
def test_weights_are_one_per_neighbour_in_order(call, x64):
    (query, key, value, rpb), options = draw(call)
    op = functools.partial(neighborhood_attention_with_weights, **options)
    _, weights = jax.jit(lambda q, k, v, r: op(q, k, v, rpb=r))(query, key, value, rpb)
    batch, *spatial, heads, channels = query.shape
    assert weights.shape == (batch, heads, *spatial, np.prod(options["kernel_size"]))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-12)

    rank = len(spatial)
    defaults = {"dilation": (1,) * rank, "stride": (1,) * rank, "is_causal": (False,) * rank}
    window = {**defaults, **options}
    per_axis = [
        neighbours(n, *axis)
        for n, *axis in zip(
            spatial, *(window[k] for k in ("kernel_size", "dilation", "stride", "is_causal")), strict=True
        )
    ]
    query, key, weights = (np.asarray(x) for x in (query, key, weights))
    for token in itertools.product(*map(range, spatial)):
        keys = list(itertools.product(*(rows[i] for rows, i in zip(per_axis, token, strict=True))))
        logits = np.full((heads, len(keys)), -np.inf)
        for slot, where in enumerate(keys):
            if None in where:
                continue
            logits[:, slot] = np.sum(query[(0, *token)] * key[(0, *where)], axis=-1) * channels**-0.5
            if rpb is not None:
                steps = zip(where, token, window["dilation"], options["kernel_size"], strict=True)
                logits[:, slot] += rpb[(slice(None), *((j - i) // d + k - 1 for j, i, d, k in steps))]
        exponential = np.exp(logits)
        expected = exponential / exponential.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(weights[(0, slice(None), *token)], expected, atol=1e-12)


def test_maps_of_mixed_sizes_give_what_each_gives_alone(x64):
    """Queries on a finer grid, fewer key heads and additional keys; outside of maps, tokens may be anything."""
    rng, sizes = np.random.default_rng(0), np.array([[9, 7], [4, 8]])
    options = {"kernel_size": (4, 3), "dilation": (1, 2), "stride": (2, 1), "is_causal": (True, False)}
    shapes = {"query": (2, 9, 20, 4, 3), "key": (2, 9, 10, 2, 3), "value": (2, 9, 10, 2, 5), "rpb": (4, 7, 5)}
    shapes |= {"additional_keys": (2, 3, 2, 3), "additional_values": (2, 3, 2, 5)}
    arrays = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}

    def cut(x, entry, finer=1):
        return x[entry : entry + 1, : sizes[entry, 0], : finer * sizes[entry, 1]]

    def of_entry(x, entry):
        maps = {"query": cut(x["query"], entry, 2), "key": cut(x["key"], entry), "value": cut(x["value"], entry)}
        return {name: x if name == "rpb" else maps.get(name, x[entry : entry + 1]) for name, x in x.items()}

    for name, finer in (("query", 2), ("key", 1), ("value", 1)):
        hidden = np.asarray(arrays[name]).copy()
        for entry in range(2):
            inside = cut(hidden, entry, finer).copy()
            hidden[entry] = np.nan
            cut(hidden, entry, finer)[:] = inside
        arrays[name] = jnp.asarray(hidden)

    @jax.jit
    def run(arrays, sizes=None):
        (out, weights), pull = jax.vjp(
            lambda arrays: neighborhood_attention_with_weights(**arrays, **options, sizes=sizes), arrays
        )
        return out, weights, pull((jnp.cos(out), jnp.sin(weights)))[0]

    out, weights, gradients = run(arrays, jnp.asarray(sizes))
    alone = [run(of_entry(arrays, entry)) for entry in range(2)]
    for entry, (expected, expected_weights, expected_gradients) in enumerate(alone):
        height, width = expected.shape[1:3]
        np.testing.assert_allclose(out[entry, :height, :width], expected[0], atol=1e-12)
        np.testing.assert_allclose(weights[entry, :, :height, :width], expected_weights[0], atol=1e-12)
        for x in (out[entry], jnp.moveaxis(weights[entry], 0, 2)):
            assert not x[height:].any()
            assert not x[:, width:].any()
        for name, x in of_entry(gradients, entry).items():
            if name != "rpb":
                np.testing.assert_allclose(x, expected_gradients[name], atol=1e-12, err_msg=name)
    np.testing.assert_allclose(gradients["rpb"], sum(x["rpb"] for _, _, x in alone), atol=1e-12)
    assert all(jnp.isfinite(x).all() for x in gradients.values())


def test_dropout_drops_and_rescales(x64):
    (query, key, value, rpb), options = draw(CALLS["2-D"])

    def call(key_of_dropout=None, value=value):
        dropout = (
            {} if key_of_dropout is None else {"dropout_rate": 0.25, "dropout_key": jax.random.key(key_of_dropout)}
        )
        return neighborhood_attention_with_weights(query, key, value, rpb=rpb, **options, **dropout)

    call = jax.jit(call)
    _, plain = call()
    out, dropped = call(3)
    kept = dropped > 0
    assert abs(float(kept.mean()) - 0.75) < 0.03
    np.testing.assert_allclose(dropped[kept], plain[kept] / 0.75, atol=1e-12)
    again, _ = call(3)
    other, _ = call(4)
    assert (out == again).all()
    assert not (out == other).all()
    ones, total = call(3, jnp.ones_like(value))
    np.testing.assert_allclose(ones[..., 0], jnp.moveaxis(total.sum(axis=-1), 1, -1), atol=1e-12)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 2.0, float("nan")])
def test_bad_dropout_rates(rate):
    (query, key, value, _), _ = draw(CALLS["1-D"])
    with pytest.raises(ValueError, match=rf"dropout_rate must be in \[0, 1\); got {rate}"):
        neighborhood_attention_with_weights(query, key, value, kernel_size=3, dropout_rate=rate)


def test_dropout_needs_a_key():
    (query, key, value, _), _ = draw(CALLS["1-D"])
    with pytest.raises(ValueError, match=r"dropout_rate 0.5 needs a dropout_key.*got None"):
        neighborhood_attention_with_weights(query, key, value, kernel_size=3, dropout_rate=0.5)
