"""What happens to a training image in the input pipeline: random resized crops, flips, RandAugment or jitter; all by Pillow.

Definitions are those of timm's `transforms.py` and torchvision, which the recipes of NAT and DiNAT use. Randomness comes from a
`numpy.random.Generator` that the caller makes for the image.
"""

from __future__ import annotations

import math

import numpy as np
import PIL.Image
import PIL.ImageEnhance

from natjax_train.augment.randaugment import rand_augment, resampling
from natjax_train.augment.settings import HostSettings

_ATTEMPTS = 10


def augment(
    image: PIL.Image.Image, rng: np.random.Generator, settings: HostSettings, image_size: int
) -> PIL.Image.Image:
    """Returns an image as training sees it, a square of side `image_size`: crop, flip, then RandAugment or colour jitter.

    Args:
        image: RGB or grey.
        rng: the image's own, of this epoch.
        settings: what to do.
        image_size: side of the result.
    """
    if settings.crop:
        image = random_resized_crop(
            image, rng, image_size, settings.crop_scale, settings.crop_ratio, settings.train_interpolation
        )
    else:
        image = image.resize((image_size, image_size), resampling(settings.train_interpolation, rng))
    if rng.random() < settings.horizontal_flip:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.auto_augment:
        image = rand_augment(image, rng, settings.auto_augment, settings.image_mean, settings.train_interpolation)
    elif settings.color_jitter:
        image = color_jitter(image, rng, settings.color_jitter)
    return image


def random_resized_crop(
    image: PIL.Image.Image,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, ...],
    ratio: tuple[float, ...],
    interpolation: str,
) -> PIL.Image.Image:
    """Crops a part of random area (a share of the image's) and aspect ratio, and resizes it to a square.

    Where ten such parts do not fit into the image, the middle is taken, of the nearest ratio allowed. `interpolation` is
    "bilinear", "bicubic" or, of these, a "random" one.
    """
    width, height = image.size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        w, h = width, height
        if width / height < ratio[0]:
            h = min(height, round(width / ratio[0]))
        elif width / height > ratio[1]:
            w = min(width, round(height * ratio[1]))
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h)).resize((size, size), resampling(interpolation, rng))


def color_jitter(image: PIL.Image.Image, rng: np.random.Generator, strength: float) -> PIL.Image.Image:
    """Changes brightness, contrast and saturation by factors within 1 -+ strength, in random order."""
    enhancers = [PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color]
    for i in rng.permutation(3):
        image = enhancers[i](image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image
