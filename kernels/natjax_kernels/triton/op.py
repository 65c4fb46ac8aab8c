"""Neighborhood attention by fused kernels: the op and its derivative as calls of kernels.

Letters: B batch, L tokens, N heads, D channels, T slots of a tile, S of a halo.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from natjax_kernels._compat import vary_alike
from natjax_kernels.bias import bias_gradient, sum_by_segment
from natjax_kernels.fused.configurations import Case, Config
from natjax_kernels.logits import Logits
from natjax_kernels.meshes import Statistics, over_devices
from natjax_kernels.partitioning import Call, join_heads, split_heads
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import reshape, sharded_as, spec_of
from natjax_kernels.triton.additional import merging_additional_keys
from natjax_kernels.triton.band_launch import BandLaunch
from natjax_kernels.triton.choice import choose
from natjax_kernels.triton.launch import Launch, capability, device_kind, float32_products, multiprocessors
from natjax_kernels.window import Window

# Axes of tokens, of what there is per query, and of what there is per key.
_QUERY, _KEY, _VALUE, _OUT = "b s n d", "b j n d", "b j n e", "b s n e"
_ROWS, _HIDDEN, _PLACES = "b n s", "b j", "a"
_NOTHING = jax.ShapeDtypeStruct((1,), jnp.float32)  # of an output that a launch does not write


def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`.

    Raises:
        NotImplementedError: for a second derivative, when it is traced.
    """
    products = float32_products()  # decided once: the backward pass may be traced under another default
    statistics = Statistics(
        functools.partial(_attend_and_keep, products), functools.partial(_attend_again, products), 2
    )
    return over_devices(merging_additional_keys(functools.partial(_attend_on_device, products)), statistics)(problem)


def _attend_on_device(products: str, problem: Problem):
    return _attend(*_arguments(products, problem), None)


def _attend_and_keep(products: str, problem: Problem):
    """Returns output and log-sum-exp, and what `_attend_again` takes; as `natjax_kernels.meshes.Statistics` says."""
    arguments = _arguments(products, problem)
    results = _run_forward(*arguments)
    group = problem.heads // problem.key_heads
    spatial = problem.query.shape[1:-2]
    statistics = (join_heads(x, 1, group).reshape(-1, problem.heads, *spatial) for x in results[1:])
    return *_as_results(*results, problem.query), *statistics


def _attend_again(products: str, problem: Problem, out, *statistics):
    """Returns output and log-sum-exp as they are known, with their derivatives."""
    group = problem.heads // problem.key_heads
    rows = (split_heads(x.reshape(*x.shape[:2], -1), 1, group) for x in statistics)
    return _attend(*_arguments(products, problem), (split_heads(*_flat(out), 2, group), *rows))


def _arguments(products: str, problem: Problem) -> tuple:
    """Returns what `_run_forward` takes."""
    query, logits = problem.query, problem.logits
    if logits.scale <= 0:  # the kernels' is above 0, as tables may be divided by it
        query = query * np.sign(logits.scale).astype(query.dtype)
        logits = dataclasses.replace(logits, scale=abs(logits.scale) or 1.0)
    arrays = vary_alike(query, problem.key, problem.value, problem.rpb, _hidden(problem), problem.places)
    return problem.window, logits, products, *arrays


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(window, logits, products, query, key, value, rpb, hidden, places, known):
    """Computes output and log-sum-exp, or takes what `_run_forward` is known to return."""
    known = known or _run_forward(window, logits, products, query, key, value, rpb, hidden, places)
    return _as_results(*known, query)


def _run_forward(window, logits, products, query, key, value, rpb, hidden, places):
    """Returns the output, and the maximum of logits and the logarithm of the sum of weights in base 2.

    [B, L, N, Dv] and [B, N, L] each, with heads as `split_heads` splits them.
    """
    case, config = _configured("fwd", window, logits, query, key, value, rpb, hidden)
    if config.design == "band":
        launch = BandLaunch(case.spatial, window, logits, config, multiprocessors())
    else:
        launch = Launch(case.spatial, window, logits, config, multiprocessors(), products)
    call = Call(
        functools.partial(_run, launch, case.group),
        _split_axes(case.group, _QUERY, _KEY, _VALUE, _table_axes(rpb), _HIDDEN, _PLACES),
        _split_axes(case.group, _OUT, _ROWS, _ROWS),
    )
    tokens = split_heads(*_flat(query), 2, case.group), *_flat(key, value)
    return call(*tokens, _table(launch, rpb, case.group), hidden, places)


