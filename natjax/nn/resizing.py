"""Maps of other sizes, as in PyTorch: interpolation, adaptive average pooling, and convolution of a feature pyramid.

Bilinear interpolation and pooling are linear along height and width, so each is two products with matrices that are known when
a model is traced. Their backward passes are products as well: no gathers, no scatters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from natjax.nn.spatial import conv_over_parts, is_split, over_parts, product_along
from natjax.nn.xla import conv_general_dilated, flat_dot_general
from natjax_kernels.sharding import laid_out, reshape, spec_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float


Side = Sequence[int]  # (height, width)


def resize_bilinear(
    x: Float[Array, "B h w C"],
    size: Side,
    split: Sequence | None = None,
    own: tuple[Side, Side] | None = None,
) -> Float[Array, "B H W C"]:
    """Interpolates maps linearly, as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` does.

    Pixel centres are at half-integers; beyond the outer ones, the value is theirs. A smaller map is sampled, not averaged.

    Args:
        x: maps of any float dtype; dtypes below float32 are computed in float32.
        size: (H, W) of the result.
        split: the mesh axes that the result's height and width lie along, where they divide them; those of x by default.
        own: of maps that are padded with zeros at their ends, the sizes of x and of the result without padding.
    """
    before, after = own or (x.shape[1:3], size)
    dtype, matrices = _compute_dtype(x), []
    for n, m, side, new_side in zip(before, after, x.shape[1:3], size, strict=True):
        kept = (n, side) == (m, new_side)
        matrices.append(np.eye(side, dtype=dtype) if kept else _padded(_interpolation(n, m, dtype), (new_side, side)))
    return _apply(x, *matrices, split=spec_of(x)[1:3] if split is None else split)


def upsample_nearest(x: Float[Array, "B h w C"], size: Sequence[int]) -> Float[Array, "B H W C"]:
    """Doubles maps by repeating pixels, as `torch.nn.functional.interpolate(mode="nearest")` does.

    Pixel i of n, of 2 n or 2 n - 1, is pixel floor(i n / size) = floor(i / 2) of the smaller map.

    Args:
        x: maps.
        size: (H, W) of the result, each side twice that of x or one less.
    """
    if is_split(x):
        return over_parts(lambda parts: upsample_nearest(parts, size), x)
    height, width = size
    return jnp.repeat(jnp.repeat(x, 2, axis=1)[:, :height], 2, axis=2)[:, :, :width]


def adaptive_average_pool(
    x: Float[Array, "B h w C"], output_size: int, own: Side | None = None
) -> Float[Array, "B S S C"]:
    """Averages maps over S x S windows that cover them, as `torch.nn.functional.adaptive_avg_pool2d` does.

    Window i of an axis of n pixels goes from floor(i n / S) to ceil((i + 1) n / S); a map smaller than S repeats pixels.

    Args:
        x: maps of any float dtype; dtypes below float32 are computed in float32.
        output_size: S.
        own: size of the maps without padding at their ends, where they have some.
    """
    matrices = (
        _padded(_averages(n, output_size, _compute_dtype(x)), (output_size, side))
        for n, side in zip(own or x.shape[1:3], x.shape[1:3], strict=True)
    )
    return _apply(x, *matrices, split=(None, None))


def conv3x3_of_pyramid(
    maps: Sequence[Float[Array, "B _ _ C"]], kernel: Float[Array, "3 3 NC D"], own: Sequence[Side] | None = None
) -> Float[Array, "B H W D"]:
    """Convolves maps that are interpolated to the size of the first one and joined along their channels.

    Padded with zeros by one, as large as the first map. On a CPU a smaller map is multiplied by the kernel before it is
    interpolated: both are linear, and there are fewer pixels then. That of UPerNet's four maps takes 0.4 times the products.

    Args:
        maps: N feature maps, all of C channels, the largest first.
        kernel: of the convolution.
        own: sizes of the maps without padding, which is 0, where they have some.
    """
    height, width = maps[0].shape[1:3]
    if jax.default_backend() != "cpu" or is_split(maps[0]) or own:  # where it is not measured
        pairs = [None] * len(maps) if own is None else [(size, own[0]) for size in own]
        resized = [
            resize_bilinear(x, (height, width), spec_of(maps[0])[1:3], pair)
            for x, pair in zip(maps, pairs, strict=True)
        ]
        return _conv3x3(jnp.concatenate(resized, axis=-1), kernel)
    kernels = jnp.split(kernel, len(maps), axis=2)
    first, *others = (_conv3x3_of_resized(*each, (height, width)) for each in zip(maps, kernels, strict=True))
    return sum(others, first)


def _conv3x3(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    conv = conv_over_parts(conv_general_dilated)
    return conv(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout)


def _conv3x3_of_resized(x: Array, kernel: Array, size: tuple[int, int]) -> Array:
    """Convolves an interpolated map, in the order that takes fewer products."""
    (_, h, w, c), (height, width), d = x.shape, size, kernel.shape[-1]
    first_resized = 9 * height * width * c * d
    first_multiplied = 9 * h * w * c * d + 9 * height * h * w * d + 3 * height * width * w * d
    if (h, w) == size or first_resized <= first_multiplied:
        return _conv3x3(resize_bilinear(x, size), kernel)
    batch, dtype = spec_of(x)[0], _compute_dtype(x)
    rows, columns = (_neighbors(_interpolation(n, m, dtype)) for n, m in ((h, height), (w, width)))
    taps = reshape(kernel.transpose(2, 0, 1, 3), (c, 9 * d), (None, None))
    y = flat_dot_general(x.swapaxes(1, 2), taps, (((3,), (0,)), ((), ())), preferred_element_type=dtype)
    y = reshape(y, (x.shape[0], w, 3 * h, 3 * d), (batch, None, None, None))  # [B, w, (h, tap), (tap, D)]
    y = _batched_product(rows, y)
    y = reshape(y.swapaxes(1, 2), (x.shape[0], height, 3 * w, d), (batch, None, None, None))  # [B, H, (w, tap), D]
    return _batched_product(columns, y).astype(x.dtype)


def _batched_product(matrix: np.ndarray, x: Array) -> Array:
    """Returns the matrix times every [n, E] of [B, N, n, E]: B x N products whose results lie as they are to be."""
    shape = (*x.shape[:2], *matrix.shape)
    sharding = laid_out(x, (*spec_of(x)[:2], None, None))
    matrices = jax.lax.broadcast_in_dim(matrix, shape, (2, 3), out_sharding=sharding)
    precision = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(matrices, x, (((3,), (2,)), ((0, 1), (0, 1))), precision=precision)


def _neighbors(weights: np.ndarray) -> np.ndarray:
    """Returns, of [m, n] weights, those of the pixels before, at and after each of m, zeros beyond them: [m, n * 3]."""
    padded = np.pad(weights, ((1, 1), (0, 0)))
    return np.stack([padded[tap : tap + len(weights)] for tap in range(3)], axis=-1).reshape(len(weights), -1)


def _compute_dtype(x: Array) -> np.dtype:
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def _apply(x: Array, rows: np.ndarray, columns: np.ndarray, split: Sequence) -> Array:
    """Returns rows x columns^T of every channel, the axis that grows less first."""
    y = x.astype(rows.dtype)
    steps = [(rows, 1, split[0]), (columns, 2, split[1])]
    if rows.shape[0] * columns.shape[1] > columns.shape[0] * rows.shape[1]:
        steps.reverse()
    for matrix, axis, names in steps:
        same = (
            matrix.shape[0] == matrix.shape[1] and spec_of(y)[axis] == names and (matrix == np.eye(len(matrix))).all()
        )
        y = y if same else product_along(matrix, y, axis, names)
    return y.astype(x.dtype)


def bilinear_taps(n: int, m: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Returns which two of n values each of m interpolated ones is of, [m, 2], and with which weights, [m, 2].

    Computed in `dtype`, as PyTorch does.
    """
    number = np.dtype(dtype).type
    at = np.maximum((np.arange(m, dtype=dtype) + number(0.5)) * (number(n) / number(m)) - number(0.5), 0)
    first = np.minimum(at.astype(int), n - 1)
    after = at - first
    return np.stack([first, np.minimum(first + 1, n - 1)], 1), np.stack([1 - after, after], 1).astype(dtype)


@functools.lru_cache(maxsize=64)
def _interpolation(n: int, m: int, dtype: np.dtype) -> np.ndarray:
    """Returns the [m, n] weights of n values in m interpolated ones."""
    index, weight = bilinear_taps(n, m, dtype)
    weights = np.zeros((m, n), dtype)
    weights[np.arange(m), index[:, 0]] = weight[:, 0]
    weights[np.arange(m), index[:, 1]] += weight[:, 1]
    return weights


def _padded(matrix: np.ndarray, shape: Side) -> np.ndarray:
    """Returns a matrix with zeros up to a shape."""
    return np.pad(matrix, [(0, side - n) for side, n in zip(shape, matrix.shape, strict=True)])


@functools.lru_cache(maxsize=64)
def _averages(n: int, m: int, dtype: np.dtype) -> np.ndarray:
    """Returns the [m, n] weights of n values in the averages of m windows."""
    weights = np.zeros((m, n), dtype)
    for i in range(m):
        start, end = i * n // m, -(-(i + 1) * n // m)
        weights[i, start:end] = 1 / (end - start)
    return weights
