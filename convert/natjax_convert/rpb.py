"""Relative positional biases of one kernel size from those of another, by bicubic interpolation as the authors did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

_A = -0.75  # the cubic kernel's parameter in torch.nn.functional.interpolate


def resize_rpb(rpb: Float[np.ndarray, "N H W"], kernel_size: int) -> Float[np.ndarray, "N H2 W2"]:
    """Resizes [N, 2 * k - 1, 2 * k - 1] to another kernel size, as torch's bicubic interpolation without aligned corners.

    Args:
        rpb: the biases.
        kernel_size: the new kernel size.
    """
    rows, columns = (_weights(n, 2 * kernel_size - 1) for n in rpb.shape[1:])
    return np.einsum("ih,nhw,jw->nij", rows, rpb.astype(np.float64), columns).astype(rpb.dtype)


def _weights(source: int, target: int) -> np.ndarray:
    """The interpolation along an axis as a matrix, [target, source]."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        distance = np.abs(position - (first + tap))
        near = (_A + 2) * distance**3 - (_A + 3) * distance**2 + 1
        far = _A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), weight)
    return matrix
