"""Maps of other sizes, as in PyTorch: bilinear interpolation and adaptive average pooling.

Both are linear along height and width, so each is two products with matrices that are known when a model is traced. Their
backward passes are products as well: no gathers, no scatters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def resize_bilinear(x: Float[Array, "B h w C"], size: Sequence[int]) -> Float[Array, "B H W C"]:
    """Interpolates maps linearly, as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` does.

    Pixel centres are at half-integers; beyond the outer ones, the value is theirs. A smaller map is sampled, not averaged.

    Args:
        x: maps of any float dtype; dtypes below float32 are computed in float32.
        size: (H, W) of the result.
    """
    height, width = size
    dtype = _compute_dtype(x)
    return _apply(x, *(_interpolation(n, m, dtype) for n, m in zip(x.shape[1:3], (height, width), strict=True)))


def adaptive_average_pool(x: Float[Array, "B h w C"], output_size: int) -> Float[Array, "B S S C"]:
    """Averages maps over S x S windows that cover them, as `torch.nn.functional.adaptive_avg_pool2d` does.

    Window i of an axis of n pixels goes from floor(i n / S) to ceil((i + 1) n / S); a map smaller than S repeats pixels.

    Args:
        x: maps of any float dtype; dtypes below float32 are computed in float32.
        output_size: S.
    """
    dtype = _compute_dtype(x)
    return _apply(x, *(_averages(n, output_size, dtype) for n in x.shape[1:3]))


def _compute_dtype(x: Array) -> np.dtype:
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def _apply(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Returns rows x columns^T of every channel, the axis that grows less first."""
    y = x.astype(rows.dtype)
    along_rows = functools.partial(_product, "ph,bhwc->bpwc", rows)
    along_columns = functools.partial(_product, "qw,bhwc->bhqc", columns)
    steps = [along_rows, along_columns]
    if rows.shape[0] * columns.shape[1] > columns.shape[0] * rows.shape[1]:
        steps.reverse()
    for step in steps:
        y = step(y)
    return y.astype(x.dtype)


def _product(equation: str, matrix: np.ndarray, x: Array) -> Array:
    if matrix.shape[0] == matrix.shape[1] and (matrix == np.eye(len(matrix))).all():
        return x
    return jnp.einsum(equation, matrix, x, precision=jax.lax.Precision.HIGHEST)


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


@functools.lru_cache(maxsize=64)
def _averages(n: int, m: int, dtype: np.dtype) -> np.ndarray:
    """Returns the [m, n] weights of n values in the averages of m windows."""
    weights = np.zeros((m, n), dtype)
    for i in range(m):
        start, end = i * n // m, -(-(i + 1) * n // m)
        weights[i, start:end] = 1 / (end - start)
    return weights
