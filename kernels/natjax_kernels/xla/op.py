"""Neighborhood attention in XLA operations, by tiles: for CPU, TPU and every GPU without a fused kernel.

One haloed tile of keys and values is gathered per tile of queries, and each tile is small dense attention with a table of
bias-or-minus-infinity from the plan. The backward pass has a rule of its own: it computes the softmax again, tile by tile and
from its own logits, so that weights sum to 1 however large those are, and gathers the gradients of haloed keys (the plan knows
the slots that hold a key), or adds them tile by tile where many tiles share a key, so that nothing scatters. NaNs and infinities
stay within windows (`_contained`). All gathers are along one axis at a time, so constants grow with the sides of a map, and
neither with its area nor with windows. Every reshape splits or merges one axis, which is what JAX can follow where the batch is
explicitly sharded.

Letters: M tiles, B batch, N heads, T queries per tile, S keys per tile, D channels of a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from natjax_kernels._compat import vary, vary_alike, varying_axes
from natjax_kernels.axis import AxisPlan
from natjax_kernels.bias import MASKED
from natjax_kernels.grids import join_group, repeat_heads_to_shard, split_group
from natjax_kernels.masked import product, scores, transpose
from natjax_kernels.meshes import over_devices
from natjax_kernels.problem import Problem, accumulator
from natjax_kernels.sharding import laid_alike, sharded_as
from natjax_kernels.window import Window
from natjax_kernels.xla.lanes import fold, heads_together, rows_of, tiles_of
from natjax_kernels.xla.tables import add_gradient, bias_of, gradient_of_bias, neighbours_of, no_gradient, table_of
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
    plan_of,
    query_index,
    row_steps,
    untile_columns,
    untile_rows,
    visible_keys,
)


@over_devices
def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`."""
    problem = laid_alike(repeat_heads_to_shard(problem))
    return _attend(problem.window, problem.logits, *vary_alike(*problem.arrays, problem.places))


