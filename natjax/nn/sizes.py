"""Batches of images of mixed sizes: each image is at the top left of its array, and gives what it gives alone.

Letters: B batch, H W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natjax_kernels.checks import as_array
from natjax_kernels.sizes import mask_of_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Int


def sizes_of_mask(pixel_mask: Any, shape: tuple[int, ...]) -> Int[Array, "B 2"]:
    """Returns the height and width of every image, from a mask of its pixels.

    Args:
        pixel_mask: [B, H, W] bool or integers, not 0 for pixels of the image, which are a rectangle at the top left.
        shape: of the pixel values, [B, H, W, C].

    Raises:
        TypeError: pixel_mask is no array.
        ValueError: it does not fit the pixel values, or (where it is not traced) marks anything but such a rectangle.
    """
    mask = as_array("pixel_mask", pixel_mask)
    if mask.shape != shape[:3] or not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise ValueError(
            f"pixel_mask must be bool or integers [batch, height, width] of the images, here {shape[:3]}; "
            f"got {mask.dtype} of shape {mask.shape}."
        )
    if isinstance(mask, jax.core.Tracer):
        return _sizes_of_rectangles(jnp, mask.astype(bool))
    mask = np.asarray(mask).astype(bool)  # NumPy's, as within jit all that JAX computes is traced
    sizes = _sizes_of_rectangles(np, mask)
    rectangles = [np.arange(n) < sizes[:, a, None] for a, n in enumerate(mask.shape[1:])]
    wrong = np.flatnonzero((rectangles[0][:, :, None] & rectangles[1][:, None] != mask).any(axis=(1, 2)))
    empty = np.flatnonzero(sizes.min(axis=1) == 0)
    if wrong.size or empty.size:
        what = "has no pixel" if empty.size else "is no rectangle at the top left"
        raise ValueError(
            f"pixel_mask must mark a rectangle of pixels at the top left of every image; that of image "
            f"{(empty if empty.size else wrong)[0]} {what}. Move images there and pad them at the bottom and right."
        )
    return jnp.asarray(sizes)


def _sizes_of_rectangles(numpy: Any, mask: Any) -> Any:
    return numpy.stack([numpy.sum(numpy.any(mask, axis=axis), axis=1, dtype=np.int32) for axis in (2, 1)], axis=1)


def alike(size: Sequence[int], batch: int) -> Int[Array, "B 2"]:
    """Returns the sizes of images that all have one height and width."""
    return jnp.broadcast_to(jnp.asarray(size, jnp.int32), (batch, 2))


def mask_of_size(size: Sequence[int], pixel_values: Array) -> Bool[Array, "B H W"]:
    """Returns the mask of images [B, H, W, C] that all have one height and width, which lies as they do."""
    inside = mask_of_sizes(alike(size, len(pixel_values)), pixel_values.shape[1:3])
    return inside & jnp.ones_like(pixel_values[..., 0], bool)


def cut(x: Array, sizes: Array | None) -> Array:
    """Makes everything 0 past the images' own sizes, [B, H, W, C], as it is beyond the border of one alone."""
    return x if sizes is None else jnp.where(mask_of_sizes(sizes, x.shape[1:3])[..., None], x, 0)


def halved(sizes: Array | None) -> Array | None:
    """Returns the sizes after a downsampler."""
    return in_patches(sizes, 2)


def in_patches(sizes: Array | None, side: int) -> Array | None:
    """Returns the sizes in patches of such a side, rounded up."""
    return None if sizes is None else -(-sizes // side)


def mean(x: Array, sizes: Array | None) -> Array:
    """Returns the mean over the images' own pixels, [B, H, W, C] -> [B, C]."""
    if sizes is None:
        return jnp.mean(x, axis=(1, 2))
    return jnp.sum(cut(x, sizes), axis=(1, 2)) / jnp.prod(sizes, axis=1, keepdims=True).astype(x.dtype)
