"""Shapes that the GPU benchmarks measure, and the least time that each can take.

Letters: B batch, N heads, D channels of a head, K keys of a window.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from benchmarks.gpu.timing import normal

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the op: [batch, *spatial, heads, channels] with a window and perhaps a bias."""

    name: str
    batch: int
    spatial: tuple[int, ...]
    heads: int
    channels: int
    kernel_size: tuple[int, ...]
    dilation: int = 1
    bias: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of query, key, value and output."""
        return (self.batch, *self.spatial, self.heads, self.channels)

    def nbytes(self, tensors: int, dtype: str) -> int:
        """Bytes of so many tensors like the query."""
        return tensors * math.prod(self.shape) * ITEM[dtype]

    def floors(self, dtype: str, ceilings: dict[str, float]) -> dict[str, dict[str, float]]:
        """Returns the microseconds that bytes and matrix products take at the measured ceilings, and the larger of both.

        Forward reads query, key and value and writes the output: 4 tensors. Backward reads those 4 and the output's gradient
        and writes 3 gradients: 12 tensors for both, and no count of log-sum-exp, delta and bias, which are small.
        Forward multiplies 2 times over the window's own scores, backward 5 times.
        """
        product = 2 * math.prod(self.shape) * math.prod(self.kernel_size)
        found = {}
        for what, tensors, products in (("forward", 4, 2), ("both", 12, 7)):
            memory = self.nbytes(tensors, dtype) / ceilings["copy_gigabytes_per_second"] / 1e3
            matrix = products * product / ceilings["matmul_teraflops"] / 1e6
            found[what] = {"memory": memory, "matrix": matrix, "floor": max(memory, matrix)}
        return found

    def arguments(self, key: jax.Array, sets: int, dtype: str) -> list[list[jax.Array | None]]:
        """Returns sets of query, key, value, bias and output gradient.

        Each has a bias of its own, as every layer of a model does: with one for all, its table would be made once.
        """
        bias = [(self.heads, *(2 * k - 1 for k in self.kernel_size))] if self.bias else []
        drawn = [normal(k, *[self.shape] * 4, *bias, dtype=dtype) for k in jax.random.split(key, sets)]
        return [[*one[:3], one[4] if self.bias else None, one[3]] for one in drawn]

    def options(self) -> dict[str, Any]:
        """The op's options."""
        return {"kernel_size": self.kernel_size, "dilation": self.dilation}


DILATIONS = (8, 4, 2, 1)  # of DiNAT's levels: the largest that the maps of 224 px have room for


def levels(
    batch: int, heads: int, prefix: str, dilations: tuple[int, ...] = (1, 1, 1, 1), side: int = 56, kernel: int = 7
) -> list[Case]:
    """Returns a model's levels, whose maps halve from `side` on, plain and as DiNAT dilates every second layer."""
    return [
        Case(
            f"{prefix} level {level + 1}{f' dilation {d}' * (d > 1)}",
            batch,
            (side >> level,) * 2,
            heads << level,
            32,
            (kernel,) * 2,
            d,
        )
        for level, most in enumerate(dilations)
        for d in dict.fromkeys((1, most))
    ]


def published() -> list[Case]:
    """Returns what attention of all published models comes to: heads and batch are no part of a configuration's name."""
    return [
        *levels(128, 2, "tiny", DILATIONS),  # NAT-Tiny speaks for all sizes at 224 px
        *levels(32, 6, "384 px", (13, 6, 3, 1), 96),
        *levels(32, 6, "384 px kernel 11", DILATIONS, 96, 11),
    ]


LARGE = [
    Case("1-D of 32768", 8, (32768,), 4, 64, (63,)),
    Case("2-D kernel 80", 1, (256, 256), 2, 128, (80, 80), bias=False),
    Case("3-D kernel 18 x 24 x 24", 1, (30, 48, 80), 2, 64, (18, 24, 24), bias=False),
]
SMALL = {
    "tiny": [Case("tiny level 1", 1, (8, 9), 2, 16, (3, 3))],
    "dilated": [Case("tiny level 1 dilation 2", 1, (8, 9), 2, 16, (3, 3), 2)],
    "large": [Case("1-D", 1, (300,), 1, 16, (15,)), Case("3-D", 2, (4, 5, 8), 2, 16, (2, 4, 3), bias=False)],
}


def groups(rehearse: bool) -> dict[str, list[Case]]:
    """Returns what the op is timed on, by group and the most telling first, so that Base is cut first where time is short."""
    if rehearse:
        return SMALL
    tiny = levels(128, 2, "tiny", DILATIONS)
    return {
        "tiny": [case for case in tiny if case.dilation == 1],
        "dilated": [case for case in tiny if case.dilation > 1],
        "large": LARGE,
        "base": levels(128, 4, "base"),
    }
