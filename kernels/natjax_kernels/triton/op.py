"""Neighborhood attention by fused kernels: the op and its derivative as calls of kernels.

Letters: B batch, L tokens, N heads, D channels, T slots of a tile, S of a halo.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from natjax_kernels._compat import vary_alike
from natjax_kernels.bias import bias_gradient, sum_by_segment
from natjax_kernels.fused.configurations import Case, Config
from natjax_kernels.fused.partitioning import Call
from natjax_kernels.plan import Window
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import sharded_as
from natjax_kernels.triton.band_launch import BandLaunch
from natjax_kernels.triton.choice import choose
from natjax_kernels.triton.launch import Launch, capability, device_kind, float32_products, multiprocessors

_TOKENS, _PER_QUERY = "b s n d", "b n s"
_NOTHING = jax.ShapeDtypeStruct((1,), jnp.float32)  # of an output that a launch does not write


def attend(problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`.

    Raises:
        NotImplementedError: for a second derivative, when it is traced.
    """
    query, scale = problem.query, problem.scale
    if scale <= 0:  # the kernels' is above 0, as tables may be divided by it
        query, scale = query * np.sign(scale).astype(query.dtype), abs(scale) or 1.0
    # Decided once: the backward pass may be traced under another default.
    return _attend(problem.window, scale, float32_products(), *vary_alike(query, *problem.arrays[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(window, scale, products, query, key, value, rpb):
    return _as_results(*_run_forward(window, scale, products, query, key, value, rpb), query)


def _run_forward(window, scale, products, query, key, value, rpb):
    """Returns the output [B, L, N, D], the maximum of logits and the logarithm of the sum of weights, [B, N, L] in base 2."""
    launch = _forward_launch(query, rpb, window, scale, products)
    call = Call(functools.partial(_run, launch), (*[_TOKENS] * 3, _table_axes(rpb)), (_TOKENS, _PER_QUERY, _PER_QUERY))
    return call(*_flat(query, key, value), launch.table(rpb))


def _as_results(out, maximum, log, query):
    """Returns output [B, *spatial, N, D] and natural log-sum-exp [B, *spatial, N]."""
    lse = (maximum + log) * math.log(2)
    return out.reshape(query.shape), lse.swapaxes(1, 2).reshape(query.shape[:-1])


def _forward(window, scale, products, *primals):
    query, key, value, rpb = jax.tree.map(lambda primal: primal.value, primals)
    results = _run_forward(window, scale, products, query, key, value, rpb)
    return _as_results(*results, query), (query, key, value, rpb, *results)


def _backward(window, scale, products, residuals, cotangents):
    query, key, value, rpb, out, maximum, log = residuals
    d_out, d_lse = cotangents
    if isinstance(d_out, SymbolicZero):  # of the log-sum-exp alone
        d_out = jnp.zeros_like(out)
    d_lse = None if isinstance(d_lse, SymbolicZero) else _flat_rows(d_lse)
    queries, keys = (_backward_launch(kernel, query, rpb, window, scale, products) for kernel in ("bwd_dq", "bwd_dkv"))
    tables = [launch.table(rpb) for launch in (queries, keys)]
    axes = _table_axes(rpb)
    call = Call(
        functools.partial(_run_backward, queries, keys, rpb is not None),
        (
            *[_TOKENS] * 5,
            _PER_QUERY,
            _PER_QUERY,
            axes,
            axes.replace("r", "p").replace("t", "u").replace("k", "l"),
            _PER_QUERY,
        ),
        (*[_TOKENS] * 3, *([axes] if rpb is not None else [])),
    )
    gradients = call(*_flat(query, key, value, d_out), out, maximum, log, *tables, d_lse)
    d_rpb = None
    if rpb is not None:
        *gradients, d_table = gradients
        slots, span = (math.prod(sides) for sides in (queries.layout.tile, queries.layout.block))
        d_rpb = bias_gradient(d_table[:, :, :slots, :span], queries.layout.relative, window.kernel_size)
        d_rpb = sharded_as(d_rpb.astype(rpb.dtype), rpb)
    gradients = (sharded_as(x.reshape(y.shape), y) for x, y in zip(gradients, (query, key, value), strict=True))
    return *gradients, d_rpb


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(launch: Launch | BandLaunch, q, k, v, table):
    """Computes what `_run_forward` does."""
    runs, share = launch.shares(q.shape[0], q.shape[2])
    return launch("fwd", [q, k, v], [_like(q), _per_query(q), _per_query(q)], table=table, runs=runs, share=share)


def _run_backward(
    queries: Launch, keys: Launch, bias: bool, q, k, v, do, out, maximum, log, table, transposed_table, d_lse=None
):
    """Returns dquery, dkey, dvalue and, where there is a bias, the table's gradient [rows, N, T, S], summed over the batch."""
    batch, _, heads, _ = q.shape
    operands = [q, k, v, out, maximum, log, do, d_lse]
    runs, share = queries.shares(batch, heads)
    sums = jax.ShapeDtypeStruct(queries.schedule.sums(batch, heads), jnp.float32)
    together = bias and queries.config.resident
    run = functools.partial(queries, "bwd_dq", operands, table=table, D_LSE=d_lse is not None)
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
    d_table = [_sum_by_row(d_logits, queries, runs)] if bias else []

    runs, share = keys.shares(batch, heads)
    operands = [q, k, v, statistics, do]
    d_keys = keys("bwd_dkv", operands, [_like(k), _like(v)], table=transposed_table, runs=runs, share=share)
    return d_query, *d_keys, *d_table


def _sum_by_row(d_logits, launch: Launch, runs):
    """Sums what programs hold, [shares, runs, parts, N, chunks held, T, K], over those of a row of the table: [rows, N, T, S]."""
    plan = launch.layout
    heads, held, slots, chunk = d_logits.shape[3:]
    rows = plan.rows[plan.tiles[runs[:, 0], 2]].reshape(-1)  # [runs * blocks]
    sums = jnp.sum(d_logits, axis=0).reshape(len(rows), -1, heads, held, slots, chunk)
    sums = sum_by_segment(sums, rows)
    return sums.transpose(0, 2, 4, 1, 3, 5).reshape(len(sums), heads, slots, -1)


def _forward_launch(query, rpb, window: Window, scale: float, products: str) -> Launch | BandLaunch:
    config = _config("fwd", query, rpb, window)
    if config.design == "band":
        return BandLaunch(query.shape[1:-2], window, scale, config, multiprocessors())
    return Launch(query.shape[1:-2], window, scale, config, multiprocessors(), products)


def _backward_launch(kernel: str, query, rpb, window: Window, scale: float, products: str) -> Launch:
    config = _config(kernel, query, rpb, window)
    return Launch(query.shape[1:-2], window, scale, config, multiprocessors(), products, kernel == "bwd_dkv")


def _config(kernel: str, query, rpb, window: Window) -> Config:
    described = query.shape[1:-2], window, query.shape[-1], query.dtype.name, rpb is not None, capability()
    return choose(Case(kernel, *described), device_kind())


def _flat(*arrays):
    return [x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in arrays]


def _flat_rows(x):
    """Returns [B, N, L] of [B, *spatial, N]."""
    return x.reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _per_query(q) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _table_axes(rpb) -> str:
    return "r o t k" if rpb is None else "r n t k"
