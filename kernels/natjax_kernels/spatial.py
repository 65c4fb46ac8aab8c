"""Attention of maps that are split over devices along their spatial axes: each device computes its own queries.

A device gets what its queries see beside its own part, as halos or around a ring (`natjax_kernels.split`), and calls an
implementation on it, with the windows that its queries have in the whole map. Along a ring attention to the parts is merged by
its log-sum-exps, as Ring Attention does (arXiv 2310.01889); the backward pass goes around once more, and keeps no part.

Letters: B batch, N heads, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natjax_kernels.halo import exchange
from natjax_kernels.merge import merge_attentions
from natjax_kernels.problem import Problem
from natjax_kernels.split import split_axis

Names = str | tuple[str, ...]


def attend_to_parts(attend: Callable, problem: Problem, names: tuple[Names | None, ...]):
    """Computes output and log-sum-exp of a device's own queries; to be called within `jax.shard_map`.

    Args:
        attend: of an implementation.
        problem: of what the device has: its parts of query, key, value and mask.
        names: of every spatial axis the axes of the mesh along which it is split, or None.
    """
    names = tuple(name if name and jax.lax.axis_size(name) > 1 else None for name in names)
    if not any(names):
        return attend(problem)
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
            rings.append((a, name, parts))
        get = functools.partial(exchange, axis=1 + a, before=split.before, after=split.after, names=name)
        keys = {kind: None if x is None else get(x, periodic=axis.periodic) for kind, x in keys.items()}
    window = dataclasses.replace(problem.window, split=tuple(splits))
    places = jnp.stack([jnp.asarray(place, jnp.int32) for place in places])
    problem = dataclasses.replace(problem, **keys, window=window, places=places)
    for ring in rings:
        attend = functools.partial(_attend_around, attend, *ring)
    return attend(problem)


def _attend_around(attend: Callable, axis: int, names: Names, parts: int, problem: Problem):
    """Computes output and log-sum-exp around a ring of devices along one axis."""

    def pass_on(*arrays):
        pairs = [(device, (device + 1) % parts) for device in range(parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, names, pairs), arrays)

    def at(step, arrays, places, key, value, key_mask) -> Problem:
        """Returns the problem of a step: attention to one part; to additional keys in the first one."""
        query, _, _, rpb, *more, _, sizes = arrays
        more = more if step is None else (None, None)
        places = places if step is None else places.at[axis].add(step * parts)
        return dataclasses.replace(problem.with_arrays(query, key, value, rpb, *more, key_mask, sizes), places=places)

    def parts_of(arrays):
        return arrays[1], arrays[2], arrays[6]

    def forward(arrays, places):
        keys = parts_of(arrays)
        out, lse = attend(at(None, arrays, places, *keys))

        def step(carry, step):
            out, lse, keys = carry
            keys = pass_on(*keys)
            part, of_part = attend(at(step, arrays, places, *keys))
            return (*merge_attentions([out, part.astype(out.dtype)], [lse, of_part]), keys), None

        (out, lse, _), _ = jax.lax.scan(step, (out.astype(lse.dtype), lse, keys), jnp.arange(1, parts, dtype=jnp.int32))
        return out, lse

    @jax.custom_vjp
    def around(arrays, places):
        out, lse = forward(arrays, places)
        return out.astype(arrays[0].dtype), lse

    def around_forward(arrays, places):
        out, lse = forward(arrays, places)
        return (out.astype(arrays[0].dtype), lse), (arrays, places, out, lse)

    def around_backward(residuals, cotangents):
        arrays, places, out, lse = residuals
        d_out, d_lse = cotangents
        d_out = d_out.astype(out.dtype)

        def gradients(step, keys):
            """Returns what flows to query, key, value, bias and, in the first step, additional keys and values."""
            key, value, key_mask = keys
            query, _, _, rpb, *more, _, _ = arrays
            primals = query, key, value, rpb, *(more if step is None else (None, None))

            def run(query, key, value, rpb, *more):
                own = dataclasses.replace(at(step, arrays, places, key, value, key_mask), query=query, rpb=rpb)
                own = dataclasses.replace(own, **dict(zip(("additional_keys", "additional_values"), more, strict=True)))
                return attend(own)

            (part, of_part), pull = jax.vjp(run, *primals)
            weight = jnp.where(lse > -jnp.inf, jnp.exp(of_part - lse), 0)  # the share of the part in the whole softmax
            d_part = weight[..., None] * d_out
            inner = jnp.sum(d_out * (part.astype(out.dtype) - out), axis=-1)
            return pull((d_part.astype(part.dtype), weight * (inner + d_lse)))

        def wide(x):
            return jax.tree.map(lambda x: x.astype(out.dtype), x)

        keys = parts_of(arrays)
        d_query, d_key, d_value, d_rpb, *d_more = wide(gradients(None, keys))

        def step(carry, step):
            keys, of_keys, of_others = carry
            keys, of_keys = pass_on(*keys), pass_on(*of_keys)
            d_query, d_key, d_value, d_rpb, _, _ = wide(gradients(step, keys))
            return (keys, *jax.tree.map(jnp.add, (of_keys, of_others), ((d_key, d_value), (d_query, d_rpb)))), None

        carry = keys, (d_key, d_value), (d_query, d_rpb)
        (_, of_keys, (d_query, d_rpb)), _ = jax.lax.scan(step, carry, jnp.arange(1, parts, dtype=jnp.int32))
        d_key, d_value = pass_on(*of_keys)  # home
        found = d_query, d_key, d_value, d_rpb, *d_more, None, None
        return tuple(d if d is None else d.astype(x.dtype) for d, x in zip(found, arrays, strict=True)), None

    around.defvjp(around_forward, around_backward)
    return around(problem.arrays, problem.places)
