"""What tiles of a step know of their pairs: the bias, or that a key is no neighbour; and the gradient of the bias.

Where classes are few, one table of all of them is made for a call, and every tile takes the part of its class. Where that table
would be large, as of windows of thousands of tokens, whose tiles all differ, the tiles of a step make theirs, and the gradient
is summed to that of the bias within the step.

Letters: M tiles, B batch, N heads, T queries per tile, S keys per tile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from natjax_kernels._compat import vary, varying_axes
from natjax_kernels.axis import AxisPlan, Pairs
from natjax_kernels.bias import bias_gradient, bias_table, neighbour_table, numpy_of, table_shape
from natjax_kernels.grids import join_group, split_group
from natjax_kernels.plan import tile_classes
from natjax_kernels.sharding import laid_out, spec_of
from natjax_kernels.window import Window
from natjax_kernels.xla.tiles import take
from natjax_kernels.xla.tiling import on_tpu

_LARGEST_TABLE = 2**21  # pairs of all classes, for one head


def made_by_steps(axes: tuple[AxisPlan, ...]) -> bool:
    """Returns whether the tiles of a step make their own table."""
    return math.prod(table_shape(_pairs(axes))) > _LARGEST_TABLE


def table_of(axes: tuple[AxisPlan, ...], rpb, dtype):
    """Returns what `bias_of` looks up: the table of all classes, or the bias where steps make theirs."""
    return rpb if made_by_steps(axes) else bias_table(_pairs(axes), rpb, dtype)


def bias_of(table, axes: tuple[AxisPlan, ...], groups: int, dtype) -> Callable:
    """Returns a function of `rows` and a rank: the bias of their pairs, [M, N or 1, T, S], or of rank 5, [M, 1, N or 1, T, S]."""
    make = functools.partial(bias_table, rpb=table, dtype=dtype) if made_by_steps(axes) else lambda _: table
    return _of_tiles(make, axes, groups)


def neighbours_of(axes: tuple[AxisPlan, ...], groups: int) -> Callable:
    """As `bias_of`, which keys are neighbours of which queries."""
    return _of_tiles(neighbour_table, axes, groups)


def _of_tiles(make: Callable, axes: tuple[AxisPlan, ...], groups: int) -> Callable:
    made = made_by_steps(axes)
    table = None if made else by_keys(join_group(make(_pairs(axes)), groups))

    def of_tiles(rows: dict, rank: int):
        own = join_group(make(_at_hand(rows, axes)), groups) if made else by_keys(take(table, _classes(rows, axes), 0))
        return own if rank == 4 else own[:, None]

    return of_tiles


def by_keys(x):
    """Exchanges queries and keys on a TPU, where scores lie so: a table of all classes is brought there once, not in steps."""
    return x.swapaxes(-1, -2) if on_tpu() else x


def no_gradient(table, axes: tuple[AxisPlan, ...], groups: int, dtype):
    """Returns zeros to add gradients to: of all classes' table, or of the bias where steps make theirs."""
    table = table.astype(dtype) if made_by_steps(axes) else join_group(table, groups)
    return vary(jnp.zeros_like(table), varying_axes(table))


def add_gradient(gradient, d_logits, rows: dict, axes: tuple[AxisPlan, ...], groups: int, window: Window):
    """Adds what flows to the bias of the tiles of a step, [M, B, N, T, S] (or without B)."""
    if not made_by_steps(axes):
        return gradient + _sum_by_class(d_logits, _classes(rows, axes), len(gradient))
    of_tiles = d_logits if d_logits.ndim == 4 else jnp.sum(d_logits, axis=1)
    return gradient + bias_gradient(split_group(of_tiles, groups), _at_hand(rows, axes), window)


def gradient_of_bias(gradient, axes: tuple[AxisPlan, ...], groups: int, window: Window):
    """Returns the gradient of the bias, of what has been summed over all steps."""
    return gradient if made_by_steps(axes) else bias_gradient(split_group(gradient, groups), _pairs(axes), window)


def _pairs(axes: tuple[AxisPlan, ...]) -> list[Pairs]:
    return [axis.pairs for axis in axes]


def _at_hand(rows: dict, axes: tuple[AxisPlan, ...]) -> list[Pairs]:
    """The pairs of the tiles of a step, whose product over the axes has them in their order."""
    classes = rows["classes"], *(axis.classes for axis in axes[1:])
    return [axis.pairs.take(c, numpy_of(c)) for axis, c in zip(axes, classes, strict=True)]


def _classes(rows: dict, axes: tuple[AxisPlan, ...]):
    """The class of every tile of some rows, [M]."""
    others = math.prod(len(axis.pairs) for axis in axes[1:])
    index = rows["classes"][:, None] * others + tile_classes(axes[1:])
    return index.reshape(-1)


def _sum_by_class(x, classes, count: int):
    """Sums batch and tiles of the same class: [M, B, N, T, S] (or without B) -> [classes, N, T, S].

    One product with zeros and ones, and no sum before it: at some shapes XLA sums over a batch 30 times slower (jax 0.10, CPU).
    """
    x = x[:, None] if x.ndim == 4 else x
    ours = jnp.asarray(classes == np.arange(count, dtype=np.int32)[:, None], x.dtype)[..., None]
    ours = jnp.broadcast_to(ours, (*ours.shape[:2], x.shape[1]))
    sharded = spec_of(x)  # along Explicit axes, which want to be told of the sum over them
    out = laid_out(x, (None, sharded[2], None, None)) if any(sharded) else None
    return jnp.einsum("cmb,mbnts->cnts", ours, x, out_sharding=out)