def _as_results(out, maximum, log, query):
    """Returns output [B, *spatial, N, Dv] and natural log-sum-exp [B, *spatial, N]."""
    lse = jnp.moveaxis((maximum + log) * math.log(2), -1, 1)
    places = spec_of(query)
    return reshape(out, (*query.shape[:-1], out.shape[-1]), places), reshape(lse, query.shape[:-1], places[:-1])


def _forward(window, logits, products, *primals):
    *arrays, known = jax.tree.map(lambda primal: primal.value, primals)
    results = known or _run_forward(window, logits, products, *arrays)
    return _as_results(*results, arrays[0]), (*arrays, *results)


def _backward(window, logits, products, residuals, cotangents):
    query, key, value, rpb, hidden, places, out, maximum, log = residuals
    chosen = [_configured(kernel, window, logits, query, key, value, rpb, hidden) for kernel in ("bwd_dq", "bwd_dkv")]
    queries, keys = (
        Launch(case.spatial, window, logits, config, multiprocessors(), products, case.kernel == "bwd_dkv")
        for case, config in chosen
    )
    group = chosen[0][0].group
    d_out, d_lse = cotangents
    d_out = jnp.zeros_like(out) if isinstance(d_out, SymbolicZero) else split_heads(*_flat(d_out), 2, group)
    d_lse = None if isinstance(d_lse, SymbolicZero) else split_heads(_flat_rows(d_lse), 1, group)
    axes = _table_axes(rpb)
    transposed = axes.replace("r", "p").replace("t", "u").replace("k", "l")
    operands = _QUERY, _KEY, _VALUE, _OUT, _OUT, _ROWS, _ROWS, axes, transposed, _ROWS, _HIDDEN, _PLACES
    call = Call(
        functools.partial(_run_backward, queries, keys, group, rpb is not None),
        _split_axes(group, *operands),
        _split_axes(group, _QUERY, _KEY, _VALUE, *([axes] if rpb is not None else [])),
    )
    tokens = split_heads(*_flat(query), 2, group), *_flat(key, value), d_out, out
    tables = [_table(launch, rpb, group) for launch in (queries, keys)]
    d_query, *gradients = call(*tokens, maximum, log, *tables, d_lse, hidden, places)
    gradients = [join_heads(d_query, 2, group), *gradients]
    d_rpb = None
    if rpb is not None:
        d_table = join_heads(gradients.pop(), 1, group)
        slots, span = (math.prod(sides) for sides in (queries.layout.tile, queries.layout.block))
        d_rpb = bias_gradient(d_table[:, :, :slots, :span], queries.layout.relative, window)
        d_rpb = sharded_as(d_rpb.astype(rpb.dtype), rpb)
    gradients = (sharded_as(x.reshape(y.shape), y) for x, y in zip(gradients, (query, key, value), strict=True))
    return *gradients, d_rpb, None, None, None


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(launch: Launch | BandLaunch, group: int, q, k, v, table, hidden, places):
    """Computes what `_run_forward` does."""
    q, table = join_heads(q, 2, group), _joined_table(table, group)
    runs, share = launch.shares(q.shape[0], q.shape[2])
    outputs = [_like(q, v.shape[-1]), _per_query(q), _per_query(q)]
    out, *rows = launch("fwd", [q, k, v, hidden], outputs, table=table, runs=runs, share=share, places=places)
    return split_heads(out, 2, group), *(split_heads(x, 1, group) for x in rows)


