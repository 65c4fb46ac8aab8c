"""Neighborhood attention that returns its weights, for inspection and for attention dropout.

The attention of `natjax_kernels.xla.op` with the weights kept; derivatives are JAX's own, but of masked products.
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.axis import AxisPlan, is_large
from natjax_kernels.bias import MASKED, bias_table, computed, neighbour_table, table_shape
from natjax_kernels.grids import repeat_heads
from natjax_kernels.masked import product, scores
from natjax_kernels.plan import tile_classes
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import spec_of, within_auto_axes
from natjax_kernels.sizes import windows_at_sizes
from natjax_kernels.window import Window
from natjax_kernels.xla.tiles import (
    from_tiles,
    key_index,
    of_map,
    owned_queries,
    plan_of,
    query_index,
    to_tiles,
    visible_keys,
)


def attend_with_weights(problem: Problem, *, dropout_rate: float, dropout_key):
    """See `natjax_kernels.neighborhood_attention_with_weights`."""

    spec = spec_of(problem.query)
    return within_auto_axes(functools.partial(_attend, dropout_rate), problem, dropout_key, specs=(spec, spec))


def _attend(dropout_rate: float, problem: Problem, dropout_key):
    """Returns the output and the weights [B, *spatial, N, K + S]."""
    axes = plan_of(problem.key, problem.window, problem.rpb is not None, None, 1)
    accumulate, repeats = problem.accumulator, problem.heads // problem.key_heads
    q = to_tiles(problem.query, query_index(axes))  # [M, B, N, T, D]
    keys = key_index(axes)
    k, v = (repeat_heads(to_tiles(x, keys), repeats, 2) for x in (problem.key, problem.value))  # [M, B, N, S, D]
    classes = tile_classes(axes)
    pairs = [axis.pairs for axis in axes]
    bias = bias_table(pairs, problem.rpb, accumulate)[classes][:, None]
    seen = neighbour_table(pairs)[classes][:, None]
    if any((axis.queries < 0).any() for axis in axes):  # padded queries repeat a token: nothing of them may flow back
        seen &= owned_queries({"owned": axes[0].queries >= 0}, axes, seen.ndim, 1)
    visible = visible_keys(problem.key_mask, problem.sizes, problem.window, axes)
    seen = seen if visible is None else seen & visible
    logits = problem.logits(scores(q, k, seen)) + bias
    if visible is not None:
        logits = jnp.where(visible, logits, -jnp.inf)
    if problem.additional_keys is not None:
        more, values = (
            repeat_heads(x.swapaxes(1, 2), repeats, 1)[None]
            for x in (problem.additional_keys, problem.additional_values)
        )
        more, values = (jnp.broadcast_to(x, (len(classes), *x.shape[1:])) for x in (more, values))  # [M, B, N, S, D]
        logits = jnp.concatenate([logits, problem.logits(scores(q, more))], axis=-1)
        v = jnp.concatenate([v, values], axis=-2)
        seen = jnp.concatenate([seen, jnp.ones((*seen.shape[:-1], more.shape[-2]), bool)], axis=-1)
    if problem.key_mask is None:
        probabilities = jax.nn.softmax(logits, axis=-1)
    else:
        any_key = jnp.any(~(logits <= MASKED / 2), axis=-1, keepdims=True)  # a NaN is something that is seen
        probabilities = jnp.where(any_key, jax.nn.softmax(jnp.where(any_key, logits, 0), axis=-1), 0)
    if dropout_rate:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(kept, probabilities / (1 - dropout_rate), 0)
    probabilities = probabilities.astype(problem.dtype)
    out = product(probabilities, v, seen).astype(problem.dtype)
    per_neighbour, of_additional = jnp.split(probabilities, [k.shape[-2]], axis=-1)
    if problem.sizes is None:
        slots, present = _slots(axes, problem.window)
    else:
        slots, present = _slots_at_sizes(problem.sizes, axes, problem.window)
    per_neighbour = jnp.take_along_axis(per_neighbour, slots, axis=-1, mode="clip")
    if present is not None:
        per_neighbour = jnp.where(present, per_neighbour, 0)
    return from_tiles(out, axes), from_tiles(jnp.concatenate([per_neighbour, of_additional], axis=-1), axes)


def _slots(axes: tuple[AxisPlan, ...], window: Window):
    """The key slot of every neighbour of every query, [M, 1, 1, T, K], and whether there is one (None where there always is)."""
    pairs, classes = [axis.pairs for axis in axes], tile_classes(axes)
    slots, present, xp = np.zeros((1, 1, 1), np.int32), np.ones((1, 1, 1), np.int32), np
    if is_large((*table_shape(pairs)[:2], math.prod(window.kernel_size))):
        pairs, xp = [computed(of_axis) for of_axis in pairs], jnp
    for of_axis, kernel in zip(pairs, window.kernel_size, strict=True):
        slot = of_axis.first[:, :, None] + xp.arange(kernel, dtype=np.int32)
        seen, slot = slot < of_axis.end[:, :, None], xp.minimum(slot, of_axis.span - 1)
        slots = xp.kron(slots, xp.ones_like(slot)) * of_axis.span + xp.kron(xp.ones_like(slots), slot)
        present = xp.kron(present, seen.astype(np.int32))
    always = xp is np and present.all()
    slots, present = (jnp.asarray(x)[classes][:, None, None] for x in (slots, present > 0))
    return slots, None if always else present


def _slots_at_sizes(sizes, axes: tuple[AxisPlan, ...], window: Window):
    """As `_slots`, of windows that are known at run time only: [M, B, 1, T, K] each. A tile's keys follow one another."""
    slots, present, stride = [], [], math.prod(axis.span for axis in axes)
    for size, plan, axis, queries in zip(sizes.T, axes, window.axes(), query_index(axes), strict=True):
        start, end = (x[..., None] for x in windows_at_sizes(size, axis, queries.positions))  # [B, tiles, T, 1]
        key = start + np.arange(axis.kernel, dtype=np.int32)  # of the dilation group
        slot = key - (plan.first_key[:, None, None] // axis.dilation).astype(np.int32)
        stride //= plan.span
        slots.append(jnp.where(key < end, slot, 0) * stride)
        present.append(key < end)
    return of_map(operator.add, slots)[:, :, None], of_map(operator.and_, present)[:, :, None]
