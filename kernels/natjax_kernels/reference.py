"""Neighborhood attention as the definition reads: dense attention over the whole map with a mask.

The specification that every implementation is tested against; O(tokens^2), for small inputs only.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.grids import repeat_heads
from natjax_kernels.masked import product, scores
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import spec_of, within_auto_axes
from natjax_kernels.sizes import seen_at_sizes
from natjax_kernels.window import Window, windows


def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`. Derivatives are JAX's own, but of masked products."""
    spec = spec_of(problem.query)
    return within_auto_axes(_attend, problem, specs=(spec, spec[:-1]))


def _attend(problem: Problem):
    mask, relative = neighbours(problem.spatial, problem.window)
    batch, heads, accumulate = problem.batch, problem.heads, problem.accumulator
    queries = problem.query.shape[1:-2]

    def tokens(x, heads):  # [B, ..., n, D] -> [B, N, tokens, D]
        x = x.reshape(batch, math.prod(x.shape[1:-2]), *x.shape[-2:]).swapaxes(1, 2).astype(accumulate)
        return repeat_heads(x, heads // x.shape[1], 1)

    q, k, v = (tokens(x, heads) for x in (problem.query, problem.key, problem.value))
    if problem.key_mask is not None:
        mask = mask & problem.key_mask.reshape(batch, 1, 1, -1)
    if problem.sizes is not None:
        mask = mask & _seen_at_sizes(problem)
    logits = problem.logits(scores(q, k, mask))
    if problem.rpb is not None:
        logits = logits + problem.rpb.astype(accumulate).reshape(heads, -1)[:, relative]
    logits = jnp.where(mask, logits, -jnp.inf)
    if problem.additional_keys is not None:
        extra, values = (tokens(x, heads) for x in (problem.additional_keys, problem.additional_values))
        logits = jnp.concatenate([logits, problem.logits(scores(q, extra))], axis=-1)
        v = jnp.concatenate([v, values], axis=2)
        mask = jnp.concatenate([jnp.broadcast_to(mask, (*mask.shape[:-1], problem.tokens)),
                                jnp.ones((*mask.shape[:-1], extra.shape[2]), bool)], axis=-1)  # fmt: skip
    any_key = jnp.any(mask, axis=-1, keepdims=True)  # softmax of nothing is NaN, and so is its derivative
    logits = jnp.where(any_key, logits, 0)
    out = product(jnp.where(any_key, jax.nn.softmax(logits, axis=-1), 0), v, mask).swapaxes(1, 2)
    lse = jnp.where(any_key[..., 0], jax.nn.logsumexp(logits, axis=-1), -jnp.inf).swapaxes(1, 2)  # [B, queries, N]
    out = out.reshape(batch, *queries, heads, out.shape[-1]).astype(problem.dtype)
    return out, lse.reshape(batch, *queries, heads)


def _seen_at_sizes(problem: Problem):
    """Which keys are in which windows of the entries' own maps, [B, 1, queries, keys]."""
    seen = jnp.ones((problem.batch, 1, 1), bool)
    for a, (length, axis) in enumerate(zip(problem.spatial, problem.window.axes(), strict=True)):
        position = np.arange(length)
        of_axis = seen_at_sizes(problem.sizes[:, a], axis, position, position)
        seen = seen[:, :, None, :, None] & of_axis[:, None, :, None, :]
        seen = seen.reshape(problem.batch, seen.shape[1] * length, -1)
    return seen[:, None]


def neighbours(spatial: tuple[int, ...], window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns which key is a neighbour of which query and its index into the flattened bias, [queries, keys] each."""
    mask, relative = np.ones((1, 1), bool), np.zeros((1, 1), int)
    for length, axis in zip(spatial, window.axes(), strict=True):
        center, position = axis.centers(length)[:, None], np.arange(length)
        start, end = (edge[center] for edge in windows(length, axis))
        key = position // axis.dilation
        if axis.periodic:  # the one of all rounds that can be in the window
            key = start + (key - start) % (length // axis.dilation)
        seen = (center % axis.dilation == position % axis.dilation) & (start <= key) & (key < end)
        offset = np.where(seen, key - center // axis.dilation + axis.kernel - 1, 0)
        mask, relative = (
            np.kron(mask, seen),
            np.kron(relative, np.ones_like(offset)) * (2 * axis.kernel - 1) + np.kron(np.ones_like(relative), offset),
        )
    return mask, np.where(mask, relative, 0)
