"""What happens to an image in the input pipeline: decoding, random resized crops, flips, jitter; all by Pillow, to uint8.

Definitions are those of timm's `transforms.py` and torchvision, which the recipes of NAT and DiNAT use. Randomness comes from a
`numpy.random.Generator` that the caller makes for the image.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from natjax.errors import ImageError
from natjax.image_processing import NatImageProcessor
from natjax_train.augment.randaugment import RESAMPLING, rand_augment, resampling

if TYPE_CHECKING:
    from jaxtyping import UInt8

_ATTEMPTS = 10


def decode(image: bytes | np.ndarray, num_channels: int) -> PIL.Image.Image:
    """Returns an image file's or an array's pixels in RGB (or grey for one channel), upright.

    Args:
        image: the bytes of a file, or uint8 [H, W, C] with 1 or 3 channels.
        num_channels: 1 or 3.

    Raises:
        ImageError: Pillow cannot read it, or it has more pixels than Pillow takes for harmless.
    """
    mode = "L" if num_channels == 1 else "RGB"
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert(mode)
    try:
        # No warnings.catch_warnings: it swaps the filters of the whole process, and images are decoded in threads.
        with PIL.Image.open(io.BytesIO(image)) as file:
            if PIL.Image.MAX_IMAGE_PIXELS and math.prod(file.size) > PIL.Image.MAX_IMAGE_PIXELS:
                raise ImageError(f"{file.width} x {file.height} pixels may be a decompression bomb")
            file.load()
            PIL.ImageOps.exif_transpose(file, in_place=True)
            return file.convert(mode)
    except Exception as error:  # Pillow's plugins raise whatever a damaged file makes of them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"is no image that can be read: {reason}") from None


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


def train_image(
    image: bytes | np.ndarray, rng: np.random.Generator, settings: Any, image_size: int, num_channels: int
) -> UInt8[np.ndarray, "H W C"]:
    """Returns an image as training sees it: crop, flip, then RandAugment or colour jitter.

    Args:
        image: see `decode`.
        rng: the image's own, of this epoch.
        settings: has a `Recipe`'s fields.
        image_size: side of the result.
        num_channels: 1 or 3.

    Raises:
        ImageError: the image cannot be read.
    """
    picture = decode(image, num_channels)
    if settings.crop:
        picture = random_resized_crop(
            picture, rng, image_size, settings.crop_scale, settings.crop_ratio, settings.train_interpolation
        )
    else:
        picture = picture.resize((image_size, image_size), resampling(settings.train_interpolation, rng))
    if rng.random() < settings.horizontal_flip:
        picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.auto_augment:
        picture = rand_augment(picture, rng, settings.auto_augment, settings.image_mean, settings.train_interpolation)
    elif settings.color_jitter:
        picture = color_jitter(picture, rng, settings.color_jitter)
    return _array(picture)


def eval_processor(settings: Any, image_size: int) -> NatImageProcessor:
    """Returns how images are prepared for evaluation: the shorter side to `image_size / crop_pct`, then the middle.

    Args:
        settings: has a `Recipe`'s fields; without `crop`, images are resized whole.
        image_size: side of the result.
    """
    shape: dict[str, Any] = {"size": image_size}
    if settings.crop:
        shortest = {"shortest_edge": math.floor(image_size / settings.crop_pct)}
        shape = {"size": shortest, "do_center_crop": True, "crop_size": image_size}
    resample = int(RESAMPLING[settings.interpolation])
    return NatImageProcessor(**shape, resample=resample, image_mean=settings.image_mean, image_std=settings.image_std)


def eval_image(image: bytes | np.ndarray, processor: NatImageProcessor) -> UInt8[np.ndarray, "H W C"]:
    """Returns an image as a processor prepares it, before it scales and normalises.

    Raises:
        ImageError: the image cannot be read.
    """
    plain = dataclasses.replace(processor, do_rescale=False, do_normalize=False)
    return plain(decode(image, processor.num_channels))[0].astype(np.uint8)


def _array(image: PIL.Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
