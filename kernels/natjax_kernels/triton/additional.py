"""Additional keys of the fused kernels, which have none themselves: XLA attends to these, and both parts are merged.

Letters: B batch, N heads (Nk of keys), D channels of a head, S additional keys.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natjax_kernels.grids import repeat_heads_to_shard
from natjax_kernels.merge import merge_attentions
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import laid_alike, reshape, spec_of


def merging_additional_keys(attend: Callable) -> Callable:
    """Gives additional keys to an implementation without: it attends to windows, XLA to additional keys; both are merged."""

    @functools.wraps(attend)
    def merged(problem: Problem):
        if problem.additional_keys is None:
            return attend(problem)
        windows = attend(dataclasses.replace(problem, additional_keys=None, additional_values=None))
        return merge_attentions(*zip(windows, _attend_to_additional_keys(problem), strict=True))

    return merged


def _attend_to_additional_keys(problem: Problem):
    """Returns output and log-sum-exp of attention to the additional keys alone; as large as queries times S."""
    problem = laid_alike(repeat_heads_to_shard(problem))
    query, accumulate = problem.query, problem.accumulator
    *queries, heads, channels = query.shape
    (*places, place), groups = spec_of(query), (problem.key_heads, heads // problem.key_heads)
    query = reshape(query, (*queries, *groups, channels), (*places, None, place))
    logits = jnp.einsum("b...ngd,bsnd->b...ngs", query, problem.additional_keys, preferred_element_type=accumulate)
    logits = problem.logits(logits)
    lse = jax.nn.logsumexp(logits, axis=-1)
    # Not of the log-sum-exp, which is rounded where logits are large.
    weights = jax.nn.softmax(logits, axis=-1).astype(problem.dtype)
    out = jnp.einsum("b...ngs,bsnd->b...ngd", weights, problem.additional_values, preferred_element_type=accumulate)
    out = reshape(out.astype(problem.dtype), (*queries, heads, out.shape[-1]), (*places, place))
    return out, reshape(lse, (*queries, heads), tuple(places))
