"""Neighborhood attention that returns its weights, for inspection and for attention dropout.

The attention of `natjax_kernels.xla.op` with the weights kept; derivatives are JAX's own, but of masked products.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.bias import MASKED, bias_table, neighbour_table
from natjax_kernels.grids import repeat_heads
from natjax_kernels.masked import product, scores
from natjax_kernels.plan import AxisPlan, Window, tile_classes
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import spec_of, within_auto_axes
from natjax_kernels.xla.tiles import from_tiles, key_index, plan_of, query_index, to_tiles


def attend_with_weights(problem: Problem, *, dropout_rate: float, dropout_key):
    """See `natjax_kernels.neighborhood_attention_with_weights`."""

    spec = spec_of(problem.query)
    return within_auto_axes(functools.partial(_attend, dropout_rate), problem, dropout_key, specs=(spec, spec))


def _attend(dropout_rate: float, problem: Problem, dropout_key):
    """Returns the output and the weights [B, *spatial, N, K + S]."""
    axes = plan_of(problem.key, problem.window)
    accumulate, repeats = problem.accumulator, problem.heads // problem.key_heads
    q = to_tiles(problem.query, query_index(axes))  # [M, B, N, T, D]
    keys = key_index(axes)
    k, v = (repeat_heads(to_tiles(x, keys), repeats, 2) for x in (problem.key, problem.value))  # [M, B, N, S, D]
    classes = tile_classes(axes)
    relative = [axis.relative for axis in axes]
    bias = bias_table(relative, problem.rpb, accumulate)[classes][:, None]
    seen = neighbour_table(relative)[classes][:, None]
    if any((axis.queries < 0).any() for axis in axes):  # padded queries repeat a token: nothing of them may flow back
        owned = functools.reduce(jnp.kron, [jnp.asarray(axis.queries >= 0, jnp.int32) for axis in axes])  # [M, T]
        seen &= owned[:, None, None, :, None] > 0
    logits = problem.logits(scores(q, k, seen)) + bias
    if problem.key_mask is not None:
        logits = jnp.where(to_tiles(problem.key_mask[..., None, None], keys).swapaxes(-1, -2), logits, -jnp.inf)
    slots, present = _neighbour_slots(axes, problem.window)  # [classes, T, K]
    if problem.additional_keys is not None:
        more, values = (
            repeat_heads(x.swapaxes(1, 2), repeats, 1)[None]
            for x in (problem.additional_keys, problem.additional_values)
        )
        more, values = (jnp.broadcast_to(x, (len(classes), *x.shape[1:])) for x in (more, values))  # [M, B, N, S, D]
        logits = jnp.concatenate([logits, problem.logits(scores(q, more))], axis=-1)
        span, count, v = k.shape[-2], more.shape[-2], jnp.concatenate([v, values], axis=-2)
        seen = jnp.concatenate([seen, jnp.ones((*seen.shape[:-1], count), bool)], axis=-1)
        columns = np.broadcast_to(span + np.arange(count), (*slots.shape[:-1], count))
        slots = np.concatenate([slots, columns], axis=-1)
        present = np.concatenate([present, np.ones(columns.shape, bool)], axis=-1)
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
    slots = jnp.asarray(slots, jnp.int32)[classes][:, None, None]
    per_neighbour = jnp.take_along_axis(probabilities, slots, axis=-1, mode="clip")
    if not present.all():
        per_neighbour = jnp.where(jnp.asarray(present)[classes][:, None, None], per_neighbour, 0)
    return from_tiles(out, axes), from_tiles(per_neighbour, axes)


def _neighbour_slots(axes: tuple[AxisPlan, ...], window: Window) -> tuple[np.ndarray, np.ndarray]:
    """The key slot of every neighbour of every query, and whether there is such a neighbour, [classes, T, K] each."""
    slots, present = np.zeros((1, 1, 1), int), np.ones((1, 1, 1), bool)
    for axis, kernel in zip(axes, window.kernel_size, strict=True):
        span = axis.relative.shape[-1]
        slot = np.minimum(axis.first_slot[:, :, None] + np.arange(kernel), span - 1)
        seen = np.take_along_axis(axis.relative, slot, axis=-1) >= 0
        seen &= axis.first_slot[:, :, None] + np.arange(kernel) < span
        slots = np.kron(slots, np.ones_like(slot)) * span + np.kron(np.ones_like(slots), slot)
        present = np.kron(present, seen)
    return slots, present
