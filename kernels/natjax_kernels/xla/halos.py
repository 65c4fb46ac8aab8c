"""Sums over the halos of tiles where many tiles share a key, as windows of thousands of tokens do: tile after tile is added.

Gathering them, as of smaller windows, needs an index for every tile that sees a key, and all halos at once: L * L / T tokens
where windows are whole axes of L tokens in tiles of T. Nothing scatters here either: a halo is a run of keys of a dilation
group, and is added to a slice of the sums.

Letters: L keys along an axis, S keys per tile, P places of a dilation group, with room for what runs past its end.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels._compat import vary, varying_axes
from natjax_kernels.axis import AxisPlan
from natjax_kernels.plan import group_length
from natjax_kernels.problem import accumulator

_MANY = 8  # tiles


def shared_by_many(of_axis: AxisPlan) -> bool:
    """Returns whether so many tiles share a key that their halos are added one by one."""
    return of_axis.tiles_per_key > _MANY


def sum_halos(x, of_axis: AxisPlan, axis: int):
    """Sums the halos of all tiles along an axis: [..., tiles * S, ...] -> [..., L, ...]."""
    return keys_of(add_halos(no_halos(x, of_axis, axis), x, of_axis.first_key, of_axis, axis), of_axis, axis).astype(
        x.dtype
    )


def no_halos(like, of_axis: AxisPlan, axis: int):
    """Returns zeros to add halos to, [..., P, groups, ...] of the accumulator's dtype; the other axes are those of `like`."""
    zeros = jnp.expand_dims(jnp.zeros_like(jax.lax.slice_in_dim(like, 0, 1, axis=axis), accumulator(like)), axis)
    shape = *like.shape[:axis], _places(of_axis), of_axis.apart, *like.shape[axis + 1 :]
    return vary(jnp.broadcast_to(zeros, shape), varying_axes(like))


def add_halos(sums, x, first_key, of_axis: AxisPlan, axis: int):
    """Adds halos of tiles, [..., tiles * S, ...], that begin at the positions [tiles]."""
    place, group = jnp.divmod(jnp.maximum(jnp.asarray(first_key, jnp.int32), 0), of_axis.apart)
    span, sizes = of_axis.span, list(sums.shape)
    sizes[axis], sizes[axis + 1] = span, 1

    def add(tile, sums):
        halo = jnp.expand_dims(jax.lax.dynamic_slice_in_dim(x, tile * span, span, axis=axis), axis + 1)
        at: list = [np.int32(0)] * sums.ndim
        at[axis], at[axis + 1] = place[tile], group[tile]
        held = jax.lax.dynamic_slice(sums, at, sizes)
        return jax.lax.dynamic_update_slice(sums, held + halo.astype(sums.dtype), at)

    return add(0, sums) if len(first_key) == 1 else jax.lax.fori_loop(0, len(first_key), add, sums)


def keys_of(sums, of_axis: AxisPlan, axis: int):
    """Returns the sums of every key: [..., P, groups, ...] -> [..., L, ...]."""
    if of_axis.ring:
        rounds = sums.reshape(
            *sums.shape[:axis], -1, group_length(of_axis.length, of_axis.apart), *sums.shape[axis + 1 :]
        )
        sums = jnp.sum(rounds, axis=axis)
    return jax.lax.slice_in_dim(jax.lax.collapse(sums, axis, axis + 2), 0, of_axis.length, axis=axis)


def _places(of_axis: AxisPlan) -> int:
    """Places of a group, P, for all halos; on a ring, those of whole rounds."""
    group = group_length(of_axis.length, of_axis.apart)
    places = max(group, of_axis.last_first_key // of_axis.apart + of_axis.span)
    return math.ceil(places / group) * group if of_axis.ring else places
