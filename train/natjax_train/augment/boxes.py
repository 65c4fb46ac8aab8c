"""Augmentation of an image and its objects in the input pipeline, as the authors' detectors learn: flip, crop, scale.

An image is flipped, half of the time resized to one of a few sizes and cropped, and resized to a random size with its aspect
ratio (the augmentation of DETR, arXiv 2005.12872). Boxes are clipped to the image; objects whose boxes end up outside are
dropped. Images are resized bilinearly and masks by their nearest pixel, both as OpenCV does.

mmdetection pads a batch to its largest image. Here it has one size, and a crop that is longer than the images of its batch is
resized to less than the random size, until it fits.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax import opencv_resizing
from natjax.image_sizes import resized_shape
from natjax_train.augment.masks import nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64, UInt8

    Size = tuple[int, int]  # height and width

_STEP = 0.04  # of image_size, between random scales: 32 of 800 pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """What happens to one image: flipped, resized, cropped, resized again.

    Attributes:
        flip: whether left and right are swapped.
        before: height and width of the image.
        resized: height and width before the crop.
        crop: top, left, height and width of the part of it that is seen.
        size: height and width of the result.
    """

    flip: bool
    before: Size
    resized: Size
    crop: tuple[int, int, int, int]
    size: Size

    def image(self, pixels: UInt8[np.ndarray, "h w C"]) -> UInt8[np.ndarray, "H W C"]:
        """Returns the image after it."""
        top, left, height, width = self.crop
        pixels = pixels[:, ::-1] if self.flip else pixels
        part = slice(top, top + height), slice(left, left + width)
        return opencv_resizing.resize(opencv_resizing.resize(pixels, self.resized, part), self.size)

    def boxes(self, boxes: Float32[np.ndarray, "n 4"]) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
        """Returns boxes x1, y1, x2, y2 after it, clipped to the image, and which of them are in it."""
        top, left, *crop = self.crop
        if self.flip:
            boxes = np.array([self.before[1], 0, self.before[1], 0], np.float32) + boxes[:, [2, 1, 0, 3]] * _FLIP
        boxes = _clipped(boxes * _factors(self.before, self.resized), self.resized)
        boxes = _clipped(boxes - np.array([left, top, left, top], np.float32), crop)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return _clipped(boxes * _factors(crop, self.size), self.size), kept

    def mask(self, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H V"]:
        """Returns a mask of 0 and 1 after it, eight pixels of a row in a byte, the first in the highest bit."""
        rows, columns = self._pixels
        return np.packbits(mask.T[columns][:, rows], axis=0).T  # these masks have their columns in memory order

    @functools.cached_property
    def _pixels(self) -> tuple[Int64[np.ndarray, "H"], Int64[np.ndarray, "W"]]:
        """Which rows and columns of a mask those of the result are: nearest pixels of nearest pixels."""
        top, left, height, width = self.crop
        rows = nearest(self.before[0], self.resized[0])[top : top + height][nearest(height, self.size[0])]
        columns = nearest(self.before[1], self.resized[1])[left : left + width][nearest(width, self.size[1])]
        return rows, self.before[1] - 1 - columns if self.flip else columns


_FLIP = np.array([-1, 1, -1, 1], np.float32)


def draw(size: Size, rng: np.random.Generator, settings: Any, image_size: int, canvas: Size) -> Geometry:
    """Draws what happens to an image.

    Args:
        size: height and width of the image.
        rng: the image's own, of this epoch.
        settings: `BoxSettings`, `scale_range` and `longest_edge` of `MaskSettings` and `horizontal_flip` of `HostSettings`.
        image_size: shorter side of the images at a scale of 1.
        canvas: height and width that the result is at most.
    """
    flip, is_cropped = rng.random() < settings.horizontal_flip, rng.random() < settings.crop_prob
    before, crop = size, (0, 0, *size)
    if is_cropped:
        shorter = settings.crop_scales[rng.integers(len(settings.crop_scales))]
        before = _resized(size, round(shorter * image_size), settings.longest_edge)
        least, most = (round(side * image_size) for side in settings.crop_sides)
        height, width = (int(rng.integers(min(side, least), min(side, most) + 1)) for side in before)
        top, left = int(rng.integers(before[0] - height + 1)), int(rng.integers(before[1] - width + 1))
        crop = (top, left, height, width)
    low, high = settings.scale_range
    scale = low + _STEP * rng.integers(int((high - low) / _STEP + 1e-6) + 1)
    after = _resized(crop[2:], round(scale * image_size), settings.longest_edge)
    if after[0] > canvas[0] or after[1] > canvas[1]:
        fitting = min(canvas[0] / crop[2], canvas[1] / crop[3])
        after = (max(1, int(crop[2] * fitting + 0.5)), max(1, int(crop[3] * fitting + 0.5)))
    return Geometry(flip=bool(flip), before=size, resized=before, crop=crop, size=after)


def largest(size: Size, settings: Any, image_size: int) -> Size:
    """Returns height and width of an image at its greatest random scale; arguments are those of `draw`."""
    return _resized(size, round(settings.scale_range[1] * image_size), settings.longest_edge)


def _resized(size: Size, shorter: int, longer: int) -> Size:
    return resized_shape("The image", size, {"shortest_edge": shorter, "longest_edge": longer})


def _factors(before: Any, after: Size) -> Float32[np.ndarray, "4"]:
    return np.array([after[1] / before[1], after[0] / before[0]] * 2, np.float32)


def _clipped(boxes: Float32[np.ndarray, "n 4"], size: Any) -> Float32[np.ndarray, "n 4"]:
    return boxes.clip(0, np.array([size[1], size[0]] * 2, np.float32))
