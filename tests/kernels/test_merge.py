"""Merging attention over parts of the keys: against attention to all of them, at the ends of log-sum-exps, and bad input."""

import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from natjax_kernels import merge_attentions

pytestmark = pytest.mark.once


def parts(*counts):
    """Returns logits and values of so many keys each, for three queries."""
    rng = np.random.default_rng(0)
    return [(jnp.asarray(rng.normal(size=(3, n))), jnp.asarray(rng.normal(size=(n, 4)))) for n in counts]


def attend(logits, values):
    return jax.nn.softmax(logits) @ values, jax.nn.logsumexp(logits, axis=-1)


def merge(parts):
    return merge_attentions(*zip(*(attend(*part) for part in parts), strict=True))


@pytest.mark.parametrize("counts", [(5,), (2, 7), (1, 4, 3)])
def test_equals_attention_to_all_keys(counts, x64):
    drawn = parts(*counts)

    def whole(drawn):
        return attend(*(jnp.concatenate(x, axis) for x, axis in zip(zip(*drawn, strict=True), (1, 0), strict=True)))

    (got, pull), (expected, pull_whole) = jax.vjp(merge, drawn), jax.vjp(whole, drawn)
    direction = jax.tree.map(jnp.cos, expected)
    results = (got, pull(direction)), (expected, pull_whole(direction))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *results)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own check mixes dtypes
        jax.test_util.check_grads(merge, (drawn,), order=2)


@pytest.mark.parametrize(
    ("lses", "merged", "lse"),
    [
        ((-np.inf, -np.inf), 0, -np.inf),  # sees nothing
        ((-np.inf, 2), 2, 2),
        ((-3e38, -np.inf), 1, -3e38),
        ((3e38, -3e38), 1, 3e38),
        ((np.nan, 2), np.nan, np.nan),
    ],
)
def test_ends(lses, merged, lse):
    outputs = [jnp.full((1, 4), number, "float16") for number in (1, 2)]
    out, got = merge_attentions(outputs, [jnp.asarray([x], "float32") for x in lses])
    assert (out.dtype, got.dtype) == ("float16", "float32")
    np.testing.assert_array_equal(out, np.full((1, 4), merged))
    np.testing.assert_array_equal(got, np.float32([lse]))


def test_gradients_of_queries_that_see_nothing_are_0():
    lses = [jnp.asarray([-np.inf, 1.0]), jnp.asarray([-np.inf, -np.inf])]

    def loss(outputs, lses):
        out, lse = merge_attentions(outputs, lses)
        return out.sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum()

    of_outputs, of_lses = jax.grad(loss, (0, 1))([jnp.ones((2, 4))] * 2, lses)
    np.testing.assert_array_equal(np.stack(of_outputs)[..., 0], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(np.stack(of_lses), [[0, 1], [0, 0]])


OUT, LSE = jnp.ones((2, 4)), jnp.ones(2)


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "said"),
    [
        ([], [], ValueError, "at least one; got 0 and 0"),
        ([OUT], [LSE, LSE], ValueError, "got 1 and 2"),
        ([OUT, OUT[:1]], [LSE, LSE], ValueError, "outputs[1] float32 (1, 4)"),
        ([OUT, OUT.astype("bfloat16")], [LSE, LSE], ValueError, "outputs[1] bfloat16 (2, 4)"),
        ([OUT], [OUT], ValueError, "lses[0] must have the shape of its output but for the last axis, (2,); got (2, 4)"),
        ([OUT.astype(int)], [LSE], ValueError, "floating dtype; got int32"),
        ([OUT], [None], TypeError, "lses[0] must be an array of JAX or NumPy; got NoneType"),
    ],
)
def test_bad_input(outputs, lses, error, said):
    with pytest.raises(error, match=re.escape(said)):
        merge_attentions(outputs, lses)
