"""Other sizes of images: what size an image is resized to, resizing, the crop of the middle, and zeros at the borders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from natjax import opencv_resizing
from natjax.errors import ImageError
from natjax.image_arrays import out_of_range
from natjax.images import image_name


def resized_shape(image: Any, shape: Sequence[int], size: Mapping[str, int]) -> tuple[int, int]:
    """Returns height and width that an image of `shape` is resized to."""
    height, width = shape
    if longest := size.get("longest_edge"):  # rounds as mmcv does
        scale = min(longest / max(height, width), size["shortest_edge"] / min(height, width))
        wanted = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    elif edge := size.get("shortest_edge"):
        long = int(edge * max(height, width) / min(height, width))
        wanted = (long, edge) if width <= height else (edge, long)
    else:
        wanted = size["height"], size["width"]
    most = PIL.Image.MAX_IMAGE_PIXELS or math.inf
    if math.prod(wanted) > most:  # a strip of a few hundred bytes asks for gigabytes
        raise ImageError(
            f"{image_name(image)}: {height} x {width} pixels (height x width) would be resized to {wanted[0]} x {wanted[1]}, "
            f"more than the {most} pixels that Pillow takes for harmless."
        )
    return wanted


def resize(pixels: np.ndarray, size: tuple[int, int], resample: int | None) -> np.ndarray:
    """Resizes by a filter of Pillow's, or by OpenCV's bilinear sampling where it is None."""
    # Pillow resizes 8-bit pixels: floats 0..1 go to 0..255, lose their fraction, and come back, as in Hugging Face.
    unit_range = False
    if pixels.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        with np.errstate(invalid="ignore"):
            whole = np.allclose(pixels, pixels.astype(int))
        unit_range = not whole and low >= 0 and high <= 1
        if not unit_range and not (whole and low >= 0 and high <= 255):
            raise ImageError(out_of_range(pixels))
        pixels = ((pixels * 255).astype(np.float32) if unit_range else pixels).astype(np.uint8)
    height, width = size
    if resample is None:
        resized = opencv_resizing.resize(pixels, size)
    else:
        image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        resized = np.array(image.resize((width, height), resample=resample)).reshape(height, width, -1)
    return (resized * (1 / 255)).astype(np.float32) if unit_range else resized


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the middle of an image; a smaller one is padded with zeros."""
    # Hugging Face's crop comes out one row or column short where an odd number of zeros is missing; this one does not.
    missing = [max(side - have, 0) for side, have in zip((height, width), pixels.shape[:2], strict=True)]
    pixels = np.pad(pixels, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def padded(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns an image [H, W, C] of a larger height and width, with zeros at the bottom and at the right."""
    return np.pad(pixels, [*((0, side - have) for side, have in zip(shape, pixels.shape[:2], strict=True)), (0, 0)])


def multiple_of(divisor: int, side: int) -> int:
    """Returns the next multiple of a divisor."""
    return -(-side // divisor) * divisor
