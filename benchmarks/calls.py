"""Calls of the op that are timed: functions of it, inputs that no run had before, and what is measured on a GPU."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.harness import Options
from natjax_kernels import neighborhood_attention
from natjax_kernels.cases import DILATIONS, LARGE, Case, levels

WHAT = ("forward", "both")
ROTATED_BYTES = 256e6  # of inputs in turn: several times an H200's L2 cache of 60 MB
SMALL = {
    "tiny": [Case("tiny level 1", 1, (8, 9), 2, 16, (3, 3))],
    "dilated": [Case("tiny level 1 dilation 2", 1, (8, 9), 2, 16, (3, 3), 2)],
    "large": [Case("1-D", 1, (300,), 1, 16, (15,)), Case("3-D", 2, (4, 5, 8), 2, 16, (2, 4, 3), bias=False)],
}


def op(case: Case, what: str, implementation: str | None = None) -> Callable:
    """Returns the op of query, key, value, bias and output gradient; "both" returns their gradients beside the output."""

    def forward(query, key, value, rpb, d_out=None):
        return neighborhood_attention(query, key, value, rpb=rpb, **case.options(), implementation=implementation)

    def both(query, key, value, rpb, d_out):
        out, pull = jax.vjp(forward, query, key, value, rpb)
        return out, *pull(d_out)

    return {"forward": forward, "both": both}[what]


def arguments(case: Case, key: jax.Array, sets: int, dtype: str) -> list[list[jax.Array | None]]:
    """Returns sets of query, key, value, bias and output gradient.

    Each has a bias of its own, as every layer of a model does: with one for all, its table would be made once.
    """
    shapes = [*[case.shape] * 4, *([case.rpb_shape] if case.rpb_shape else [])]
    drawn = [[draw(key, len(shapes) * i + j, shape, dtype) for j, shape in enumerate(shapes)] for i in range(sets)]
    return [[*one[:3], one[4] if case.rpb_shape else None, one[3]] for one in drawn]


@functools.partial(jax.jit, static_argnums=(2, 3))
def draw(key: jax.Array, index: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Returns normal numbers of a key and an index, drawn on the device by one program for a shape and dtype."""
    return jax.random.normal(jax.random.fold_in(key, index), shape, dtype)


def fresh_key() -> tuple[jax.Array, int]:
    """Returns a random key that no run had before, and its seed, to be recorded."""
    seed = int.from_bytes(os.urandom(4), "little") >> 1
    return jax.random.key(seed), seed


def groups(options: Options) -> dict[str, list[Case]]:
    """Returns what the op is timed on, by group and the most telling first, so that Base is cut first where time is short."""
    tiny = levels(128, 2, "tiny", DILATIONS)
    full = {
        "tiny": [case for case in tiny if case.dilation == 1],
        "dilated": [case for case in tiny if case.dilation > 1],
        "large": LARGE,
        "base": levels(128, 4, "base"),
    }
    found = SMALL if options.small else full
    return {group: [case for case in cases if options.wants(case.name)] for group, cases in found.items()}


def nbytes(case: Case, tensors: int, dtype: str) -> int:
    """Bytes of so many tensors like the query."""
    return tensors * math.prod(case.shape) * jnp.dtype(dtype).itemsize


def rotation(case: Case, dtype: str, most: int = 8) -> int:
    """Returns how many sets of inputs to take in turn, so that none is in the L2 cache when its turn comes."""
    return min(most, max(2, math.ceil(ROTATED_BYTES / nbytes(case, 3, dtype))))


def floors(case: Case, dtype: str, ceilings: dict[str, float]) -> dict[str, dict[str, float]]:
    """Returns the microseconds that bytes and matrix products take at the measured ceilings, and the larger of both.

    Forward reads query, key and value and writes the output: 4 tensors. Backward reads those 4 and the output's gradient
    and writes 3 gradients: 12 tensors for both, and no count of log-sum-exp, delta and bias, which are small.
    Forward multiplies 2 times over the window's own scores, backward 5 times.
    """
    product = 2 * math.prod(case.shape) * math.prod(case.window.kernel_size)
    found = {}
    for what, tensors, products in (("forward", 4, 2), ("both", 12, 7)):
        memory = nbytes(case, tensors, dtype) / ceilings["copy_gigabytes_per_second"] / 1e3
        matrix = products * product / ceilings["matmul_teraflops"] / 1e6
        found[what] = {"memory": memory, "matrix": matrix, "floor": max(memory, matrix)}
    return found