def _run_backward(
    queries: Launch, keys: Launch, group: int, bias: bool,
    q, k, v, do, out, maximum, log, table, transposed_table, d_lse, hidden, places,
):  # fmt: skip
    """Returns dquery, dkey, dvalue and, where there is a bias, the table's gradient [rows, N, T, S], summed over the batch."""
    q, do, out = (join_heads(x, 2, group) for x in (q, do, out))
    maximum, log, d_lse = (x if x is None else join_heads(x, 1, group) for x in (maximum, log, d_lse))
    batch, _, heads, _ = q.shape
    operands = [q, k, v, hidden, out, maximum, log, do, d_lse]
    runs, share = queries.shares(batch, heads)
    sums = jax.ShapeDtypeStruct(queries.schedule.sums(batch, heads), jnp.float32)
    together = bias and queries.config.resident
    table = _joined_table(table, group)
    run = functools.partial(queries, "bwd_dq", operands, table=table, places=places, D_LSE=d_lse is not None)
    statistics = jax.ShapeDtypeStruct((*maximum.shape, 4), jnp.float32)
    d_query, statistics, d_logits = run(
        [_like(q), statistics, sums if together else _NOTHING],
        runs=runs,
        share=share,
        D_QUERY=True,
        D_TABLE=together,
    )
    if bias and not together:
        runs, share = queries.shares(batch, heads * queries.schedule.parts)
        outputs = [_NOTHING, _NOTHING, sums]
        *_, d_logits = run(outputs, runs=runs, share=share, parts=queries.schedule.parts, D_QUERY=False, D_TABLE=True)
    d_table = [split_heads(_sum_by_row(d_logits, queries, runs), 1, group)] if bias else []

    runs, share = keys.shares(batch, heads // group)
    operands, table = [q, k, v, hidden, statistics, do], _joined_table(transposed_table, group)
    outputs = [_like(k), _like(v)]
    d_keys = keys("bwd_dkv", operands, outputs, table=table, runs=runs, share=share, places=places)
    return split_heads(d_query, 2, group), *d_keys, *d_table


def _sum_by_row(d_logits, launch: Launch, runs):
    """Sums what programs hold, [shares, runs, parts, N, chunks held, T, K], over those of a row of the table: [rows, N, T, S]."""
    plan = launch.layout
    heads, held, slots, chunk = d_logits.shape[3:]
    rows = plan.rows[plan.classes(runs)].reshape(-1)  # [runs * blocks]
    sums = jnp.sum(d_logits, axis=0).reshape(len(rows), -1, heads, held, slots, chunk)
    sums = sum_by_segment(sums, rows)
    return sums.transpose(0, 2, 4, 1, 3, 5).reshape(len(sums), heads, slots, -1)


def _configured(kernel: str, window: Window, logits: Logits, *arrays) -> tuple[Case, Config]:
    case = Case.of(kernel, window, logits, capability(), *arrays)
    return case, choose(case, device_kind())


def _hidden(problem: Problem):
    """Returns what is added to logits by key, [B, L] float32: minus infinity where a mask hides one; None if queries see some."""
    if problem.key_mask is None:
        return jnp.zeros((problem.batch, problem.tokens), jnp.float32) if problem.window.blind else None
    return jnp.where(problem.key_mask.reshape(problem.batch, -1), 0.0, -jnp.inf).astype(jnp.float32)


def _table(launch: Launch | BandLaunch, rpb, group: int):
    """Returns a launch's table, [rows, N, T, S] with heads as `split_heads` splits them, or [rows, 1, T, S] without a bias."""
    table = launch.table(rpb)
    return table if rpb is None else split_heads(table, 1, group)


def _joined_table(table, group: int):
    """Returns the table that a launch takes."""
    return join_heads(table, 1, group) if table.ndim > 4 else table


def _split_axes(group: int, *many: str) -> tuple[str, ...]:
    """Gives the heads of queries a second axis where several share a head of keys, as `split_heads` does."""
    return tuple(axes.replace("n", "n g") if group > 1 and axes not in (_KEY, _VALUE) else axes for axes in many)


def _flat(*arrays):
    return [x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in arrays]


def _flat_rows(x):
    """Returns [B, N, L] of [B, *spatial, N]."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)


def _like(x, channels: int | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*x.shape[:-1], channels or x.shape[-1]), x.dtype)


def _per_query(q) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _table_axes(rpb) -> str:
    return "r o t k" if rpb is None else "r n t k"
