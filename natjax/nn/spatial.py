"""Operators along the sides of maps that are split over devices, where shardings are part of types (meshes of Explicit axes).

What depends on a few rows around its own (convolutions) or on none (linear layers) is computed on a batch of parts: each device's
part of a map, with a halo of its neighbours' rows, is an entry of a batch that is split. The operator itself then knows nothing
of parts, and JAX sums the gradients of its weights as for any batch. What is a matrix along an axis (interpolation, averages) is
each device's rows of the matrix times the part and its halo, or a sum over devices of their columns times their parts.

An axis whose result could not be split equally is gathered first.

Letters: B batch, C channels, P parts of a map.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from natjax_kernels.halo import exchange
from natjax_kernels.sharding import mesh_names, over_explicit_axes, shards, spec_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def check_sides(pixel_values: Float[Array, "B H W C"], stride: int) -> None:
    """Checks that images that are split over devices can be so at every level of a model.

    Args:
        pixel_values: the images.
        stride: pixels per token of the last level.

    Raises:
        ValueError: along a side that is split, the devices' parts are no multiple of the stride; or channels are split.
    """
    if shards(pixel_values, 3) > 1:
        raise ValueError(
            f"images may be split over devices by batch, height and width; got {PartitionSpec(*spec_of(pixel_values))}, which "
            "splits their channels."
        )
    for side, axis in (("height", 1), ("width", 2)):
        size, parts = pixel_values.shape[axis], shards(pixel_values, axis)
        if parts > 1 and size % (parts * stride):
            unit = parts * stride
            raise ValueError(
                f"the {side} of images that are split over {parts} devices along it must be a multiple of {parts} x {stride} = "
                f"{unit} pixels, so that the last level's map is split equally; got {size}. Pad images with zeros at the end, to "
                f"{-(-size // unit) * unit} pixels; with a pixel_mask of their own pixels they give what they give alone."
            )


def is_split(x: Array) -> bool:
    """Returns whether a map [B, *spatial, C] is split along a spatial axis."""
    return any(spec_of(x)[1:-1])


def gathered(x: Array, axes: Sequence[int]) -> Array:
    """Returns an array of which every device has all along these axes."""
    return laid_as(x, [None if axis in axes else names for axis, names in enumerate(spec_of(x))])


def gathered_unless(x: Float[Array, "B *spatial C"], strides: Sequence[int]) -> Float[Array, "B *spatial C"]:
    """Gathers a map along the axes whose parts are no multiple of an operator's strides."""
    return gathered(x, [axis for axis, stride in enumerate(strides, 1) if x.shape[axis] // shards(x, axis) % stride])


def laid_as(x: Array, spec: Sequence) -> Array:
    """Returns an array whose axes lie where `spec` says, on its own mesh."""
    return x if spec_of(x) == tuple(spec) else jax.sharding.reshard(x, _on_mesh_of(x, spec))


def over_parts(
    function: Callable[[Array], Array], x: Float[Array, "B *spatial C"], halos: Mapping[int, tuple[int, int]] = {}
) -> Float[Array, "B *sides D"]:
    """Returns what a function makes of a map, computed part by part.

    Args:
        function: of the parts of a map with their halos, [P * B, ..., C], to the parts of the result, [P * B, ..., D].
        x: the map.
        halos: by axis how many rows a part needs in front of its own and behind them, zeros beyond the map's borders.
    """
    *spec, channels = spec_of(x)

    def with_halos(part):
        for axis, (before, after) in halos.items():
            part = exchange(part, axis, before, after, spec[axis])
        return part

    along = tuple(name for names in spec for name in mesh_names(names))
    parts = over_explicit_axes(with_halos, [x], PartitionSpec(along, *(None,) * (len(spec) - 1), channels))
    result = function(parts)
    return over_explicit_axes(lambda part: part, [result], PartitionSpec(*spec, spec_of(result)[-1]))


def conv_over_parts(conv: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a convolution that takes maps that are split, too.

    Args:
        conv: as `jax.lax.conv_general_dilated`, without dilation, whose padding gives one output for every stride's tokens.
    """

    @functools.wraps(conv)
    def of_any(x, kernel, window_strides, padding, **options):
        x = gathered_unless(x, window_strides)
        if not is_split(x):
            return conv(x, kernel, window_strides, padding, **options)
        paddings, halos = list(padding), {}
        for axis, (size, stride, (before, _)) in enumerate(
            zip(kernel.shape[:-2], window_strides, padding, strict=True), 1
        ):
            if spec_of(x)[axis]:
                halos[axis], paddings[axis - 1] = (before, size - stride - before), (0, 0)
        return over_parts(lambda parts: conv(parts, kernel, window_strides, paddings, **options), x, halos)

    return of_any


def product_along(
    matrix: np.ndarray, x: Float[Array, "B H W C"], axis: int, names: Any = None
) -> Float[Array, "B _ _ C"]:
    """Returns the product of a matrix with every column, or every row, of a map.

    Args:
        matrix: [m, n], known when a model is traced.
        x: the map, of n values along `axis`, split along it or not.
        axis: 1 or 2.
        names: the mesh axes that the result is to lie along there; it lies along none where they do not divide m.
    """
    equation = {1: "ph,bhwc->bpwc", 2: "qw,bhwc->bhqc"}[axis]
    product = functools.partial(jnp.einsum, equation, precision=jax.lax.Precision.HIGHEST)
    spec, mesh = spec_of(x), jax.typeof(x).sharding.mesh
    parts = math.prod(mesh.shape[name] for name in mesh_names(names))
    names = names if len(matrix) % parts == 0 else None
    if not (spec[axis] or names):
        return product(matrix, x)
    result = *spec[:axis], names, *spec[axis + 1 :]
    if spec != result:  # each device has all rows of x, or a part of the sum
        x = gathered(x, [axis]) if names else x
        placed = jax.sharding.reshard(matrix, _on_mesh_of(x, (names, spec_of(x)[axis])))
        return product(placed, x, out_sharding=_on_mesh_of(x, result))
    bands, before, after = _bands(matrix, parts)
    placed = jax.sharding.reshard(bands, _on_mesh_of(x, (names,)))

    def of_part(band, part):
        return product(band, exchange(part, axis, before, after, mesh_names(names)))

    return over_explicit_axes(of_part, [placed, x], PartitionSpec(*spec))


def _bands(matrix: np.ndarray, parts: int) -> tuple[np.ndarray, int, int]:
    """Returns each part's rows of a matrix, [m, columns], at the columns of the part and of its halo, and what halo that is."""
    rows, columns = (side // parts for side in matrix.shape)
    by_part = matrix.reshape(parts, rows, -1)
    used = [np.flatnonzero(part.any(axis=0)) for part in by_part]
    before = max(0, *(i * columns - at[0] for i, at in enumerate(used) if at.size))
    after = max(0, *(at[-1] + 1 - (i + 1) * columns for i, at in enumerate(used) if at.size))
    padded = np.pad(by_part, ((0, 0), (0, 0), (before, after)))
    own = [part[:, i * columns : (i + 1) * columns + before + after] for i, part in enumerate(padded)]
    return np.concatenate(own), before, after


def _on_mesh_of(x: Array, spec: Sequence) -> NamedSharding:
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec))
