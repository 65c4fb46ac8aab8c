"""What users pass as images, one by one and as NumPy arrays: lists, iterators, arrays of JAX's, tensors of PyTorch's."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from natjax.errors import ImageError
from natjax.images import is_image_source, load_image


def split_images(images: Any) -> tuple[list[Any], bool]:
    """Returns images one by one, and whether they were several.

    Args:
        images: one image, or several: a list, a tuple, an iterator, an array `[B, ...]` of images or an array of paths.

    Raises:
        natjax.ImageError: it is none of these.
    """
    if is_image_source(images):
        return [images], False
    if isinstance(images, Iterator) or (isinstance(images, list | tuple) and not _holds_numbers(images)):
        return list(images), True
    array = to_numpy(images)
    paths = array.ndim == 1 and array.dtype.kind in "OU"
    return (list(array), True) if array.ndim == 4 or paths else ([images], False)


def upright(image: Any, mode: str) -> tuple[Any, tuple[int, int]]:
    """Returns an image, decoded and turned upright where it is no array, and its (height, width).

    Args:
        image: what `natjax.images.load_image` takes, or an array, which stays as it is.
        mode: Pillow's mode of what is decoded.

    Raises:
        natjax.ImageError: it cannot be read.
    """
    if is_image_source(image):
        image = load_image(image, mode)
        return image, (image.height, image.width)
    height, width, _ = channels_last(image, None).shape
    return image, (height, width)


def one_image(pixels: np.ndarray) -> np.ndarray:
    """Returns prepared pixels [1, H, W, C].

    Raises:
        natjax.ImageError: they are of several images.
    """
    if len(pixels) != 1:
        raise ImageError(f"One image was expected here; got {len(pixels)}.")
    return pixels


def _holds_numbers(images: Any) -> bool:
    """Returns whether nested lists are an array [H, W, C] or [B, H, W, C], and no list of arrays or paths."""
    depth = 0
    while isinstance(images, list | tuple) and images:
        images, depth = images[0], depth + 1
    return depth >= 3 and isinstance(images, numbers.Number)


def to_numpy(image: Any) -> np.ndarray:
    """Returns what NumPy makes of nested lists, an array of JAX's, or a tensor of PyTorch's wherever it is.

    Raises:
        natjax.ImageError: NumPy makes nothing of it.
    """
    try:
        if hasattr(image, "detach"):
            image = image.detach().cpu()
            image = image.float() if str(image.dtype) == "torch.bfloat16" else image
        array = np.asarray(image)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    except Exception as error:  # such as lists of unequal length
        raise ImageError(f"An image cannot be had from this {type(image).__name__}: {error}") from error


def channels_last(image: Any, layout: str | None) -> np.ndarray:
    """Returns an image array as [H, W, C].

    Args:
        image: [H, W, C], [C, H, W] or [H, W], see `to_numpy`. An axis of channels has 1 or 3 entries.
        layout: "channels_first", "channels_last" or None, which is to find out.

    Raises:
        natjax.ImageError: it has another shape, holds no numbers or may be in either layout.
    """
    pixels = to_numpy(image)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or pixels.dtype.kind not in "biuf":
        raise ImageError(
            "An image is a path, the bytes of a file, an open file, a Pillow image or an array of numbers [H, W, C], [C, H, W] "
            f"or [H, W]; got {type(image).__name__}"
            + ("." if pixels.dtype == object else f" of shape {pixels.shape} and type {pixels.dtype}.")
        )
    if pixels.ndim == 2:
        return pixels[..., None]
    first, last = (pixels.shape[axis] in (1, 3) for axis in (0, -1))
    if first and last and layout is None:
        raise ImageError(
            f"An image of shape {pixels.shape} may have its channels first or last. Say which: "
            "processor(image, input_data_format='channels_last') or 'channels_first'. Pipelines take it as a Pillow image: "
            "PIL.Image.fromarray(image), which has channels last."
        )
    return pixels.transpose(1, 2, 0) if layout == "channels_first" or (first and layout is None) else pixels


def out_of_range(pixels: np.ndarray) -> str:
    """Returns the message of an error for pixels that are no pixels of 8 bits."""
    low, high = pixels.min(), pixels.max()
    advice = "Scale them to 0..255 and convert them with astype(np.uint8)."
    if pixels.dtype == np.uint16:
        advice = "Pixels of 16 bits become those of 8 with (image // 257).astype(np.uint8)."
    return f"Pixels must be whole numbers 0..255 or floats 0..1; got {low}..{high} ({pixels.dtype}). {advice}"
