"""Padded lists: work on the entries that are valid, and not on the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Num


def of_valid(
    function: Callable[..., Array], valid: Bool[Array, "B N"], *arrays: Num[Array, "B N *_"]
) -> Num[Array, "B N *shape"]:
    """Returns what a function makes of the valid entries of lists, zeros for the others.

    It takes blocks of entries, whatever their images, and no more blocks than there are valid entries for: time and memory go
    with these. So there is no gradient in reverse mode.

    Args:
        function: of arrays [n, ...], each entry by itself, to one array [n, *shape].
        valid: which entries count.
        *arrays: the function's arguments for all entries.
    """
    flat = [x.reshape(-1, *x.shape[2:]) for x in arrays]
    count = valid.size
    # A CPU is quicker with as many maps as its caches hold; a GPU wants many.
    size = 20 if jax.default_backend() == "cpu" else 100
    order = jnp.argsort(~valid.reshape(-1)).astype(jnp.int32)
    order = jnp.pad(order, (0, -count % size), constant_values=count)

    def of_block(at: Array) -> Array:
        return function(*(x.at[at].get(mode="clip") for x in flat))

    def body(i: Array, out: Array) -> Array:
        at = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        return out.at[at].set(of_block(at), mode="drop")

    block = jax.eval_shape(of_block, order[:size])
    blocks = -(-jnp.sum(valid, dtype=jnp.int32) // size)
    out = jax.lax.fori_loop(0, blocks, body, jnp.zeros((count, *block.shape[1:]), block.dtype))
    return jnp.where(valid.reshape(-1, *(1,) * (out.ndim - 1)), out, 0).reshape(*valid.shape, *out.shape[1:])
