"""Neighborhood attention in XLA operations, by tiles: for CPU, TPU and every GPU without a fused kernel.

One haloed tile of keys and values is gathered per tile of queries, and each tile is small dense attention with a table of
bias-or-minus-infinity from the plan. The backward pass has a rule of its own: it computes the softmax again, tile by tile and
from its own logits, so that weights sum to 1 however large those are, and gathers the gradients of haloed keys (the plan knows
the slots that hold a key), or adds them tile by tile where many tiles share a key, so that nothing scatters. NaNs and infinities
stay within windows (`natjax_kernels.xla.contained`). All gathers are along one axis at a time, so constants grow with the sides
of a map, and neither with its area nor with windows. Every reshape splits or merges one axis, which is what JAX can follow where
the batch is explicitly sharded.

Letters: M tiles, B batch, N heads, T queries per tile, S keys per tile, D channels of a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from natjax_kernels._compat import vary, vary_alike, varying_axes
from natjax_kernels.grids import repeat_heads_to_shard
from natjax_kernels.meshes import over_devices
from natjax_kernels.problem import Problem, accumulator
from natjax_kernels.sharding import laid_alike, sharded_as
from natjax_kernels.xla.backward import backward_tiles
from natjax_kernels.xla.contained import contained
from natjax_kernels.xla.forward import attend_tiles
from natjax_kernels.xla.steps import lay_out
from natjax_kernels.xla.tables import gradient_of_bias, table_of


@over_devices
def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`."""
    problem = laid_alike(repeat_heads_to_shard(problem))
    return _attend(problem.window, problem.logits, *vary_alike(*problem.arrays, problem.places))


def attend_plainly(problem: Problem):
    """As `attend`, with JAX's own derivatives; NaNs and infinities spread over tiles."""
    query, key, value, rpb, *rest = problem.arrays
    window, biased = problem.window, rpb is not None
    axes, *_ = lay_out(query, key, value, window, biased, problem.places)
    table = table_of(axes, rpb, problem.accumulator)
    out, lse = attend_tiles(False, window, problem.logits, biased, query, key, value, table, *rest, problem.places)
    return out, jnp.squeeze(lse, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(window, to_logits, query, key, value, rpb, *rest):
    biased = rpb is not None
    axes, *_ = lay_out(query, key, value, window, biased, rest[-1])
    table = table_of(axes, rpb, accumulator(query))
    out, lse = contained(attend_tiles, 1, (window, to_logits, biased), query, key, value, table, *rest)
    return out, jnp.squeeze(lse, -1)


def _forward(window, to_logits, *primals):
    arrays = jax.tree.map(lambda primal: primal.value, primals)
    return _attend(window, to_logits, *arrays), arrays


def _backward(window, to_logits, residuals, cotangents):
    query, key, value, rpb, *rest = residuals
    d_out, d_lse = cotangents
    if isinstance(d_out, SymbolicZero):
        d_out = vary(jnp.broadcast_to(jnp.zeros_like(query[..., :1]), d_out.shape), varying_axes(value))
    # An unused log-sum-exp costs nothing: what XLA compiles has no operand for it.
    d_lse = None if isinstance(d_lse, SymbolicZero) else d_lse[..., None]
    biased = rpb is not None
    axes, _, groups = lay_out(query, key, value, window, biased, rest[-1])
    table = table_of(axes, rpb, accumulator(query))
    static, more = (window, to_logits, biased), 0 if rest[0] is None else 2
    gradients = contained(backward_tiles, 3 + more, static, query, key, value, table, *rest, d_out, d_lse)
    *gradients, d_bias = gradients
    d_rpb = None
    if biased:
        d_rpb = sharded_as(gradient_of_bias(d_bias, axes, groups, window).astype(rpb.dtype), rpb)
    return *gradients[:3], d_rpb, *(gradients[3:] or (None, None)), None, None, None


_attend.defvjp(_forward, _backward, symbolic_zeros=True)
