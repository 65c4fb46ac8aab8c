"""Masks within boxes, which a mask head learns from (arXiv 1703.06870, section 3), and its results as masks of whole images.

Both are bilinear interpolation, separable as in RoIAlign: two matrix products per mask.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from natjax.detection import boxes as geometry
from natjax.detection.roi_align import bin_weights, product

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

_BLOCK = 16  # masks that mask_targets has as numbers at a time


@functools.partial(jax.jit, static_argnames="size")
def mask_targets(
    masks: Bool[Array, "B G H W"], boxes: Float[Array, "B N 4"], indices: Int[Array, "B N"], size: int = 28
) -> Bool[Array, "B N S S"]:
    """Returns the parts of masks within boxes, as mmdetection's `mask_target` has them: the bins of which a half is covered.

    Args:
        masks: of an image's objects, in the boxes' pixels.
        boxes: proposals; clipped to the masks.
        indices: the mask of each box.
        size: S, bins of a box along height and along width.
    """
    images, objects, height, width = masks.shape
    cells = jnp.broadcast_to(jnp.arange(max(height, width), dtype=jnp.int32), (2, max(height, width)))
    flat_masks = jnp.reshape(masks, (-1, height, width))

    def covered(box_and_index: tuple[Array, Array]) -> Array:
        box, index = box_and_index
        box = geometry.clip(box, jnp.asarray([height, width], box.dtype))
        start = box[1::-1] - 0.5
        weights = bin_weights(start, box[:1:-1] - 0.5 - start, cells, (height, width), (size, size))
        mask = jax.lax.dynamic_index_in_dim(flat_masks, index, keepdims=False).astype(box.dtype)
        return product(product(weights[0, :, :height], mask), weights[1, :, :width].T)

    flat_indices = (indices + objects * jnp.arange(images, dtype=indices.dtype)[:, None]).reshape(-1)
    shares = jax.lax.map(covered, (boxes.reshape(-1, 4), flat_indices), batch_size=_BLOCK)
    return shares.reshape(*indices.shape, size, size) >= 0.5


def paste_masks(
    probabilities: Float[np.ndarray, "K S S"],
    boxes: Float[np.ndarray, "K 4"],
    size: tuple[int, int],
    threshold: float = 0.5,
) -> Bool[np.ndarray, "K h w"]:
    """Returns masks of whole images, as mmdetection pastes them on a CPU: where a mask, laid into its box, reaches a threshold.

    Outside of the mask's pixels the probability falls to zero; more than two pixels outside of the box it is zero.

    Args:
        probabilities: masks of boxes.
        boxes: in the image's pixels, float32.
        size: (height, width) of the image.
        threshold: the least probability of an object's pixel.
    """
    pasted = np.zeros((len(boxes), *size), bool)
    for mask, box, out in zip(probabilities, boxes, pasted, strict=True):
        part, (top, left) = paste_part(mask, box, size, threshold)
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return pasted


def paste_part(
    probabilities: Float[np.ndarray, "S S"], box: Float[np.ndarray, "4"], size: tuple[int, int], threshold: float = 0.5
) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int]]:
    """Returns of one mask of `paste_masks` the part at its box, and (top, left) of this part in the image."""
    (top, rows), (left, columns) = (
        _taps(box[axis], box[axis + 2], cells, bins)
        for axis, cells, bins in ((1, size[0], len(probabilities)), (0, size[1], len(probabilities)))
    )
    return rows @ probabilities.astype(np.float32) @ columns.T >= threshold, (top, left)


def _taps(start: np.float32, end: np.float32, pixels: int, bins: int) -> tuple[int, np.ndarray]:
    """Returns the first of an axis' pixels at a box, and the weights of a mask's bins in these pixels, [n, bins]."""
    first, last = (int(np.clip(at, 0, pixels)) for at in (np.floor(start) - 1, np.ceil(end) + 1))
    centers = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide="ignore", invalid="ignore"):  # a box of no size
        at = (centers - start) / (end - start) * 2 - 1
    at[np.isinf(at)] = 0
    at = (at + 1) * np.float32(bins / 2) - np.float32(0.5)
    hats = 1 - np.abs(at[:, None] - np.arange(bins, dtype=np.float32))
    return first, np.maximum(hats, 0)
