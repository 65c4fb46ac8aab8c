"""Rotary positions (RoFormer, arXiv 2104.09864) along one to three axes, in the axial form of RoPE-ViT (arXiv 2403.13298).

The channels of a head are pairs, an equal number for every axis. A pair is rotated by its frequency times the token's position
along its axis, so that the product of a query and a key depends on the distance between them alone.

Letters: B batch, N heads, D channels of a head, L length of an axis.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from natjax_kernels.problem import accumulator

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def check_rotary(head_dim: int, rank: int, theta: Any) -> None:
    """Checks that heads can be rotated.

    Raises:
        ValueError: they have too few channels for the axes, or theta is no base of frequencies.
    """
    if head_dim < 2 * rank:
        raise ValueError(
            f"rope needs heads of at least 2 channels per spatial axis, here {2 * rank}; got heads of {head_dim} "
            "(dim / num_heads)."
        )
    if not (isinstance(theta, numbers.Real) and 1 < theta < np.inf):
        raise ValueError(f"rope_theta must be a number above 1; got {theta!r}.")


def rotate(
    x: Float[Array, "B *spatial N D"], key_spatial: Sequence[int], theta: float, periodic: Sequence[bool]
) -> Float[Array, "B *spatial N D"]:
    """Rotates the queries or keys of a map by their positions, in float32 (float64 for float64).

    The first half of the rotated channels holds the pairs' first members, axis after axis, and the second half the others, as in
    Hugging Face's models. Channels that do not fill a pair for every axis come last and stay as they are.

    Args:
        x: queries or keys.
        key_spatial: sides of the keys' map. Positions are counted in its tokens, from the centre of its first one: queries of a
            finer map lie between them.
        theta: base of the frequencies, theta ** (-i / pairs) for the i-th pair of an axis.
        periodic: axes that wrap around. Frequencies there are whole turns per axis: the nearest ones, at least one.
    """
    pairs = x.shape[-1] // (2 * len(key_spatial))
    frequency = theta ** (-np.arange(pairs) / pairs)
    spatial, dtype = x.shape[1:-2], accumulator(x)
    turns = []
    for axis, (length, keys, wraps) in enumerate(zip(spatial, key_spatial, periodic, strict=True)):
        unit = 2 * np.pi / keys
        frequencies = unit * np.maximum(np.round(frequency / unit), 1) if wraps else frequency
        position = (np.arange(length) + 0.5) * (keys / length) - 0.5
        shape = [1] * len(spatial)
        shape[axis] = length
        turns.append((position[:, None] * frequencies).reshape(*shape, 1, pairs))
    cos, sin = (
        jnp.concatenate([jnp.broadcast_to(jnp.asarray(f(a), dtype), (*spatial, 1, pairs)) for a in turns], axis=-1)
        for f in (np.cos, np.sin)
    )
    half = cos.shape[-1]
    first, second, rest = x[..., :half].astype(dtype), x[..., half : 2 * half].astype(dtype), x[..., 2 * half :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated
