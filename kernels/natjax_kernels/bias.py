"""From relative positional bias to tables of tiles, and from gradients of tables back (NAT, arXiv 2204.07143, section 3.1).

A table holds, for every class of tiles, the bias of every (query, key) of a tile, and a strongly negative number where the key is
no neighbour. Classes are the products of those of the axes, in row-major order; along an axis `Pairs` (`natjax_kernels.axis`)
or an array [classes, T, S], as of `Pairs.relative`, says which entry of the bias a pair takes. Neither direction scatters.

Letters: N heads, T slots of a tile, S slots of the other side's halo, k kernel size.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax_kernels.axis import Pairs, is_large
from natjax_kernels.window import Window

# Of logits far below that; not -inf: XLA's tiles multiply tables, and a tile's padding must give weight 0, never NaN.
MASKED = -1e38


def bias_table(
    relative: Sequence[Pairs | np.ndarray], rpb, dtype, masked: float = MASKED, padded: tuple[int, int] | None = None
):
    """Returns the bias of every (query, key) of every class, [classes, N or 1, T, S], `masked` where the key is no neighbour.

    T and S are as many slots as the axes have, or `padded` to more, all of them masked.
    """
    # The barriers, or XLA folds the rows of all tiles into one huge constant, or looks up every entry again for each of them.
    if rpb is None:
        table = jnp.where(_pad(_neighbours(relative), padded, False), jnp.zeros((), dtype), jnp.asarray(masked, dtype))
        return jax.lax.optimization_barrier(table[:, None])
    sides, end = rpb.shape[1:], math.prod(rpb.shape[1:])
    strides = [math.prod(sides[a + 1 :]) for a in range(len(sides))]
    places = _spread([_places(axis, stride, end) for axis, stride in zip(relative, strides, strict=True)])
    entries = _pad(functools.reduce(operator.add, places).reshape(table_shape(relative)), padded, end)
    flat = jax.lax.collapse(rpb.astype(dtype), 1)
    flat = jnp.pad(flat, ((0, 0), (0, 1)), constant_values=masked)  # one more, for what lies at or past the end
    return jax.lax.optimization_barrier(jnp.take(flat, entries, axis=1, mode="clip").swapaxes(0, 1))


def neighbour_table(relative: Sequence[Pairs]):
    """Returns which key is a neighbour of which query, of every class, [classes, 1, T, S]."""
    return jax.lax.optimization_barrier(_neighbours(relative)[:, None])


def _neighbours(relative: Sequence[Pairs | np.ndarray]):
    return jnp.reshape(
        functools.reduce(operator.and_, _spread([_seen(axis) for axis in relative])), table_shape(relative)
    )


def _seen(axis: Pairs | np.ndarray):
    if isinstance(axis, np.ndarray):
        return axis >= 0
    pairs, xp = _within_program(axis)
    return pairs.seen(xp)


def _places(axis: Pairs | np.ndarray, stride: int, end: int):
    """Returns where the entries of pairs begin in the flat bias, [classes, T, S] int32; `end` where the key is no neighbour."""
    xp = np
    if isinstance(axis, Pairs):
        pairs, xp = _within_program(axis)
        axis = pairs.relative(xp)
    return xp.where(axis < 0, end, axis * stride).astype(np.int32)


def _within_program(pairs: Pairs) -> tuple[Pairs, Any]:
    """Returns what makes arrays [classes, T, S] of pairs: NumPy of small ones, which become constants, else the program."""
    if isinstance(pairs.first, np.ndarray) and not is_large(pairs.shape):
        return pairs, np
    return computed(pairs), jnp


def computed(pairs: Pairs) -> Pairs:
    """Returns pairs from which a program computes arrays: without the barriers XLA would, and make them constants."""
    return pairs.map(lambda x: jax.lax.optimization_barrier(jnp.asarray(x)))


def numpy_of(x) -> Any:
    """Returns NumPy for its own arrays, which are known when a program is traced, else JAX's."""
    return np if isinstance(x, np.ndarray) else jnp


def _pad(x, padded: tuple[int, int] | None, value):
    """Pads [classes, T, S] to more slots: before the program runs where it is NumPy's, as places of a bias are."""
    if padded is None:
        return x
    more = [(0, wanted - got) for wanted, got in zip(padded, x.shape[1:], strict=True)]
    return numpy_of(x).pad(x, [(0, 0), *more], constant_values=value)


