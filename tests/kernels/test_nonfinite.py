"""NaNs and infinities reach what sees them and nothing else, forward and backward (of fused kernels: docs/kernels.md)."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from op_oracle import draw

from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights
from natjax_kernels.reference import neighbours
from natjax_kernels.window import make_window

# Shapes whose last tiles are padded, whose windows are cut, and whose dilation groups differ in length.
CALLS = {
    "1-D causal": ((2, 23, 2, 4), {"kernel_size": 6, "stride": 2, "is_causal": True}, False),
    "2-D": ((2, 13, 11, 2, 4), {"kernel_size": (5, 3), "dilation": (1, 2)}, True),
    "3-D": ((2, 5, 6, 4, 2, 4), {"kernel_size": 3}, False),
}
ARRAYS = ("query", "key", "value", "d_out")


@functools.cache
def gradients(how):
    """Returns a compiled function of query, key, value, rpb and d_out."""

    @functools.partial(jax.jit, static_argnames="options")
    def run(query, key, value, rpb, d_out, options):
        def op(query, key, value):
            if how == "with weights":
                return neighborhood_attention_with_weights(query, key, value, rpb=rpb, **dict(options))[0]
            name = "reference" if how == "reference" else "xla"
            return neighborhood_attention(query, key, value, rpb=rpb, implementation=name, **dict(options))

        out, pull = jax.vjp(op, query, key, value)
        return out, *pull(d_out)

    return run


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["reference", "xla", "xla, several devices", "with weights"])
def test_not_finite_is_what_sees_it(how, call, monkeypatch):
    if "devices" in how:
        monkeypatch.setattr(jax, "device_count", lambda: 2)
    shape, options, bias = CALLS[call]
    spatial = shape[1:-2]
    run = functools.partial(gradients(how), options=tuple(options.items()))
    (query, key, value, rpb), d_out = draw(shape, options["kernel_size"], bias)
    arrays = dict(zip(ARRAYS, map(np.asarray, (query, key, value, d_out)), strict=True))
    finite = run(query, key, value, rpb, d_out)
    sees, _ = neighbours(spatial, make_window(len(spatial), **options))  # [queries, keys]
    token = sees.shape[0] // 2
    for name, number in [(name, np.nan) for name in ARRAYS] + [("key", np.inf), ("value", -np.inf), ("d_out", np.inf)]:
        spoilt = {k: x.copy() for k, x in arrays.items()}
        spoilt[name][1].reshape(-1, *shape[-2:])[token, 0, 2] = number  # one channel of one head of one entry
        results = run(spoilt["query"], spoilt["key"], spoilt["value"], rpb, spoilt["d_out"])
        rows = sees[:, token] if name in ("key", "value") else np.arange(len(sees)) == token  # queries
        keys = sees[rows].any(axis=0)
        nothing = np.zeros_like(rows)
        out = nothing if name == "d_out" else rows
        expected = {"out": out, "dquery": rows, "dkey": keys, "dvalue": nothing if name == "value" else keys}
        for (of, tokens), got, plain in zip(expected.items(), results, finite, strict=True):
            lost = np.zeros(shape[:-1], bool)
            lost[1, ..., 0] = tokens.reshape(spatial)
            where = f"{name} = {number}: {of}"
            not_finite = ~np.isfinite(got).all(-1)
            assert not (not_finite & ~lost).any(), where
            if (name, number) != ("key", np.inf):  # of which a logit can be minus infinity, and its weight 0
                np.testing.assert_array_equal(not_finite, lost, err_msg=where)
            np.testing.assert_allclose(got[~lost], plain[~lost], rtol=1e-4, atol=1e-5, err_msg=where)


def test_weights_that_are_not_finite_are_those_of_queries_that_see_it():
    (query, key, value, _), _ = draw((1, 9, 8, 2, 4), 3, False)
    key = key.at[0, 4, 4, 1, 0].set(jnp.nan)
    out, weights = jax.jit(functools.partial(neighborhood_attention_with_weights, kernel_size=3))(query, key, value)
    lost = np.zeros((9, 8), bool)
    lost[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(weights[0, 1]).all(-1), lost)
    np.testing.assert_array_equal(np.isnan(out[0, ..., 1, :]).all(-1), lost)
    assert np.isfinite(weights[0, 0]).all()


@pytest.mark.parametrize("how", ["reference", "xla", "with weights"])
def test_under_a_mask_not_finite_is_what_sees_it(how):
    """A query that is NaN has a NaN log-sum-exp, too: it is no query that sees nothing."""
    (query, key, value, _), _ = draw((1, 9, 8, 1, 4), 3, False)
    hidden = jnp.zeros((1, 9, 8), bool).at[0, :3].set(True)  # all that queries of the first two rows see
    query, key = query.at[0, 5, 4].set(jnp.nan), key.at[0, 2].set(jnp.nan)
    if how == "with weights":
        op = neighborhood_attention_with_weights
    else:
        op = functools.partial(neighborhood_attention, return_lse=True, implementation=how)
    out, more = jax.jit(functools.partial(op, kernel_size=3))(query, key, value, key_mask=~hidden)
    lost = np.zeros((9, 8), bool)
    lost[5, 4] = True
    np.testing.assert_array_equal(np.isnan(out).all((0, 3, 4)), lost)
    np.testing.assert_array_equal(np.isnan(out).any((0, 3, 4)), lost)
    np.testing.assert_array_equal(np.isnan(more).reshape(9, 8, -1).all(-1), lost)
    if how != "with weights":
        np.testing.assert_array_equal(np.isneginf(more[0, ..., 0]), np.arange(9)[:, None] * np.ones(8, int) < 2)


def test_not_finite_is_what_sees_it_in_maps_of_mixed_sizes():
    """Of which tiles have more keys than windows hold: they are cut where an entry ends."""
    (query, key, value, _), d_out = draw((2, 12, 1, 4), 3, False)
    sizes = jnp.asarray([12, 7])

    def run(query, value, d_out, how):
        def op(*tokens):
            if how == "with weights":
                return neighborhood_attention_with_weights(*tokens, kernel_size=3, sizes=sizes[:, None])[0]
            return neighborhood_attention(*tokens, kernel_size=3, sizes=sizes[:, None], implementation=how)

        out, pull = jax.vjp(op, query, key, value)
        return out, *pull(d_out)

    for spoilt in (
        (query, value.at[1, 3].set(jnp.nan), d_out),
        (query, value, d_out.at[1, 6].set(jnp.nan)),
        (query.at[1, 1].set(jnp.nan), value, d_out),
    ):
        ways = "reference", "xla", "with weights"
        expected, *others = (jax.jit(functools.partial(run, how=how))(*spoilt) for how in ways)
        for got in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)
        assert np.isnan(expected[0]).any() or np.isnan(expected[1]).any()
    assert np.flatnonzero(np.isnan(expected[2][1, :, 0, 0])).tolist() == [0, 1, 2]  # keys that the query sees


def test_products_that_overflow_outside_windows_reach_nothing():
    """Of finite numbers: tile mates' logits of 1e40."""
    (query, key, value, _), _ = draw((1, 16, 1, 4), 3, False)
    query, key = query.at[0, 4].multiply(1e20), key.at[0, 7].multiply(1e20)
    op = functools.partial(neighborhood_attention, kernel_size=3, implementation="xla")
    assert np.isfinite(jax.jit(op)(query, key, value)).all()


