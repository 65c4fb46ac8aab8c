"""Neighborhood attention by fused kernels: the op, its derivative, and what they cannot do.

Letters: B batch, L tokens, N heads, D channels.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from natjax_kernels.bias import bias_gradient
from natjax_kernels.plan import Window
from natjax_kernels.triton.config import choose
from natjax_kernels.triton.launch import Launch


def attend(query, key, value, rpb, *, window: Window, scale: float):
    """Computes the op; arguments are those of `natjax_kernels.neighborhood_attention`, validated and normalised."""
    return _attend(window, scale, query, key, value, rpb)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(window, scale, query, key, value, rpb):
    return _forward(window, scale, query, key, value, rpb)[0]


def _forward(window, scale, query, key, value, rpb):
    out, lse = forward(window, scale, query, key, value, rpb)
    return out, (query, key, value, rpb, out, lse)


def _backward(window, scale, residuals, d_out):
    return backward(window, scale, *residuals, d_out)


_attend.defvjp(_forward, _backward)


def forward(window: Window, scale: float, query, key, value, rpb):
    """Returns the output, like query, and the log-sum-exp [B, N, L] in base 2."""
    launch = _launch("attend", query, window, scale)
    q, k, v = _flat(query, key, value)
    runs, share = launch.shares(q.shape[0], q.shape[2])
    outputs = [_like(q), _per_query(q)]
    table = launch.table(rpb, _table_dtype(rpb))
    out, lse = launch("attend", [q, k, v], outputs, table=table, runs=runs, share=share)
    return out.reshape(query.shape), lse


def backward(window: Window, scale: float, query, key, value, rpb, out, lse, d_out):
    """Returns dquery, dkey, dvalue and drpb (None without bias)."""
    launch = _launch("attend_backward", query, window, scale)
    q, k, v, o, do = _flat(query, key, value, out, d_out)
    batch, _, heads, _ = q.shape
    table = launch.table(rpb, _table_dtype(rpb))
    runs, share = launch.shares(batch, heads)
    plan, shares = launch.layout, math.ceil(batch / share)
    blocks = math.prod(plan.blocks)
    none = jax.ShapeDtypeStruct((1,), jnp.float32)
    run = functools.partial(launch, "attend_backward", [q, k, v, o, lse, do], table=table, runs=runs, share=share)
    d_logits = jax.ShapeDtypeStruct((shares, len(runs), blocks, heads, *table.shape[2:]), jnp.float32)
    together = blocks == 1 and rpb is not None
    d_query, delta, sums = run(
        [_like(q), _per_query(q), d_logits if together else none], D_QUERY=True, D_TABLE=together
    )
    d_rpb = None
    if rpb is not None:
        if not together:
            *_, sums = run([none, none, d_logits], D_QUERY=False, D_TABLE=True, blocks=blocks)
        d_rpb = _d_rpb(sums, plan, runs, window).astype(rpb.dtype)

    launch = _launch("attend_mirrored", query, window, scale)
    runs, share = launch.shares(batch, heads)
    table = launch.table(rpb, _table_dtype(rpb))
    d_key, d_value = launch(
        "attend_mirrored", [q, k, v, lse, delta, do], [_like(k), _like(v)], table=table, runs=runs, share=share
    )
    return d_query.reshape(query.shape), d_key.reshape(key.shape), d_value.reshape(value.shape), d_rpb


def _d_rpb(sums, plan, runs, window: Window):
    """Sums the gradient of the logits of all programs, [shares, runs, blocks, N, T, S], to [N, 2k - 1, ...]."""
    rows = plan.rows[plan.tiles[runs[:, 0], 2]]  # [runs, blocks]
    queries, keys = math.prod(plan.tile), math.prod(plan.block)
    count = math.prod(len(axis) for axis in plan.relative)
    one_hot = jnp.asarray(rows.reshape(-1, 1) == jnp.arange(count), jnp.float32)  # [programs, rows]
    sums = jnp.sum(sums, axis=0)[..., :queries, :keys]
    sums = sums.reshape(-1, *sums.shape[2:])  # [programs, N, T, S]
    table = jnp.einsum("pr,pnts->rnts", one_hot, sums, precision="highest")
    return bias_gradient(table, plan.relative, window.kernel_size)


def _launch(kernel: str, query, window: Window, scale: float) -> Launch:
    spatial, dtype = query.shape[1:-2], query.dtype.name
    config = choose(kernel, spatial, window, query.shape[-1], dtype, "")
    return Launch(spatial, window, scale, config, "ieee", mirrored=kernel == "attend_mirrored")


def _flat(*arrays):
    return [x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in arrays]


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _per_query(q) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _table_dtype(rpb) -> Any:
    """A bias keeps its precision; a mask alone needs none."""
    return jnp.bfloat16 if rpb is None else rpb.dtype
