"""Entries of a batch whose maps have sizes of their own: each entry is at the start of its array, and windows end at its borders.

Where sizes are known at run time only, a plan has all keys that a window can come to hold (`AxisWindow.sized`), and what is here
says which of them it holds.

Letters: B batch, T queries, S keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natjax_kernels.window import AxisWindow


def seen_at_sizes(sizes: jax.Array, axis: AxisWindow, queries, keys) -> jax.Array:
    """Returns which keys are in which windows along an axis: bool [B, ..., T, S].

    Args:
        sizes: [B] of the entries along this axis.
        axis: the window.
        queries: [..., T] positions.
        keys: [..., S] positions, of the dilation group of the queries beside them.
    """
    start, end = windows_at_sizes(sizes, axis, queries)
    key = jnp.asarray(keys, jnp.int32)[None, ..., None, :] // axis.dilation
    return (start[..., None] <= key) & (key < end[..., None])


def windows_at_sizes(sizes: jax.Array, axis: AxisWindow, queries) -> tuple[jax.Array, jax.Array]:
    """Returns where windows start and end along an axis, [B, ..., T] each, counted in keys of the query's dilation group.

    `natjax_kernels.plan.windows`, for lengths that are known at run time only. Windows of queries past an entry's end hold
    nothing, with an end of 0; those longer than its dilation groups hold all of them.

    Args:
        sizes: [B] of the entries along this axis.
        axis: the window.
        queries: [..., T] positions.
    """
    queries = jnp.asarray(queries, jnp.int32)[None]
    sizes = jnp.asarray(sizes, jnp.int32).reshape(-1, *(1,) * (queries.ndim - 1))
    group, query = queries % axis.dilation, queries // axis.dilation
    length = -((group - sizes) // axis.dilation)
    leader = query // axis.stride * axis.stride + (axis.stride - 1 if axis.causal else axis.stride // 2)
    leader = jnp.minimum(leader, length - 1)
    if axis.causal:
        start, end = jnp.maximum(leader - (axis.kernel - 1), 0), query + 1
    else:
        start = jnp.clip(leader - axis.kernel // 2, 0, jnp.maximum(length - axis.kernel, 0))
        end = start + axis.kernel
    return start, jnp.where(queries < sizes, jnp.minimum(end, length), 0)


def mask_of_sizes(sizes: jax.Array, spatial: tuple[int, ...]) -> jax.Array:
    """Returns which tokens are within an entry's own map, [B, *spatial] bool, of sizes [B, rank]."""
    sizes = jnp.asarray(sizes, jnp.int32)
    within = jnp.ones((sizes.shape[0], *(1,) * len(spatial)), bool)
    for a, length in enumerate(spatial):
        position = jnp.arange(length, dtype=jnp.int32).reshape(-1, *(1,) * (len(spatial) - 1 - a))
        within &= position < sizes[:, a].reshape(-1, *(1,) * len(spatial))
    return within