def _spread(parts: list) -> list:
    """Reshapes what is known of every axis, [classes, T, S], for the product of all: to [classes, T, S of every axis]."""
    rank, large = len(parts), is_large(table_shape(parts))
    spread = []
    for a, part in enumerate(parts):
        shape = [1] * (3 * rank)
        shape[a], shape[rank + a], shape[2 * rank + a] = part.shape
        part = part.reshape(shape)
        constant = large and isinstance(part, np.ndarray)
        spread.append(jax.lax.optimization_barrier(jnp.asarray(part)) if constant else part)
    return spread


def bias_gradient(table, relative: Sequence[Pairs], window: Window):
    """Sums a table's gradient, [classes, N, T, S], 0 where the key is no neighbour, into [N, 2k - 1, ...].

    A pair's entry of the bias grows with the key, one by one, and falls with the query, by as many keys as lie between
    neighbouring queries: along an axis all pairs on a diagonal of a tile share one. Summed over, they are as few as the entries,
    and a static gather sums classes.
    """
    rank, heads = len(relative), table.shape[1]
    classes, queries, keys = zip(*(axis.shape for axis in relative), strict=True)
    # One axis at a time, which is what JAX can follow where heads are explicitly sharded.
    table = table.reshape(*classes, heads, *table.shape[2:])
    table = table.reshape(*classes, heads, *queries, table.shape[-1])
    table = table.reshape(*classes, heads, *queries, *keys)
    for axis, of_axis in zip(relative, window.axes(), strict=True):
        step = of_axis.in_group().spacing
        table = jnp.moveaxis(table, (rank + 1, 2 * rank + 1), (1, 2))  # the first class, query and key axis left
        table = _sum_diagonals(table, step)  # [classes, diagonals, ...]
        places = jnp.asarray(_places_of_entries(axis, of_axis.kernel, step), jnp.int32)
        table = jnp.take(jax.lax.collapse(table, 0, 2), places, axis=0, mode="fill", fill_value=0)
        table = jnp.moveaxis(jnp.sum(table, axis=0), 0, -1)
        rank -= 1
    return table


def _sum_diagonals(x, step: int):
    """Sums x, [n, T, S, ...], over pairs of equal S - step * T: [n, step * (T - 1) + S, ...]."""
    n, queries, keys, *rest = x.shape
    x = jnp.pad(jnp.flip(x, 1), ((0, 0), (0, 0), (0, step * queries), *((0, 0),) * len(rest)))
    diagonals = step * (queries - 1) + keys
    x = jax.lax.slice_in_dim(jax.lax.collapse(x, 1, 3), 0, queries * diagonals, axis=1)
    return jnp.sum(x.reshape(n, queries, diagonals, *rest), axis=1)  # every row is `step` further to the right


def _places_of_entries(pairs: Pairs, kernel: int, step: int):
    """Returns which of all diagonals, [classes * diagonals], is of an entry, [classes, 2k - 1]; past the end if none."""
    classes, queries, keys = pairs.shape
    xp = numpy_of(pairs.entry)
    diagonals = step * (queries - 1) + keys
    first = pairs.entry[:, :1] - step * (queries - 1)  # entry of the first diagonal, of the last query's slot 0
    diagonal = xp.arange(2 * kernel - 1, dtype=np.int32) - first
    return xp.where(
        (diagonal >= 0) & (diagonal < diagonals),
        xp.arange(classes, dtype=np.int32)[:, None] * diagonals + diagonal,
        classes * diagonals,
    )


def table_shape(relative: Sequence) -> tuple[int, int, int]:
    """Returns the number of classes, of query slots and of key slots of the product of all axes."""
    classes, queries, keys = zip(*(axis.shape for axis in relative), strict=True)
    return math.prod(classes), math.prod(queries), math.prod(keys)


def sum_by_segment(x, segments: np.ndarray):
    """Sums the entries of x, [n, ...], of every segment: [segments, ...], where `segments` says to which one an entry belongs.

    Static gathers add eight entries at a time until one is left of each: XLA's scatter has no fixed order on a GPU, and the zeros
    and ones of a matrix product would be a constant of n times segments.
    """
    counts = np.bincount(segments)
    width = min(counts.max(), 8)
    order = np.argsort(segments, kind="stable")
    segments = segments[order]
    rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[segments]  # within the segment
    first = rank % width == 0
    addends = np.full((np.count_nonzero(first), width), len(order))  # beyond the end is 0
    addends[np.cumsum(first) - 1, rank % width] = order
    taken = (jnp.take(x, jnp.asarray(column, jnp.int32), axis=0, mode="fill", fill_value=0) for column in addends.T)
    x = functools.reduce(jnp.add, taken)
    return x if counts.max() == width else sum_by_segment(x, segments[first])
