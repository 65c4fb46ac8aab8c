"""Neighborhood attention as the definition reads: dense attention over the whole map with a mask.

The specification that every implementation is tested against; O(tokens^2), for small inputs only.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.plan import Window, windows


def attend(query, key, value, rpb, *, window: Window, scale: float):
    """Computes the op; arguments are those of `natjax_kernels.neighborhood_attention`, validated and normalised."""
    spatial = query.shape[1:-2]
    mask, relative = neighbours(spatial, window)
    batch, heads = query.shape[0], query.shape[-2]
    tokens = math.prod(spatial)
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    q, k, v = (x.reshape(batch, tokens, heads, x.shape[-1]).astype(accumulate) for x in (query, key, value))
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k) * scale
    if rpb is not None:
        logits = logits + rpb.astype(accumulate).reshape(heads, -1)[:, relative]
    weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
    out = jnp.einsum("bnqk,bknd->bqnd", weights, v)
    return out.reshape(batch, *spatial, heads, value.shape[-1]).astype(query.dtype)


def neighbours(spatial: tuple[int, ...], window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns which key is a neighbour of which query and its index into the flattened bias, [tokens, tokens] each."""
    mask, relative = np.ones((1, 1), bool), np.zeros((1, 1), int)
    for length, (kernel, dilation, stride, causal) in zip(spatial, window.axes(), strict=True):
        position = np.arange(length)
        start, end = windows(length, kernel, dilation, stride, causal)
        key = position // dilation
        seen = (position[:, None] % dilation == position % dilation) & (start[:, None] <= key) & (key < end[:, None])
        offset = np.where(seen, key - key[:, None] + kernel - 1, 0)
        mask, relative = (
            np.kron(mask, seen),
            np.kron(relative, np.ones_like(offset)) * (2 * kernel - 1) + np.kron(np.ones_like(relative), offset),
        )
    return mask, np.where(mask, relative, 0)
