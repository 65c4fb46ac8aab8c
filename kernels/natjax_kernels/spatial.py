"""Attention of maps that are split over devices along their spatial axes: each device computes its own queries.

A device gets what its queries see beside its own part, as halos or around a ring (`natjax_kernels.split`), and calls an
implementation on it, with the windows that its queries have in the whole map.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natjax_kernels.halo import exchange
from natjax_kernels.problem import Problem
from natjax_kernels.ring import Ring
from natjax_kernels.split import split_axis

Names = str | tuple[str, ...]


def attend_to_parts(
    attend: Callable, problem: Problem, names: tuple[Names | None, ...], at_once: Callable | None = None
):
    """Computes output and log-sum-exp of a device's own queries; to be called within `jax.shard_map`.

    Args:
        attend: of an implementation.
        problem: of what the device has: its parts of query, key, value and mask.
        names: of every spatial axis the axes of the mesh along which it is split, or None.
        at_once: what is called instead where it has to be called only once, which it is not around a ring; returns what it may.
    """
    names = tuple(name if name and jax.lax.axis_size(name) > 1 else None for name in names)
    at_once = at_once or attend
    if not any(names):
        return at_once(problem)
    keys = {name: getattr(problem, name) for name in ("key", "value", "key_mask")}
    splits, places, rings = [], [], []
    for a, (name, axis) in enumerate(zip(names, problem.window.axes(), strict=True)):
        if name is None:
            splits.append(None)
            places.append(0)
            continue
        parts = jax.lax.axis_size(name)
        split = split_axis(parts * problem.spatial[a], parts, axis)
        splits.append(split)
        places.append(jax.lax.axis_index(name))
        if split.ring:
            rings.append(Ring(a, name, parts, split.ring))
        get = functools.partial(exchange, axis=1 + a, before=split.before, after=split.after, names=name)
        keys = {kind: None if x is None else get(x, periodic=axis.periodic) for kind, x in keys.items()}
    window = dataclasses.replace(problem.window, split=tuple(splits))
    places = jnp.stack([jnp.asarray(place, jnp.int32) for place in places])
    problem = dataclasses.replace(problem, **keys, window=window, places=places)
    if not rings:
        return at_once(problem)
    for ring in rings:
        attend = functools.partial(ring.attend, attend)
    return attend(problem)
