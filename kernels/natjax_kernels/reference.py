"""Neighborhood attention as the definition reads: dense attention over the whole map with a mask.

The specification that every implementation is tested against; O(tokens^2), for small inputs only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.masked import product, scores
from natjax_kernels.plan import Window, windows
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import spec_of, within_auto_axes


def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`. Derivatives are JAX's own, but of masked products."""
    spec = spec_of(problem.query)
    return within_auto_axes(_attend, problem, specs=(spec, spec[:-1]))


def _attend(problem: Problem):
    mask, relative = neighbours(problem.spatial, problem.window)
    batch, tokens, heads = problem.batch, problem.tokens, problem.heads
    q, k, v = (
        x.reshape(batch, tokens, heads, x.shape[-1]).swapaxes(1, 2).astype(problem.accumulator)
        for x in (problem.query, problem.key, problem.value)
    )  # [B, N, tokens, D]
    logits = scores(q, k, mask) * problem.scale
    if problem.rpb is not None:
        logits = logits + problem.rpb.astype(problem.accumulator).reshape(heads, -1)[:, relative]
    logits = jnp.where(mask, logits, -jnp.inf)
    out = product(jax.nn.softmax(logits, axis=-1), v, mask).swapaxes(1, 2)
    out = out.reshape(batch, *problem.spatial, heads, out.shape[-1]).astype(problem.dtype)
    lse = jax.nn.logsumexp(logits, axis=-1).swapaxes(1, 2)  # [B, tokens, N]
    return out, lse.reshape(batch, *problem.spatial, heads)


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
