"""The two products of attention under a mask: what it leaves out reaches neither results nor gradients, not even as NaN.

A tile computes with keys that are no neighbours of a query, at weight 0, and 0 times a NaN or infinity is NaN. `scores` and
`product` are each other's derivatives, so that gradients hold to the mask, too. A token that is not finite in some channel makes
all channels of what `product` gives it to NaN.

Letters: T queries, S keys, D channels. A mask `seen` is boolean and broadcasts to [..., T, S]; without one, all are seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natjax_kernels.problem import accumulator


def scores(query, key, seen=None):
    """Multiplies queries and keys, [..., T, D] and [..., S, D] -> [..., T, S] of the accumulator's dtype; 0 where not seen."""
    return _scores(query, key) if seen is None else _masked_scores(query, key, seen)


def product(weights, value, seen=None):
    """Sums values by weights, [..., T, S] and [..., S, D] -> [..., T, D] of the accumulator's dtype; not seen has weight 0."""
    return _product(weights, value) if seen is None else _masked_product(weights, value, seen)


def transpose(x):
    """Exchanges queries and keys of weights or of a mask; None remains None."""
    return None if x is None else x.swapaxes(-1, -2)


def _scores(query, key):
    return jnp.einsum("m...td,m...sd->m...ts", query, key, preferred_element_type=accumulator(query))


def _product(weights, value):
    return jnp.einsum("m...ts,m...sd->m...td", weights, value, preferred_element_type=accumulator(value))


@jax.custom_vjp
def _masked_scores(query, key, seen):
    return jnp.where(seen, _scores(query, key), 0)


@jax.custom_vjp
def _masked_product(weights, value, seen):
    finite = jnp.isfinite(value)
    whole = jnp.all(finite, axis=-1)[..., None, :]
    return _product(jnp.where(seen, jnp.where(whole, weights, jnp.nan), 0), jnp.where(finite, value, 0))


def _scores_backward(residuals, d_scores):
    query, key, seen = residuals
    d_query = product(d_scores, key.astype(d_scores.dtype), seen)
    d_key = product(transpose(d_scores), query.astype(d_scores.dtype), transpose(seen))
    return d_query.astype(query.dtype), d_key.astype(key.dtype), None


def _product_backward(residuals, d_out):
    weights, value, seen = residuals
    d_weights = scores(d_out, value.astype(d_out.dtype), seen)
    d_value = product(transpose(weights).astype(d_out.dtype), d_out, transpose(seen))
    return d_weights.astype(weights.dtype), d_value.astype(value.dtype), None


_masked_scores.defvjp(lambda *arrays: (_masked_scores(*arrays), arrays), _scores_backward)
_masked_product.defvjp(lambda *arrays: (_masked_product(*arrays), arrays), _product_backward)
