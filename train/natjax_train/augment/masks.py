"""Augmentation of an image and its mask in the input pipeline, as mmsegmentation does it: scale, crop, flip, change of colours.

The image is resized by a random factor with its aspect ratio, cropped, flipped, and its colours are changed; what is smaller than
the crop is padded on the device, with zeros after normalising (see `tasks.segmentation`), and its mask here with 255. Images
are resized bilinearly without smoothing and masks by their nearest pixel, both as OpenCV does. Randomness comes from a
`numpy.random.Generator` that the caller makes for the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from natjax import opencv_resizing
from natjax.image_sizes import resized_shape
from natjax_train.data.masks import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt8

    from natjax_train.augment.settings import MaskSettings

_ATTEMPTS = 10
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18  # hue in steps of 2 degrees


def augment(
    image: PIL.Image.Image,
    mask: UInt8[np.ndarray, "h w"],
    rng: np.random.Generator,
    settings: MaskSettings,
    flip: float,
    side: int,
) -> tuple[PIL.Image.Image, UInt8[np.ndarray, "H W"]]:
    """Returns an image and its mask as training sees them, of at most `side` pixels each way.

    Args:
        image: RGB or grey.
        mask: its classes.
        rng: the image's own, of this epoch.
        settings: what to do.
        flip: probability of a horizontal flip.
        side: of the crop.
    """
    low, high = settings.scale_range
    factor = rng.uniform(low, high)
    shortest, longest = sorted((int(side * factor), int(settings.longest_edge * factor)))
    size = resized_shape("The image", mask.shape, {"shortest_edge": shortest, "longest_edge": longest})
    mask = resize_nearest(mask, size)
    top, left = crop_position(mask, rng, side, settings.cat_max_ratio)
    part = slice(top, top + side), slice(left, left + side)
    mask = mask[part]
    pixels = opencv_resizing.resize(np.asarray(image).reshape(image.height, image.width, -1), size, part)
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if rng.random() < flip:
        image, mask = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), mask[:, ::-1]
    if settings.photometric:
        image = distort(image, rng)
    return image, mask


def resize_nearest(mask: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Returns a mask of another height and width, see `nearest`."""
    rows, columns = map(nearest, mask.shape, size)
    return mask[rows[:, None], columns]


def nearest(before: int, after: int) -> Int64[np.ndarray, "after"]:
    """Returns which of `before` pixels each of `after` is: floor(i * before / after), in floats that are rounded as in OpenCV."""
    return np.minimum(np.floor(np.arange(after) * (1 / (after / before))).astype(np.int64), before - 1)


def crop_position(mask: UInt8[np.ndarray, "H W"], rng: np.random.Generator, side: int, most: float) -> tuple[int, int]:
    """Returns top and left of a random crop in which no class has more than the share `most` of the pixels that count.

    Where ten crops have, it is an eleventh one, whatever is in it. A share of 1 takes the first crop.
    """

    def position() -> tuple[int, int]:
        height, width = mask.shape
        return int(rng.integers(max(height - side, 0) + 1)), int(rng.integers(max(width - side, 0) + 1))

    top, left = position()
    for _ in range(_ATTEMPTS if most < 1 else 0):
        counts = np.bincount(mask[top : top + side, left : left + side].ravel(), minlength=256)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most:
            break
        top, left = position()
    return top, left


def distort(image: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """Changes brightness, contrast, saturation and hue, each with a probability of a half; contrast second or last.

    In 8 bits after each, as in mmsegmentation. Pillow's hue has 256 steps, OpenCV's 180. Grey images have no saturation and hue.
    """
    if rng.random() < 0.5:
        image = _line(image, 1.0, rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_last = rng.integers(2) == 0
    if not contrast_last and rng.random() < 0.5:
        image = _line(image, rng.uniform(*_CONTRAST), 0.0)
    saturation = rng.uniform(*_SATURATION) if rng.random() < 0.5 else 1.0
    turn = int(rng.integers(-_HUE, _HUE)) if rng.random() < 0.5 else 0
    if image.mode == "RGB" and (saturation, turn) != (1.0, 0):
        hue, of_colour, value = image.convert("HSV").split()
        hue = hue.point([(i + round(turn * 256 / 180)) % 256 for i in range(256)])
        image = PIL.Image.merge("HSV", (hue, _line(of_colour, saturation, 0.0), value)).convert("RGB")
    if contrast_last and rng.random() < 0.5:
        image = _line(image, rng.uniform(*_CONTRAST), 0.0)
    return image


def _line(image: PIL.Image.Image, factor: float, add: float) -> PIL.Image.Image:
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(add), 0, 255).astype(np.uint8)
    return image.point(table.tolist() * len(image.getbands()))
