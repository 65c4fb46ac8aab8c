"""Neighborhood attention by fused kernels: the op, its derivative, and what they cannot do.

Letters: B batch, L tokens, N heads, D channels.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.bias import bias_gradient
from natjax_kernels.plan import Window
from natjax_kernels.triton.config import Case, choose
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
    launch = _launch("attend", query, window, scale, rpb)
    q, k, v = _flat(query, key, value)
    runs, share = launch.shares(q.shape[0], q.shape[2])
    outputs = [_like(q), _per_query(q)]
    table = launch.table(rpb, _table_dtype(rpb))
    out, lse = launch("attend", [q, k, v], outputs, table=table, runs=runs, share=share)
    return out.reshape(query.shape), lse


def backward(window: Window, scale: float, query, key, value, rpb, out, lse, d_out):
    """Returns dquery, dkey, dvalue and drpb (None without bias)."""
    launch = _launch("attend_backward", query, window, scale, rpb)
    q, k, v, o, do = _flat(query, key, value, out, d_out)
    batch, _, heads, _ = q.shape
    table = launch.table(rpb, _table_dtype(rpb))
    runs, share = launch.shares(batch, heads)
    run = functools.partial(launch, "attend_backward", [q, k, v, o, lse, do], table=table, runs=runs, share=share)
    together = launch.config.resident and rpb is not None
    parts, held = (1, launch.chunks) if together else (launch.chunks * math.prod(launch.layout.blocks), 1)
    sums_shape = (math.ceil(batch / share), len(runs), parts, heads, held, launch.config.slots, launch.config.chunk)
    sums, none = jax.ShapeDtypeStruct(sums_shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    outputs = [_like(q), _per_query(q), sums if together else none]
    d_query, delta, d_table = run(outputs, D_QUERY=True, D_TABLE=together)
    d_rpb = None
    if rpb is not None:
        if not together:
            *_, d_table = run([none, none, sums], D_QUERY=False, D_TABLE=True, parts=parts)
        d_rpb = _d_rpb(d_table, launch, runs).astype(rpb.dtype)

    launch = _launch("attend_mirrored", query, window, scale, rpb)
    runs, share = launch.shares(batch, heads)
    table = launch.table(rpb, _table_dtype(rpb))
    d_key, d_value = launch(
        "attend_mirrored", [q, k, v, lse, delta, do], [_like(k), _like(v)], table=table, runs=runs, share=share
    )
    return d_query.reshape(query.shape), d_key.reshape(key.shape), d_value.reshape(value.shape), d_rpb


def _d_rpb(sums, launch: Launch, runs):
    """Sums the gradient of the logits of all programs, [shares, runs, parts, N, chunks held, T, K], to [N, 2k - 1, ...]."""
    plan = launch.layout
    heads, held, slots, chunk = sums.shape[3:]
    rows = plan.rows[plan.tiles[runs[:, 0], 2]].reshape(-1)  # [runs * blocks]
    sums = jnp.sum(sums, axis=0).reshape(len(rows), -1, heads, held, slots, chunk)
    sums = sums.transpose(0, 2, 4, 1, 3, 5).reshape(len(rows), heads, slots, -1)  # [runs * blocks, N, T, S]
    sums = sums[..., : math.prod(plan.tile), : math.prod(plan.block)]
    one_hot = rows[:, None] == np.arange(math.prod(len(axis) for axis in plan.relative))
    table = jnp.einsum("pr,pnts->rnts", jnp.asarray(one_hot, jnp.float32), sums, precision="highest")
    return bias_gradient(table, plan.relative, launch.window.kernel_size)


def _launch(kernel: str, query, window: Window, scale: float, rpb) -> Launch:
    case = Case(kernel, query.shape[1:-2], window, query.shape[-1], query.dtype.name, rpb is not None)
    return Launch(case.spatial, window, scale, choose(case, ""), "tf32x3", mirrored=kernel == "attend_mirrored")


def _flat(*arrays):
    return [x.reshape(x.shape[0], -1, *x.shape[-2:]) for x in arrays]


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _per_query(q) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)


def _table_dtype(rpb) -> Any:
    """A bias keeps its precision; a mask alone needs none."""
    return jnp.bfloat16 if rpb is None else rpb.dtype
