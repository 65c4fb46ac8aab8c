"""Neighborhood attention that returns its weights, for inspection and for attention dropout.

The tiles of `natjax_kernels.xla.op` with the weights kept; derivatives are JAX's own, but of masked products.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.bias import bias_table, neighbour_table
from natjax_kernels.masked import product, scores
from natjax_kernels.plan import AxisPlan, Window, plan, tile_classes
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import spec_of, within_auto_axes
from natjax_kernels.xla.op import from_tiles, to_tiles
from natjax_kernels.xla.tiling import tile_shape


def attend_with_weights(problem: Problem, *, dropout_rate: float, dropout_key):
    """See `natjax_kernels.neighborhood_attention_with_weights`."""

    batch, *spatial, heads, _ = spec_of(problem.query)
    specs = spec_of(problem.query), (batch, heads, *spatial, None)
    return within_auto_axes(functools.partial(_attend, dropout_rate), problem, dropout_key, specs=specs)


def _attend(dropout_rate: float, problem: Problem, dropout_key):
    axes = plan(problem.spatial, problem.window, tile_shape(problem.spatial, problem.window))
    accumulate = problem.accumulator
    q = to_tiles(problem.query, [np.maximum(axis.queries, 0) for axis in axes])  # [M, B, N, T, D]
    keys = [np.maximum(axis.keys, 0) for axis in axes]
    k, v = (to_tiles(x, keys) for x in (problem.key, problem.value))  # [M, B, N, S, D]
    classes = tile_classes(axes)
    relative = [axis.relative for axis in axes]
    bias = bias_table(relative, problem.rpb, accumulate)[classes][:, None]
    seen = neighbour_table(relative)[classes][:, None]
    if any((axis.queries < 0).any() for axis in axes):  # padded queries repeat a token: nothing of them may flow back
        owned = functools.reduce(jnp.kron, [jnp.asarray(axis.queries >= 0, jnp.int32) for axis in axes])  # [M, T]
        seen &= owned[:, None, None, :, None] > 0
    logits = scores(q, k, seen) * problem.scale + bias
    probabilities = jax.nn.softmax(logits, axis=-1)
    if dropout_rate:
        kept = jax.random.bernoulli(dropout_key, 1 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(kept, probabilities / (1 - dropout_rate), 0)
    probabilities = probabilities.astype(problem.dtype)
    out = product(probabilities, v, seen).astype(problem.dtype)
    slots, present = _neighbour_slots(axes, problem.window)  # [classes, T, K]
    slots = jnp.asarray(slots, jnp.int32)[classes][:, None, None]
    per_neighbour = jnp.take_along_axis(probabilities, slots, axis=-1, mode="clip")
    if not present.all():
        per_neighbour = jnp.where(jnp.asarray(present)[classes][:, None, None], per_neighbour, 0)
    per_neighbour = from_tiles(per_neighbour, axes)
    return from_tiles(out, axes), jnp.moveaxis(per_neighbour, -2, 1)


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
