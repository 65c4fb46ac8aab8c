"""The backward pass, by steps of tiles; see `natjax_kernels.xla.op`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from natjax_kernels.grids import join_group
from natjax_kernels.masked import product, scores, transpose
from natjax_kernels.problem import accumulator
from natjax_kernels.xla.lanes import fold, rows_of, tiles_of
from natjax_kernels.xla.steps import (
    lay_out,
    product_of_all,
    scores_with_all,
    seen_by,
    sum_over_queries,
    visible_to,
    weigh,
)
from natjax_kernels.xla.tables import add_gradient, bias_of, neighbours_of, no_gradient
from natjax_kernels.xla.tiles import (
    batch_parts,
    by_steps,
    collect_halo,
    from_halos,
    gather_tiles,
    halo_sums,
    joined,
    key_index,
    owned_queries,
    query_index,
    row_steps,
    untile_columns,
    untile_rows,
)


def backward_tiles(
    contain,
    window,
    to_logits,
    biased,
    query,
    key,
    value,
    table,
    more_keys,
    more_values,
    key_mask,
    sizes,
    places,
    d_out,
    d_lse,
):
    """Returns the gradients of query, key, value, of additional keys and values, if any, and, of a bias, sums of steps."""
    axes, n, groups = lay_out(query, key, value, window, biased, places)
    likes = query, key, value, more_keys, more_values
    arrays = *(fold(x, n) for x in likes), key_mask, sizes, fold(d_out, n), d_lse  # of a batch
    bias = bias_of(table, axes, groups, accumulator(query))
    neighbours = neighbours_of(axes, groups) if contain else None

    def part(d_bias, tokens):
        carry = d_bias, *(halo_sums(x, axes) for x in tokens[1:3])
        (d_bias, *sums), (d_query, *halos, of_all) = by_steps(
            functools.partial(step, *tokens), row_steps(tokens[0], axes, n), carry
        )
        of_keys = (from_halos(*x, axes) for x in zip(sums, halos, strict=True))
        return d_bias, [untile_columns(d_query, axes), *of_keys, *(jnp.sum(x, axis=0) for x in of_all)]

    def step(query, key, value, more_keys, more_values, key_mask, sizes, d_out, d_lse, carry, rows):
        d_bias, *sums = carry
        queries = query_index(axes, rows)
        q, do = (rows_of(gather_tiles(x, queries), groups, n) for x in (query, d_out))
        d_lse = None if d_lse is None else join_group(gather_tiles(d_lse, queries), groups)
        k, v = (gather_tiles(x, key_index(axes, rows)) for x in (key, value))
        owned = None
        if "owned" in rows:  # padded queries repeat a token: nothing of them may flow back
            owned = owned_queries(rows, axes, q.ndim, groups)
            do, d_lse = jax.tree.map(lambda x: jnp.where(owned, x, 0), (do, d_lse))
        visible = visible_to(key_mask, sizes, window, axes, rows, groups)
        seen = seen_by(neighbours, visible, rows, axes, q.ndim, groups)
        logits = to_logits(scores(q, k, seen))  # [M, B, N, T, S]
        more_logits = None if more_keys is None else to_logits(scores_with_all(q, more_keys))
        weights, more, total, _, any_key = weigh(logits + bias(rows, q.ndim), more_logits, visible, axes)
        if any_key is not None and d_lse is not None:
            d_lse = jnp.where(any_key, d_lse, 0)
        weights = weights / total
        d_weights = scores(do, v, seen)
        delta = jnp.sum(weights * d_weights, axis=-1, keepdims=True)
        if more is not None:
            more, d_more = more / total, scores_with_all(do, more_values)
            delta = delta + jnp.sum(more * d_more, axis=-1, keepdims=True)
        if d_lse is not None:
            delta = delta - d_lse
        d_logits = weights * (d_weights - delta)
        weights, d_scores = weights.astype(v.dtype), to_logits.gradient(d_logits, logits).astype(q.dtype)
        d_query = product(d_scores, k, seen)
        d_key = product(transpose(d_scores), q, transpose(seen)).astype(k.dtype)
        d_value = product(transpose(weights), do, transpose(seen)).astype(v.dtype)
        of_all = []
        if more is not None:
            d_more = to_logits.gradient(more * (d_more - delta), more_logits).astype(q.dtype)
            d_query = d_query + product_of_all(d_more, more_keys)
            of_all = [sum_over_queries(d_more, q), sum_over_queries(more.astype(v.dtype), do)]
        if biased:
            d_logits = d_logits if owned is None else jnp.where(owned, d_logits, 0)  # of a bias of -inf they are NaN
            d_bias = add_gradient(d_bias, d_logits, rows, axes, groups, window)
        d_query = untile_rows(tiles_of(d_query.astype(q.dtype), groups, n), rows, axes)
        collected = (collect_halo(*x, rows, axes) for x in zip(sums, (d_key, d_value), strict=True))
        sums, halos = zip(*collected, strict=True)
        return (d_bias, *sums), (d_query, *halos, of_all)

    d_bias = no_gradient(table, axes, groups, accumulator(query)) if biased else None
    d_bias, gradients = by_steps(part, batch_parts(arrays, axes, n, backward=True), d_bias)
    gradients = [joined(x.astype(like.dtype), like, like.shape[-1]) for x, like in zip(gradients, likes, strict=False)]
    return *gradients, d_bias
