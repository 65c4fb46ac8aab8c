"""Merges attention over parts of the keys, by their log-sum-exps (as FlashDecoding and NATTEN's `merge_attentions` do).

Letters: D channels of a head.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from natjax_kernels.checks import as_array
from natjax_kernels.problem import accumulator

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def merge_attentions(
    outputs: Sequence[Float[Array, "*queries D"]], lses: Sequence[Float[Array, "*queries"]]
) -> tuple[Float[Array, "*queries D"], Float[Array, "*queries"]]:
    """Returns attention over all keys, from attention of the same queries over disjoint parts of them.

        local, local_lse = natjax.neighborhood_attention(q, k, v, kernel_size=7, return_lse=True)
        distant, distant_lse = natjax.neighborhood_attention(q, k, v, kernel_size=7, dilation=8, return_lse=True)
        out, lse = natjax.merge_attentions([local, distant], [local_lse, distant_lse])  # common keys count twice

    A part's weight is the softmax of the log-sum-exps. A query that sees nothing in any part gets 0 and minus infinity. Both
    results are differentiable, any number of times and in both modes, as far as the parts are.

    Args:
        outputs: [*queries, D] of every part, of one shape and dtype; at least one.
        lses: [*queries] of every part, natural logarithms, as `neighborhood_attention(..., return_lse=True)` returns them.

    Returns:
        Output, of the dtype of `outputs`, and log-sum-exp, float32 (float64 for float64).

    Raises:
        TypeError: an entry is not an array.
        ValueError: there is no part, or shapes or dtypes are impossible or do not fit each other.
    """
    parts = [as_array(f"outputs[{i}]", x) for i, x in enumerate(outputs)]
    logs = [as_array(f"lses[{i}]", x) for i, x in enumerate(lses)]
    if not parts or len(parts) != len(logs):
        raise ValueError(f"as many outputs as lses are needed, at least one; got {len(parts)} and {len(logs)}.")
    first = parts[0]
    if not jnp.issubdtype(first.dtype, jnp.floating):
        raise ValueError(f"outputs must be of a floating dtype; got {first.dtype}.")
    for i, (out, lse) in enumerate(zip(parts, logs, strict=True)):
        if out.shape != first.shape or out.dtype != first.dtype:
            raise ValueError(
                f"outputs must be alike; outputs[0] is {first.dtype} {first.shape} and outputs[{i}] {out.dtype} {out.shape}."
            )
        if lse.shape != out.shape[:-1]:
            raise ValueError(
                f"lses[{i}] must have the shape of its output but for the last axis, {out.shape[:-1]}; got {lse.shape}."
            )
    logs = [lse.astype(accumulator(first)) for lse in logs]
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logs))
    largest = jnp.where(largest == -jnp.inf, 0, largest)
    weights = [jnp.exp(lse - largest) for lse in logs]
    total = functools.reduce(operator.add, weights)
    seen = total != 0  # also a NaN
    total = jnp.where(seen, total, 1)
    merged = (out.astype(total.dtype) * (w / total)[..., None] for out, w in zip(parts, weights, strict=True))
    out = functools.reduce(operator.add, merged).astype(first.dtype)
    return out, jnp.where(seen, largest + jnp.log(total), -jnp.inf)