def test_vmap_computes_again_only_where_needed():
    """A mapped test whether all is finite is one answer for all entries: nothing computes both ways."""
    (query, key, value, _), _ = draw((3, 1, 9, 1, 4), 3, False)
    op = functools.partial(neighborhood_attention, kernel_size=3, implementation="xla")
    (query, key, value) = (x.reshape(3, 1, 9, 1, 4) for x in (query, key, value))
    (loop,) = find_loops(jax.make_jaxpr(jax.vmap(op))(query, key, value).jaxpr)
    assert [x.aval.shape for x in loop.outvars if x.aval.dtype == bool] == [()]
    got = jax.jit(jax.vmap(op))(query, key, value.at[1, 0, 4].set(jnp.nan))
    lost = np.zeros((3, 9), bool)
    lost[1, 3:6] = True
    np.testing.assert_array_equal(np.isnan(got).any((1, 3, 4)), lost)


def find_loops(jaxpr):
    """Returns the while loops of a program, wherever they are but within each other."""
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while"]
    return found + [loop for inner in jax.extend.core.subjaxprs(jaxpr) for loop in find_loops(inner)]


def test_second_derivatives(x64):
    arguments, _ = draw((2, 6, 7, 1, 3), 3, True, "float64")

    def run(name):
        def first(*arrays):
            op = functools.partial(neighborhood_attention, kernel_size=3, implementation=name)
            loss = lambda q, k, v, r: (op(q, k, v, rpb=r) ** 2).sum()  # noqa: E731
            return sum((x**2).sum() for x in jax.grad(loss, (0, 1, 2, 3))(*arrays))

        return jax.jit(jax.grad(first, (0, 1, 2, 3)))(*arguments)

    for got, expected in zip(run("xla"), run("reference"), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", ["reference", "xla", "triton"])
@pytest.mark.parametrize("lowest", [-1e30, -np.inf])
def test_strongly_negative_biases(implementation, lowest):
    """Of some neighbours, or finite ones of all: weights are what is left, and gradients are finite."""
    (query, key, value, rpb), d_out = draw((1, 9, 2, 8), 3, True)
    rpb = jnp.full_like(rpb, lowest) if np.isfinite(lowest) else rpb.at[:, :2].set(lowest)

    def op(implementation, query, key, value, rpb):
        return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=3, implementation=implementation)

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype("float64"), (query, key, value, rpb, d_out))
        expected, pull = jax.vjp(functools.partial(op, "reference"), *exact[:4])
        expected = [expected, *pull(exact[4])]
    out, pull = jax.vjp(functools.partial(op, implementation), query, key, value, rpb)
    for got, right in zip([out, *pull(d_out)], expected, strict=True):
        np.testing.assert_allclose(got, right, atol=1e-5)
