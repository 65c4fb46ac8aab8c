"""Tiles cut out and put back by slices, for TPUs, where XLA gathers and scatters token after token.

The queries and the keys of a tile are a run each: tokens that are equally far apart. Where few runs are known when the program is
traced, each is a slice of its own; else a loop goes over them.

Letters: L tokens along an axis, S slots of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels._compat import vary, varying_axes
from natjax_kernels.problem import accumulator

_FEW = 16  # runs


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """The tokens of tiles along one axis.

    Attributes:
        positions: [tiles, S] of every slot; what is no token of the tile has that of some token.
        apart: positions between neighbouring slots.
        ring: whether runs go on at the start of the axis.
        length: positions, L.
        last: the last position in which a run begins.
    """

    positions: Any
    apart: int
    ring: bool
    length: int
    last: int

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles and slots."""
        return self.positions.shape

    @property
    def first(self) -> Any:
        """The position of slot 0 of every tile."""
        return self.positions[:, 0]

    @property
    def reach(self) -> int:
        """Positions from a run's first token to its last."""
        return (self.shape[1] - 1) * self.apart + 1

    @property
    def padding(self) -> int:
        """Positions of runs past the end of the axis."""
        return max(0, self.last + self.reach - self.length)

    @property
    def unrolled(self) -> bool:
        """Whether each run is a slice of its own."""
        return isinstance(self.positions, np.ndarray) and len(self.positions) <= _FEW


def cut(x, runs: Runs, axis: int):
    """Cuts an axis into runs: [..., L, ...] -> [tiles, ..., S, ...]; past the end of the axis are zeros."""
    if runs.padding:
        widths = [(0, runs.padding if a == axis else 0) for a in range(x.ndim)]
        x = jnp.pad(x, widths, mode="wrap" if runs.ring else "constant")
    if runs.unrolled:
        ends = [(int(first), int(first) + runs.reach) for first in runs.first]
        return jnp.stack([jax.lax.slice_in_dim(x, *of_run, runs.apart, axis) for of_run in ends])

    def run(first):
        x_of_run = jax.lax.dynamic_slice_in_dim(x, first, runs.reach, axis)
        return jax.lax.slice_in_dim(x_of_run, 0, runs.reach, runs.apart, axis)

    return jax.vmap(run)(jnp.asarray(runs.first, jnp.int32))


def no_sums(like, runs: Runs, axis: int):
    """Returns zeros for `lay` to add to, of the accumulator's dtype: like an array, but of all positions along an axis."""
    zeros = jnp.zeros_like(jax.lax.slice_in_dim(like, 0, 1, axis=axis), accumulator(like))
    shape = *like.shape[:axis], runs.length + runs.padding, *like.shape[axis + 1 :]
    return vary(jnp.broadcast_to(zeros, shape), varying_axes(like))


def lay(sums, x, runs: Runs, axis: int, tiles: int = 0):
    """Adds runs where they come from, [tiles, ..., S, ...], to sums [..., L, ...].

    `axis` is that of L; `tiles` is the one of x that its tiles are along, which need not be the first.
    """
    spread = [(0, 0, runs.apart - 1 if a == axis else 0) for a in range(sums.ndim)]
    if runs.unrolled:
        laid = [sums]
        for tile, first in enumerate(runs.first):
            of_run = jax.lax.index_in_dim(x, tile, tiles, keepdims=False)
            spread[axis] = int(first), sums.shape[axis] - int(first) - runs.reach, runs.apart - 1
            laid.append(jax.lax.pad(of_run.astype(sums.dtype), np.zeros((), sums.dtype), spread))
        return functools.reduce(operator.add, laid)
    first = jnp.asarray(runs.first, jnp.int32)

    def add(tile, sums):
        of_run = jax.lax.dynamic_index_in_dim(x, tile, tiles, keepdims=False).astype(sums.dtype)
        of_run = jax.lax.pad(of_run, np.zeros((), sums.dtype), spread)
        held = jax.lax.dynamic_slice_in_dim(sums, first[tile], runs.reach, axis)
        return jax.lax.dynamic_update_slice_in_dim(sums, held + of_run, first[tile], axis)

    return jax.lax.fori_loop(0, x.shape[tiles], add, sums)


def within(sums, runs: Runs, axis: int):
    """Returns sums without what lies past the end of the axis, which on a ring is its start: [..., L, ...]."""
    if not runs.padding:
        return sums
    if runs.ring:
        beyond = -sums.shape[axis] % runs.length
        sums = jnp.pad(sums, [(0, beyond if a == axis else 0) for a in range(sums.ndim)])  # to whole rounds
        rounds = sums.reshape(*sums.shape[:axis], -1, runs.length, *sums.shape[axis + 1 :])
        return jnp.sum(rounds, axis=axis)
    return jax.lax.slice_in_dim(sums, 0, runs.length, axis=axis)


def interleaved(x, positions: np.ndarray, axis: int):
    """Takes positions along an axis of which every m-th follow one another, m runs of about the same length."""
    m = next(m for m in range(1, len(positions) + 1) if all((np.diff(positions[g::m]) == 1).all() for g in range(m)))
    longest = -(-len(positions) // m)
    x = jnp.pad(x, [(0, longest if a == axis else 0) for a in range(x.ndim)]) if m > 1 else x
    runs = [jax.lax.slice_in_dim(x, positions[g], positions[g] + longest, axis=axis) for g in range(m)]
    return jax.lax.slice_in_dim(
        jax.lax.collapse(jnp.stack(runs, axis + 1), axis, axis + 2), 0, len(positions), axis=axis
    )
