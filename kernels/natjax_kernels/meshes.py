"""Attention of arrays that lie along axes of a mesh: what every device computes of its own parts.

Explicit axes are part of types: where they split a map, each device attends to its own part of it (`natjax_kernels.spatial`). Of
Auto axes only XLA's partitioner knows, which left to itself would gather whole maps. There a call
(`natjax_kernels.partitioning`) tells it which axes can be sharded, and what a device computes then; the backward pass is a call
of its own.

Letters of calls: b batch, x0 x1 x2 the map, r0 r1 r2 keys per query along it, n key heads, g query heads that share one,
d channels of queries and keys, e of values, s additional keys, o0 o1 o2 offsets of the bias, z sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from natjax_kernels.grids import repeat_heads_to_shard
from natjax_kernels.partitioning import Call, join_heads, split_heads
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import (
    is_summed_later,
    laid_alike,
    may_lie_anywhere,
    over_explicit_axes,
    shared_along,
    spec_of,
)
from natjax_kernels.spatial import attend_to_parts


@dataclasses.dataclass(frozen=True)
class Statistics:
    """How an implementation keeps statistics of queries from its forward pass for its backward pass.

    Attributes:
        attend: takes a problem, and returns output, log-sum-exp and `count` statistics, [B, N, *spatial] float32 each.
        again: takes a problem, its output and statistics; returns output and log-sum-exp, whose derivatives alone are computed.
        count: of statistics.
    """

    attend: Callable
    again: Callable
    count: int


def over_devices(attend: Callable, statistics: Statistics | None = None) -> Callable:
    """Lets an implementation compute maps that are split over devices, each device its own part.

    Args:
        attend: takes a problem, whole or of a device (`Problem.places`); returns output and log-sum-exp.
        statistics: what it keeps for its backward pass, if anything.

    Returns:
        The same function for problems whose arrays lie along any axes of a mesh.
    """

    @functools.wraps(attend)
    def attend_over_devices(problem: Problem):
        names, bias = spec_of(problem.query)[1:-2], problem.rpb
        if bias is not None:
            problem = dataclasses.replace(problem, rpb=shared_along(bias, problem.query))
        if not (any(names) or is_summed_later(problem.rpb)):
            is_auto = may_lie_anywhere(problem.arrays) and isinstance(problem.batch, int)
            return _over_auto_axes(attend, statistics, problem) if is_auto else attend(problem)
        problem = laid_alike(repeat_heads_to_shard(problem))
        given = [x is not None for x in problem.arrays]

        def of_device(*arrays):
            arrays = iter(arrays)
            return attend_to_parts(attend, problem.with_arrays(*(next(arrays) if g else None for g in given)), names)

        arrays = [x for x in problem.arrays if x is not None]
        *tokens, _ = spec_of(problem.query)
        specs = PartitionSpec(*tokens, None), PartitionSpec(*tokens)
        return over_explicit_axes(of_device, arrays, specs, all_axes=statistics is not None)

    return attend_over_devices


def _over_auto_axes(attend: Callable, statistics: Statistics | None, problem: Problem):
    """Computes output and log-sum-exp; see `natjax_kernels.problem`.

    Args:
        attend: of an implementation; derivatives of second order are its own, on whole maps.
        statistics: what it keeps for the backward pass, which else computes the forward pass again.
        problem: with arrays that may be sharded along Auto axes of a mesh.
    """
    rank, spacing = len(problem.spatial), problem.window.spacing
    group = problem.heads // problem.key_heads
    letters = tuple(f"x{a}" for a in range(rank))
    queries = " ".join(letters)
    keys = " ".join(x if n == 1 else f"{x} r{a}" for a, (x, n) in enumerate(zip(letters, spacing, strict=True)))
    heads = "n" if group == 1 else "n g"
    of_keys, of_values = f"b {keys} n d", f"b {keys} n e"
    bias = f"{heads} {' '.join(f'o{a}' for a in range(rank))}"
    operands = f"b {queries} {heads} d", of_keys, of_values, bias, "b s n d", "b s n e", f"b {keys}", "b z"
    results = f"b {queries} {heads} e", f"b {queries} {heads}"
    # Of additional keys, with which the output is that of the kernels no more, an implementation keeps nothing.
    keeps = None if problem.additional_keys is not None else statistics
    kept = (results[0], *(f"b {heads} {queries}",) * keeps.count) if keeps else ()

    def apart(query, key, value, rpb, more_keys, more_values, key_mask, sizes):
        """Splits axes, so that those which lie alike on the mesh have a letter."""
        key, value, key_mask = (_split_map(x, spacing) for x in (key, value, key_mask))
        query, rpb = split_heads(query, 1 + rank, group), None if rpb is None else split_heads(rpb, 0, group)
        return query, key, value, rpb, more_keys, more_values, key_mask, sizes

    def together(query, key, value, rpb, more_keys, more_values, key_mask, sizes):
        """Undoes `apart`."""
        key, value, key_mask = (_join_map(x, spacing) for x in (key, value, key_mask))
        query, rpb = join_heads(query, 1 + rank, group), None if rpb is None else join_heads(rpb, 0, group)
        return query, key, value, rpb, more_keys, more_values, key_mask, sizes

    def run(at_once, arrays, names):
        of_device = problem.with_arrays(*together(*arrays))
        out, lse, *more = attend_to_parts(attend, of_device, tuple(names.values()), at_once)
        return [*(split_heads(x, 1 + rank, group) for x in (out, lse)), *(split_heads(x, 1, group) for x in more)]

    def forward(*arrays, names):
        """Returns output, log-sum-exp and statistics; around a ring these mean nothing."""
        out, lse, *found = run(keeps and keeps.attend, arrays, names)
        return out, lse, *(found or [jnp.moveaxis(lse, range(1, 1 + rank), range(-rank, 0))] * len(kept[1:]))

    def backward(*arrays, names):
        """Returns the gradients of the floating-point arrays that there are."""
        *floats, key_mask, sizes = arrays[:8]
        *known, d_out, d_lse = arrays[8:]
        known = [join_heads(x, axis, group) for x, axis in zip(known, (1 + rank, 1, 1), strict=False)]
        at_once = keeps and (lambda problem: keeps.again(problem, *known))
        given = [x is not None for x in (d_out, d_lse)]

        def results_of(*floats):
            return list(itertools.compress(run(at_once, (*floats, key_mask, sizes), names), given))

        _, pull = jax.vjp(results_of, *floats)
        return [x for x in pull(list(itertools.compress((d_out, d_lse), given))) if x is not None]

    whole = {"names": dict.fromkeys(letters)}
    call = functools.partial(Call, spatial=letters)
    floats = [axes for axes, x in zip(operands[:6], problem.arrays, strict=False) if x is not None]
    calls = (
        call(forward, operands, results + kept[1:], derivative=functools.partial(forward, **whole)),
        call(backward, (*operands, *kept, *results), tuple(floats), derivative=functools.partial(backward, **whole)),
    )

    @jax.custom_vjp
    def attend_apart(*arrays):
        return tuple(calls[0](*arrays)[:2])

    def attend_forward(*arrays):
        arrays = jax.tree.map(lambda x: x.value, arrays)
        out, lse, *statistics = calls[0](*arrays)
        return (out, lse), (*arrays, *((out, *statistics) if keeps else ()))

    def attend_backward(known, cotangents):
        cotangents = (None if isinstance(x, SymbolicZero) else x for x in cotangents)
        gradients = iter(calls[1](*known, *cotangents))
        return *(None if x is None else next(gradients) for x in known[:6]), None, None

    attend_apart.defvjp(attend_forward, attend_backward, symbolic_zeros=True)
    return tuple(join_heads(x, 1 + rank, group) for x in attend_apart(*apart(*problem.arrays)))


def _split_map(x, spacing: tuple[int, ...]):
    """Splits the map of keys into that of queries and the keys of each, where r > 1: [B, L, ...] -> [B, L / r, r, ...]."""
    if x is None:
        return None
    sides = [n for side, r in zip(x.shape[1:], spacing, strict=False) for n in ((side // r, r) if r > 1 else (side,))]
    return x.reshape(x.shape[0], *sides, *x.shape[1 + len(spacing) :])


def _join_map(x, spacing: tuple[int, ...]):
    """Undoes `_split_map`."""
    for axis, r in enumerate(spacing, start=1):
        if x is not None and r > 1:
            x = jax.lax.collapse(x, axis, axis + 2)
    return x
