"""The forward pass, by steps of tiles; see `natjax_kernels.xla.op`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from natjax_kernels.grids import split_group
from natjax_kernels.masked import product, scores
from natjax_kernels.problem import accumulator
from natjax_kernels.xla.lanes import fold, rows_of, tiles_of
from natjax_kernels.xla.steps import lay_out, product_of_all, scores_with_all, seen_by, visible_to, weigh
from natjax_kernels.xla.tables import bias_of, neighbours_of
from natjax_kernels.xla.tiles import (
    batch_parts,
    by_steps,
    gather_tiles,
    joined,
    key_index,
    query_index,
    row_steps,
    untile_columns,
    untile_rows,
)


def attend_tiles(
    contain, window, to_logits, biased, query, key, value, table, more_keys, more_values, key_mask, sizes, places
):
    """Returns the output and the log-sum-exp, [B, *spatial, N, 1]."""
    axes, n, groups = lay_out(query, key, value, window, biased, places)
    arrays = *(fold(x, n) for x in (query, key, value, more_keys, more_values)), key_mask, sizes
    bias = bias_of(table, axes, groups, accumulator(query))
    neighbours = neighbours_of(axes, groups) if contain else None

    def part(_, tokens):
        def steps(_, rows):  # JAX's own derivatives would keep all weights; a closure, as positions may be static
            return None, jax.checkpoint(functools.partial(step, *tokens, rows), prevent_cse=False)()

        _, results = by_steps(steps, row_steps(tokens[0], axes, n))
        return None, [untile_columns(x, axes) for x in results]

    def step(query, key, value, more_keys, more_values, key_mask, sizes, rows):
        q = rows_of(gather_tiles(query, query_index(axes, rows)), groups, n)  # [M, B, N, T, D]
        k, v = (gather_tiles(x, key_index(axes, rows)) for x in (key, value))  # [M, B, N, S, D]
        visible = visible_to(key_mask, sizes, window, axes, rows, groups)
        seen = seen_by(neighbours, visible, rows, axes, q.ndim, groups)
        logits = to_logits(scores(q, k, seen)) + bias(rows, q.ndim)  # [M, B, N, T, S]
        more = None if more_keys is None else to_logits(scores_with_all(q, more_keys))
        weights, more, total, m, any_key = weigh(logits, more, visible, axes)
        out = product(weights.astype(v.dtype), v, seen)
        if more is not None:
            out = out + product_of_all(more.astype(v.dtype), more_values)
        lse = m + jnp.log(total)  # [M, B, N, T, 1]
        if any_key is not None:
            lse = jnp.where(any_key, lse, -jnp.inf)
        out = (out / total).astype(v.dtype)
        return [untile_rows(x, rows, axes) for x in (tiles_of(out, groups, n), split_group(lse, groups))]

    _, (out, lse) = by_steps(part, batch_parts(arrays, axes, n, backward=False))
    return joined(out, query, value.shape[-1]), joined(lse, query, 1)
