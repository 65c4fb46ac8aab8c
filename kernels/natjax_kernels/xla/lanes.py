"""Heads that fill the lanes of a TPU together.

A TPU stores the last axis of an array in rows of 128 lanes and multiplies matrices of 128 columns: a head of 32 channels leaves
three quarters of both empty. n heads become one whose channels are theirs, one after another: keys and values are so already,
as they lie in memory. Queries of a head are 0 in the channels of the others, so that products with keys are its own, and of the
sums of values, those in its own channels count. So n heads are to the rest of the implementation what heads are that share a key
head: n times the queries of a tile. What is not finite in a token of one head is so in all n, as 0 times NaN is NaN; it
stays within windows.

Letters: B batch, N heads, T queries per tile, D channels of a head.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.grids import join_group, split_group
from natjax_kernels.sharding import reshape, shards, spec_of
from natjax_kernels.xla.tiling import lanes


def heads_together(query, key, value) -> int:
    """Returns how many heads, n, share lanes: none do that share key heads, or that are of several devices."""
    heads, channels = key.shape[-2], max(key.shape[-1], value.shape[-1])
    if query.shape[-2] != heads:
        return 1
    own = heads // shards(key, -2)
    return max(n for n in range(1, max(1, lanes() // channels) + 1) if own % n == 0)


def fold(x, n: int):
    """Makes one head of n: [..., N, D] -> [..., N / n, n * D]; None remains."""
    if x is None or n == 1:
        return x
    *rest, heads, channels = x.shape
    return reshape(x, (*rest, heads // n, n * channels), spec_of(x))


def rows_of(x, groups: int, n: int):
    """Makes rows of tiles of queries, one for every head and query: [..., N / n, T, n * D] -> [..., N / n, n * T, n * D].

    With n of 1, of heads of a group: see `natjax_kernels.grids.join_group`.
    """
    return join_group(x, groups) if n == 1 else jnp.concatenate([jnp.where(own, x, 0) for own in _own(x, n)], axis=-2)


def tiles_of(x, groups: int, n: int):
    """Undoes `rows_of`."""
    if n == 1:
        return split_group(x, groups)
    parts = zip(_own(x, n), jnp.split(x, n, axis=-2), strict=True)
    return functools.reduce(operator.add, (jnp.where(own, part, 0) for own, part in parts))


def _own(x: jax.Array, n: int) -> np.ndarray:
    """Which channels are of every head, [n, n * D]."""
    return np.repeat(np.eye(n, dtype=bool), x.shape[-1] // n, axis=1)
