"""Halos of arrays that are split over devices along a spatial axis: what a device needs of its neighbours, and nothing else.

Every device has an equal part of an axis of L tokens, L / devices. A halo may be longer than a part: then it comes from several
devices. JAX's derivative of an exchange sends the gradients of halos back, by as many bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped


def exchange(
    x: Shaped[Array, "..."],
    axis: int,
    before: int,
    after: int,
    names: str | tuple[str, ...],
    *,
    periodic: bool = False,
) -> Shaped[Array, "..."]:
    """Returns a device's part of an array with tokens of its neighbours beside it; to be called within `jax.shard_map`.

    Args:
        x: the device's own part, any dtype; `axis` has as many tokens on every device.
        axis: which axis of x is split.
        before: tokens in front of the own ones.
        after: tokens behind the own ones.
        names: axis or axes of the mesh along which it is split.
        periodic: whether the axis is a ring; else there are zeros beyond its two ends.

    Returns:
        x with `before + length + after` tokens along the axis.
    """
    front = [_from_neighbour(x, axis, -hop, width, names, periodic) for hop, width in _hops(before, x.shape[axis])]
    back = [_from_neighbour(x, axis, hop, width, names, periodic) for hop, width in _hops(after, x.shape[axis])]
    return jnp.concatenate([*front[::-1], x, *back], axis=axis) if front or back else x


def _hops(tokens: int, length: int) -> list[tuple[int, int]]:
    """Returns how far away the devices are that have the next `tokens` tokens, and how many are of each."""
    return [(1 + at // length, min(length, tokens - at)) for at in range(0, tokens, length)]


def _from_neighbour(x, axis: int, hop: int, width: int, names, periodic: bool):
    """Returns the nearest `width` tokens of the device that is `hop` devices behind, or before where it is negative."""
    length, count = x.shape[axis], jax.lax.axis_size(names)
    start = 0 if hop > 0 else length - width
    tokens = jax.lax.slice_in_dim(x, start, start + width, axis=axis)
    if periodic and hop % count == 0:
        return tokens
    pairs = [((to + hop) % count, to) for to in range(count) if periodic or 0 <= to + hop < count]
    return jax.lax.ppermute(tokens, names, pairs) if pairs else jnp.zeros_like(tokens)
