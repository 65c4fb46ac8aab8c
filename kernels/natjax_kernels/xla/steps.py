"""What the forward and the backward pass have in common: the layout of a call, and in a step its weights, masks and products.

Letters: M tiles, B batch, N heads, T queries per tile, S keys per tile, or additional keys, D channels of a head. Where the batch
is 1, arrays of tiles have no axis for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natjax_kernels.axis import AxisPlan
from natjax_kernels.bias import MASKED
from natjax_kernels.grids import join_group
from natjax_kernels.problem import accumulator
from natjax_kernels.window import Window
from natjax_kernels.xla.lanes import heads_together
from natjax_kernels.xla.tiles import owned_queries, plan_of, visible_keys


def lay_out(query, key, value, window, biased, places):
    """Returns the plan, how many heads share lanes, and how many heads of queries share a row of keys."""
    n = heads_together(query, key, value)
    return plan_of(key, window, biased, places, n), n, query.shape[-2] // key.shape[-2] * n


def weigh(logits, more, visible, axes: tuple[AxisPlan, ...]):
    """Returns weights before they are normalised.

    Args:
        logits: those of keys in windows, [M, B, N, T, S].
        more: those of additional keys, [M, B, N, T, S]; or None.
        visible: which keys no mask hides, [M, B, 1, 1, S]; or None.
        axes: the plan.

    Returns:
        Weights of keys and of additional keys (or None), their sum (1 instead of 0), the maximum of logits, and which queries
        see anything (or None where all do).
    """
    if visible is not None:
        logits = jnp.where(visible, logits, -jnp.inf)
    all_see = visible is None and not any(axis.blind for axis in axes)
    m = jnp.max(logits, axis=-1, keepdims=True)
    if more is not None:
        m = jnp.maximum(m, jnp.max(more, axis=-1, keepdims=True))
    m = jax.lax.stop_gradient(m)
    if not all_see:
        m = jnp.where(m > MASKED / 2, m, 0)  # of queries that see nothing: their weights are then all 0
    weights = jnp.exp(logits - m)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if more is not None:
        more = jnp.exp(more - m)
        total = total + jnp.sum(more, axis=-1, keepdims=True)
    if all_see:
        return weights, more, total, m, None
    any_key = total != 0  # also where it is NaN, of which XLA's maximum on a CPU may know nothing
    return weights, more, jnp.where(any_key, total, 1), m, any_key


def visible_to(key_mask, sizes, window: Window, axes: tuple[AxisPlan, ...], rows: dict, groups: int):
    """`visible_keys`, of the rank of scores, of all queries of the heads that share a key head."""
    visible = visible_keys(key_mask, sizes, window, axes, rows)
    if visible is None:
        return None
    visible = visible[:, 0] if visible.shape[1] == 1 else visible
    return visible if sizes is None else join_group(visible, groups)


def seen_by(neighbours, visible, rows: dict, axes: tuple[AxisPlan, ...], rank: int, groups: int):
    """Which queries, but padding, see which keys, of the rank of scores; None without a table of neighbours."""
    if neighbours is None:
        return None
    seen = neighbours(rows, rank)
    seen = seen if visible is None else seen & visible
    return seen & owned_queries(rows, axes, rank, groups) if "owned" in rows else seen


def scores_with_all(query, key):
    """Multiplies queries of tiles with keys that all see: [M, B, N, T, D] and [B, S, N, D] -> [M, B, N, T, S]."""
    key = _of_heads(key, query.ndim)
    return jnp.einsum("m...td,...sd->m...ts", query, key, preferred_element_type=accumulator(query))


def product_of_all(weights, value):
    """Sums values that all see: [M, B, N, T, S] and [B, S, N, D] -> [M, B, N, T, D]."""
    value = _of_heads(value, weights.ndim)
    return jnp.einsum("m...ts,...sd->m...td", weights, value, preferred_element_type=accumulator(value))


def sum_over_queries(weights, query):
    """Sums queries of all tiles by weights: [M, B, N, T, S] and [M, B, N, T, D] -> [B, S, N, D]."""
    if weights.ndim == 4:
        weights, query = weights[:, None], query[:, None]
    return jnp.einsum("mbnts,mbntd->bsnd", weights, query, preferred_element_type=accumulator(query))


def _of_heads(x, rank: int):
    """Brings additional tokens [B, S, N, D] to [B, N, S, D], or for tiles without a batch axis to [N, S, D]."""
    x = x.swapaxes(1, 2)
    return x[0] if rank == 4 else x
