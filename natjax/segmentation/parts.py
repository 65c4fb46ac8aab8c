"""Classes of pixels where logits are split over devices by their rows: each device settles those of its own part of the image.

A device needs a few rows of logits beside its own: pixels between two logits are of both, and parts of the image are as large as
the parts of its padded array, while the image ends before that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from natjax.nn.spatial import gathered
from natjax.segmentation.axes import Chunks, Taps
from natjax_kernels.halo import exchange
from natjax_kernels.sharding import over_explicit_axes, shards, spec_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt


class Padded(NamedTuple):
    """Logits of images whose arrays were padded at the bottom and right, so that devices have equal parts of them.

    Attributes:
        logits: [B, h, w, L], whole or split by rows along Explicit axes of a mesh.
        sides: how many rows and columns of them are the images'.
    """

    logits: Float[Array, "B h w L"]
    sides: tuple[int, int]


def classes_by_part(
    classes: Callable[..., Array],
    logits: Sequence[Float[Array, "B _ _ L"]],
    chunks: Sequence[Chunks],
    columns: Sequence[Taps],
    dtype: Any,
) -> UInt[Array, "B rows W"]:
    """Returns `classes(logits, chunks, columns, dtype)`, split by rows: every device computes its part of the chunks.

    Args:
        classes: jitted.
        logits: of every view, split by rows over the same devices.
        chunks: of every view, as many, a multiple of the number of devices.
        columns: of every view.
        dtype: of the result.
    """
    own, halos = [], []
    for x, (source, matrix) in zip(logits, chunks, strict=True):
        parts = shards(x, 1)
        length = x.shape[1] // parts
        first = np.repeat(np.arange(parts) * length, len(source) // parts)[:, None]
        before = max(0, int((first - source).max()))
        halos.append((before, max(0, int((source - first).max()) + 1 - length)))
        own.append(Chunks(source - first + before, matrix))
    return _by_part(tuple(logits), tuple(own), tuple(columns), classes, dtype, tuple(halos))


@functools.partial(jax.jit, static_argnames=("classes", "dtype", "halos"))
def _by_part(logits, chunks, columns, classes, dtype, halos):
    names, mesh = spec_of(logits[0])[1], jax.typeof(logits[0]).sharding.mesh

    def placed(tree, *spec):
        return jax.tree.map(lambda x: jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec))), tree)

    logits = tuple(gathered(x, [2]) for x in logits)
    arrays, tree = jax.tree.flatten((logits, placed(chunks, names), placed(columns)))

    def of_device(*arrays):
        logits, chunks, columns = jax.tree.unflatten(tree, arrays)
        logits = tuple(exchange(x, 1, *halo, names) for x, halo in zip(logits, halos, strict=True))
        return classes(logits, chunks, columns, dtype)

    return over_explicit_axes(of_device, arrays, PartitionSpec(None, names), all_axes=True)
