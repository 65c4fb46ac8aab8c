"""What the GPU benchmarks measure: cases of natjax_kernels.cases, their inputs, and the least time that each can take."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax

from natjax_kernels.cases import DILATIONS, LARGE, Case, levels

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
ROTATED_BYTES = 256e6  # of inputs in turn: several times an H200's L2 cache of 60 MB


class Options(NamedTuple):
    """Of a run: whether it is a rehearsal, threads that compile side by side, and parts of names of what to measure."""

    rehearse: bool
    threads: int
    cases: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        """Whether what is called so is to be measured."""
        return not self.cases or any(part in name for part in self.cases)


def nbytes(case: Case, tensors: int, dtype: str) -> int:
    """Bytes of so many tensors like the query."""
    return tensors * math.prod(case.shape) * ITEM[dtype]


def rotation(case: Case, dtype: str, most: int = 8) -> int:
    """Returns how many sets of inputs to take in turn, so that none is in the L2 cache when its turn comes."""
    return max(2, min(most, math.ceil(ROTATED_BYTES / nbytes(case, 3, dtype))))


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


def arguments(case: Case, key: jax.Array, sets: int, dtype: str) -> list[list[jax.Array | None]]:
    """Returns sets of query, key, value, bias and output gradient.

    Each has a bias of its own, as every layer of a model does: with one for all, its table would be made once.
    """
    bias = [case.rpb_shape] if case.rpb_shape else []
    drawn = [normal(k, *[case.shape] * 4, *bias, dtype=dtype) for k in jax.random.split(key, sets)]
    return [[*one[:3], one[4] if bias else None, one[3]] for one in drawn]


def normal(seed: jax.Array, *shapes: tuple[int, ...], dtype: str) -> list[jax.Array]:
    """Returns arrays of normal numbers, drawn on the device."""
    return [_draw(key, shape, dtype) for key, shape in zip(jax.random.split(seed, len(shapes)), shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


def fresh_key() -> tuple[jax.Array, int]:
    """Returns a random key that no run had before, and its seed, to be recorded."""
    seed = int.from_bytes(os.urandom(4), "little") >> 1
    return jax.random.key(seed), seed


SMALL = {
    "tiny": [Case("tiny level 1", 1, (8, 9), 2, 16, (3, 3))],
    "dilated": [Case("tiny level 1 dilation 2", 1, (8, 9), 2, 16, (3, 3), 2)],
    "large": [Case("1-D", 1, (300,), 1, 16, (15,)), Case("3-D", 2, (4, 5, 8), 2, 16, (2, 4, 3), bias=False)],
}


def groups(options: Options) -> dict[str, list[Case]]:
    """Returns what the op is timed on, by group and the most telling first, so that Base is cut first where time is short."""
    tiny = levels(128, 2, "tiny", DILATIONS)
    full = {
        "tiny": [case for case in tiny if case.dilation == 1],
        "dilated": [case for case in tiny if case.dilation > 1],
        "large": LARGE,
        "base": levels(128, 4, "base"),
    }
    found = SMALL if options.rehearse else full
    return {group: [case for case in cases if options.wants(case.name)] for group, cases in found.items()}
