"""Runs spatial_oracle.py's comparison of the fused kernels, with xla in the place of the kernels: `spatial_kept.py CASE ...`.

JAX cannot call Triton's interpreter where XLA's partitioner asks what a device does, as on Auto axes. What is under test is which
part of a map a device has, and that the backward pass gets what the forward pass kept for it: gradients are NaN where it is not
what the forward pass would compute again.
"""

import math
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

from spatial_oracle import check  # first, as it says how many devices there are

import jax  # isort: skip
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from natjax_kernels.partitioning import split_heads
from natjax_kernels.triton import op
from natjax_kernels.xla import op as xla


def attend(window, logits, query, key, value, rpb, hidden, places):
    mask = None if hidden is None else (hidden == 0).reshape(key.shape[:-2])
    return xla._attend(window, logits, query, key, value, rpb, None, None, mask, None, places)


def run_forward(window, logits, products, query, key, *others):
    out, lse = attend(window, logits, query, key, *others)
    group = query.shape[-2] // key.shape[-2]
    log = split_heads(op._flat_rows(lse) / math.log(2), 1, group)
    return split_heads(*op._flat(out), 2, group), log - 1, jnp.ones_like(log)


def backward(window, logits, products, residuals, cotangents):
    *arrays, out, maximum, log = residuals
    results, pull = jax.vjp(lambda *floats: attend(window, logits, *floats, *arrays[4:]), *arrays[:4])
    kept = op._as_results(out, maximum, log, arrays[0])
    right = jnp.all(jnp.array([jnp.allclose(a, b, atol=1e-5) for a, b in zip(kept, results, strict=True)]))
    cotangents = (
        jnp.zeros_like(x) if isinstance(d, SymbolicZero) else d for d, x in zip(cotangents, kept, strict=True)
    )
    gradients = pull(tuple(cotangents))
    return *jax.tree.map(lambda x: jnp.where(right, x, jnp.nan), gradients), None, None, None


op._run_forward = run_forward
op._attend.defvjp(op._forward, backward, symbolic_zeros=True)

if __name__ == "__main__":
    for name in sys.argv[1:]:
        check(name, "triton", "Auto")
        print(name, flush=True)
