"""Queries that share keys: heads of a group, and queries on a finer grid than keys, which become such heads.

Along an axis with r queries per key, query i has the window of key i // r: the r queries of a key differ in nothing but
themselves. So [B, L r, N, D] is attention of [B, L, N r, D], whose heads n r to n r + r - 1 share the bias and the key head of
n: no implementation has to know of finer grids, and no key is repeated.

Letters: B batch, L keys along an axis, r queries per key, N heads, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from natjax_kernels.sharding import reshape, shards, spec_of


def fold(query: Any, factors: tuple[int, ...]) -> Any:
    """Folds queries into heads: [B, L r of every axis, N, D] -> [B, L of every axis, N * product of r, D]."""
    if math.prod(factors) == 1:
        return query
    if isinstance(query, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda x: fold(x, factors), query)
    rank, (batch, *sides, heads, channels) = len(factors), query.shape
    split = [n for side, r in zip(sides, factors, strict=True) for n in (side // r, r)]
    places = spec_of(query)
    along = [place for a in range(rank) for place in (places[1 + a], None)]
    x = reshape(query, (batch, *split, heads, channels), (places[0], *along, *places[-2:]))
    keys, phases = range(1, 1 + 2 * rank, 2), range(2, 2 + 2 * rank, 2)
    x = x.transpose(0, *keys, 1 + 2 * rank, *phases, 2 + 2 * rank)
    return reshape(x, (batch, *split[::2], heads * math.prod(factors), channels), places)


def fold_bias(rpb: Any, factors: tuple[int, ...]) -> Any:
    """Gives the bias of every head to all heads that are made of it: [N, ...] -> [N * product of r, ...]; None remains."""
    if rpb is None or math.prod(factors) == 1:
        return rpb
    if isinstance(rpb, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda x: fold_bias(x, factors), rpb)
    return repeat_heads(rpb, math.prod(factors), 0)


def unfold(x: jax.Array, factors: tuple[int, ...]) -> jax.Array:
    """Undoes `fold` of what has been computed for queries: [B, L of every axis, N * product of r, ...] -> [B, L r, N, ...]."""
    if math.prod(factors) == 1:
        return x
    rank, places = len(factors), spec_of(x)
    batch, sides, heads, rest = x.shape[0], x.shape[1 : 1 + rank], x.shape[1 + rank], x.shape[2 + rank :]
    heads //= math.prod(factors)
    x = reshape(
        x,
        (batch, *sides, heads, *factors, *rest),
        (*places[: 2 + rank], *(None,) * rank, *places[2 + rank :]),
    )
    pairs = [n for a in range(rank) for n in (1 + a, 2 + rank + a)]
    x = x.transpose(0, *pairs, 1 + rank, *range(2 + 2 * rank, x.ndim))
    return reshape(x, (batch, *(n * r for n, r in zip(sides, factors, strict=True)), heads, *rest), places)


def repeat_heads(x: jax.Array, repeats: int, axis: int) -> jax.Array:
    """Repeats every head along an axis, for as many heads of queries: [..., Nk, ...] -> [..., Nk * repeats, ...]."""
    if repeats == 1:
        return x
    before, heads, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    spread = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*before, heads, repeats, *after))
    return reshape(spread, (*before, heads * repeats, *after), spec_of(x))


def repeat_heads_to_shard(problem: Any) -> Any:
    """Gives every query head a key head of its own where devices that share the query heads cannot share the key heads."""
    if problem.key_heads % shards(problem.query, -2) == 0:
        return problem
    repeats = problem.heads // problem.key_heads
    names = [
        name for name in ("key", "value", "additional_keys", "additional_values") if getattr(problem, name) is not None
    ]
    repeated = {name: repeat_heads(x, repeats, x.ndim - 2) for name in names for x in [getattr(problem, name)]}
    return dataclasses.replace(problem, **repeated)


def join_group(x: jax.Array, groups: int) -> jax.Array:
    """Makes queries of one head of those of the heads that share a key head: [..., N, T, D] -> [..., N / groups, groups * T, D].

    A head axis of 1, of what all heads have in common, remains.
    """
    if groups == 1:
        return x
    *rest, heads, slots, channels = x.shape
    if heads == 1:
        return jnp.concatenate([x] * groups, axis=-2)
    return reshape(x, (*rest, heads // groups, groups * slots, channels), spec_of(x))


def split_group(x: jax.Array, groups: int) -> jax.Array:
    """Undoes `join_group`."""
    if groups == 1:
        return x
    *rest, heads, slots, channels = x.shape
    return reshape(x, (*rest, heads * groups, slots // groups, channels), spec_of(x))