def attend_plainly(problem: Problem):
    """As `attend`, with JAX's own derivatives; NaNs and infinities spread over tiles."""
    query, key, value, rpb, *rest = problem.arrays
    window, biased = problem.window, rpb is not None
    table = table_of(plan_of(key, window, biased, problem.places), rpb, problem.accumulator)
    out, lse = _attend_tiles(False, window, problem.logits, biased, query, key, value, table, *rest, problem.places)
    return out, jnp.squeeze(lse, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(window, to_logits, query, key, value, rpb, *rest):
    biased = rpb is not None
    table = table_of(plan_of(key, window, biased, rest[-1]), rpb, accumulator(query))
    out, lse = _contained(_attend_tiles, 1, (window, to_logits, biased), query, key, value, table, *rest)
    return out, jnp.squeeze(lse, -1)


def _attend_tiles(
    contain, window, to_logits, biased, query, key, value, table, more_keys, more_values, key_mask, sizes, places
):
    """Returns the output and the log-sum-exp, [B, *spatial, N, 1]."""
    axes, n, groups = _plan(query, key, value, window, biased, places)
    arrays = *(fold(x, n) for x in (query, key, value, more_keys, more_values)), key_mask, sizes
    bias = bias_of(table, axes, groups, accumulator(query))
    neighbours = neighbours_of(axes, groups) if contain else None

    def part(_, tokens):
        def steps(_, rows):  # JAX's own derivatives would keep all weights; a closure, as positions may be static
            return None, jax.checkpoint(functools.partial(step, *tokens, rows), prevent_cse=False)()

        _, results = by_steps(steps, row_steps(tokens[0], axes))
        return None, [untile_columns(x, axes) for x in results]

    def step(query, key, value, more_keys, more_values, key_mask, sizes, rows):
        q = rows_of(gather_tiles(query, query_index(axes, rows)), groups, n)  # [M, B, N, T, D]
        k, v = (gather_tiles(x, key_index(axes, rows)) for x in (key, value))  # [M, B, N, S, D]
        visible = _visible(key_mask, sizes, window, axes, rows, groups)
        seen = _seen(neighbours, visible, rows, axes, q.ndim, groups)
        logits = to_logits(scores(q, k, seen)) + bias(rows, q.ndim)  # [M, B, N, T, S]
        more = None if more_keys is None else to_logits(_scores_with_all(q, more_keys))
        weights, more, total, m, any_key = _weights(logits, more, visible, axes)
        out = product(weights.astype(v.dtype), v, seen)
        if more is not None:
            out = out + _product_of_all(more.astype(v.dtype), more_values)
        lse = m + jnp.log(total)  # [M, B, N, T, 1]
        if any_key is not None:
            lse = jnp.where(any_key, lse, -jnp.inf)
        out = (out / total).astype(v.dtype)
        return [untile_rows(x, rows, axes) for x in (tiles_of(out, groups, n), split_group(lse, groups))]

    _, (out, lse) = by_steps(part, batch_parts(arrays, axes, backward=False))
    return joined(out, query, value.shape[-1]), joined(lse, query, 1)


def _plan(query, key, value, window, biased, places):
    """Returns the plan, how many heads share lanes, and how many heads of queries share a row of keys."""
    n = heads_together(query, key, value)
    return plan_of(key, window, biased, places), n, query.shape[-2] // key.shape[-2] * n


def _weights(logits, more, visible, axes: tuple[AxisPlan, ...]):
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
    axes, _, groups = _plan(query, key, value, window, biased, rest[-1])
    table = table_of(axes, rpb, accumulator(query))
    static, more = (window, to_logits, biased), 0 if rest[0] is None else 2
    gradients = _contained(_backward_tiles, 3 + more, static, query, key, value, table, *rest, d_out, d_lse)
    *gradients, d_bias = gradients
    d_rpb = None
    if biased:
        d_rpb = sharded_as(gradient_of_bias(d_bias, axes, groups, window).astype(rpb.dtype), rpb)
    return *gradients[:3], d_rpb, *(gradients[3:] or (None, None)), None, None, None


def _backward_tiles(
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
    axes, n, groups = _plan(query, key, value, window, biased, places)
    likes = query, key, value, more_keys, more_values
    arrays = *(fold(x, n) for x in likes), key_mask, sizes, fold(d_out, n), d_lse  # of a batch
    bias = bias_of(table, axes, groups, accumulator(query))
    neighbours = neighbours_of(axes, groups) if contain else None

    def part(d_bias, tokens):
        carry = d_bias, *(halo_sums(x, axes) for x in tokens[1:3])
        (d_bias, *sums), (d_query, *halos, of_all) = by_steps(
            functools.partial(step, *tokens), row_steps(tokens[0], axes), carry
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
        visible = _visible(key_mask, sizes, window, axes, rows, groups)
        seen = _seen(neighbours, visible, rows, axes, q.ndim, groups)
        logits = to_logits(scores(q, k, seen))  # [M, B, N, T, S]
        more_logits = None if more_keys is None else to_logits(_scores_with_all(q, more_keys))
        weights, more, total, _, any_key = _weights(logits + bias(rows, q.ndim), more_logits, visible, axes)
        if any_key is not None and d_lse is not None:
            d_lse = jnp.where(any_key, d_lse, 0)
        weights = weights / total
        d_weights = scores(do, v, seen)
        delta = jnp.sum(weights * d_weights, axis=-1, keepdims=True)
        if more is not None:
            more, d_more = more / total, _scores_with_all(do, more_values)
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
            d_query = d_query + _product_of_all(d_more, more_keys)
            of_all = [_sum_over_queries(d_more, q), _sum_over_queries(more.astype(v.dtype), do)]
        if biased:
            d_logits = d_logits if owned is None else jnp.where(owned, d_logits, 0)  # of a bias of -inf they are NaN
            d_bias = add_gradient(d_bias, d_logits, rows, axes, groups, window)
        d_query = untile_rows(tiles_of(d_query.astype(q.dtype), groups, n), rows, axes)
        collected = (collect_halo(*x, rows, axes) for x in zip(sums, (d_key, d_value), strict=True))
        sums, halos = zip(*collected, strict=True)
        return (d_bias, *sums), (d_query, *halos, of_all)

    d_bias = no_gradient(table, axes, groups, accumulator(query)) if biased else None
    d_bias, gradients = by_steps(part, batch_parts(arrays, axes, backward=True), d_bias)
    gradients = [joined(x.astype(like.dtype), like, like.shape[-1]) for x, like in zip(gradients, likes, strict=False)]
    return *gradients, d_bias


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _contained(compute, checked: int, static: tuple, *arrays):
    """Returns `compute(contain, *static, *arrays)`, in whose results NaNs and infinities are only where windows let them be.

    That takes longer, on a CPU twice as long, so one CPU first computes without `contain`: results are then NaN in more
    places, never in fewer (of logits below 1e38), and a sum of the first `checked` ones says whether there are any. Both are
    compiled. Other devices always contain: XLA fuses it there, and a batch that is split over devices would have to wait for
    their sums.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return compute(True, *static, *arrays)
    contained = jax.jit(compute, static_argnums=range(1 + len(static)))  # so that layers alike are traced once
    plain = functools.partial(compute, False, *static)

    @jax.custom_jvp
    def run(*arrays):
        results = plain(*arrays)
        # A loop of no turn or one: a conditional would copy the results.
        again = (lambda state: ~state[1]), (lambda _: (contained(True, *static, *arrays), True))
        return jax.lax.while_loop(*again, (results, _all_finite(*results[:checked])))[0]

    # Second derivatives, as a loop has no transpose: those of the plain computation.
    run.defjvp(lambda primals, tangents: (run(*primals), jax.jvp(plain, primals, tangents)[1]))
    return run(*arrays)


@custom_vmap
def _all_finite(*arrays):
    return jnp.isfinite(functools.reduce(jnp.add, (jnp.sum(x, dtype=accumulator(x)) for x in arrays)))


@_all_finite.def_vmap
def _all_finite_of_all(size, mapped, *arrays):
    return _all_finite(*arrays), False  # one answer for all mapped entries, or both ways would be computed for each


def _visible(key_mask, sizes, window: Window, axes: tuple[AxisPlan, ...], rows: dict, groups: int):
    """`visible_keys`, of the rank of scores, of all queries of the heads that share a key head."""
    visible = visible_keys(key_mask, sizes, window, axes, rows)
    if visible is None:
        return None
    visible = visible[:, 0] if visible.shape[1] == 1 else visible
    return visible if sizes is None else join_group(visible, groups)


def _scores_with_all(query, key):
    """Multiplies queries of tiles with keys that all see: [M, B, N, T, D] and [B, S, N, D] -> [M, B, N, T, S]."""
    key = _of_heads(key, query.ndim)
    return jnp.einsum("m...td,...sd->m...ts", query, key, preferred_element_type=accumulator(query))


def _product_of_all(weights, value):
    """Sums values that all see: [M, B, N, T, S] and [B, S, N, D] -> [M, B, N, T, D]."""
    value = _of_heads(value, weights.ndim)
    return jnp.einsum("m...ts,...sd->m...td", weights, value, preferred_element_type=accumulator(value))


def _sum_over_queries(weights, query):
    """Sums queries of all tiles by weights: [M, B, N, T, S] and [M, B, N, T, D] -> [B, S, N, D]."""
    if weights.ndim == 4:
        weights, query = weights[:, None], query[:, None]
    return jnp.einsum("mbnts,mbntd->bsnd", weights, query, preferred_element_type=accumulator(query))


def _of_heads(x, rank: int):
    """Brings additional tokens [B, S, N, D] to [B, N, S, D], or for tiles without a batch axis to [N, S, D]."""
    x = x.swapaxes(1, 2)
    return x[0] if rank == 4 else x


def _seen(neighbours, visible, rows: dict, axes: tuple[AxisPlan, ...], rank: int, groups: int):
    """Which queries, but padding, see which keys, of the rank of scores; None without a table of neighbours."""
    if neighbours is None:
        return None
    seen = neighbours(rows, rank)
    seen = seen if visible is None else seen & visible
    return seen & owned_queries(rows, axes, rank, groups) if "owned" in rows else seen
