"""From image files to uint8 arrays: decoding, augmentation in training, the image processor in evaluation."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from natjax.image_processing import NatImageProcessor
from natjax.images import decode_image
from natjax_train.augment.host import augment
from natjax_train.augment.randaugment import RESAMPLING
from natjax_train.augment.settings import EvalSettings, HostSettings

if TYPE_CHECKING:
    from jaxtyping import UInt8


def decode(image: bytes | np.ndarray | PIL.Image.Image, num_channels: int) -> PIL.Image.Image:
    """Returns an image file's or an array's pixels in RGB (or grey for one channel), upright.

    Args:
        image: the bytes of a file, a Pillow image, or uint8 [H, W, C] with 1 or 3 channels.
        num_channels: 1 or 3.

    Raises:
        ImageError: Pillow cannot read it, it has more pixels than Pillow takes for harmless or deep ones of unknown range.
    """
    mode = "L" if num_channels == 1 else "RGB"
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return decode_image(image, mode)


def train_image(
    image: bytes | np.ndarray, rng: np.random.Generator, settings: HostSettings, image_size: int, num_channels: int
) -> UInt8[np.ndarray, "H W C"]:
    """Returns an image as training sees it, see `augment.host.augment`.

    Args:
        image: see `decode`.
        rng: the image's own, of this epoch.
        settings: of augmentation.
        image_size: side of the result.
        num_channels: 1 or 3.

    Raises:
        ImageError: the image cannot be read.
    """
    pixels = np.asarray(augment(decode(image, num_channels), rng, settings, image_size))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def labelled_image(
    item: dict[str, Any], rng: np.random.Generator, settings: HostSettings, image_size: int, num_channels: int
) -> dict[str, Any]:
    """Returns an image with a label as training sees it; arguments are those of `train_image`."""
    image = train_image(item["image"], rng, settings, image_size, num_channels)
    return {"image": image, "label": np.int32(item["label"])}


def eval_processor(settings: EvalSettings, image_size: int) -> NatImageProcessor:
    """Returns how images are prepared for evaluation: the shorter side to `image_size / crop_pct`, then the middle.

    Args:
        settings: of evaluation; without `eval_crop` (or, where that is None, `crop`), images are resized whole.
        image_size: side of the result.
    """
    shape: dict[str, Any] = {"size": image_size}
    if settings.crop if settings.eval_crop is None else settings.eval_crop:
        shortest = {"shortest_edge": math.floor(image_size / settings.crop_pct)}
        shape = {"size": shortest, "do_center_crop": True, "crop_size": image_size}
    resample = int(RESAMPLING[settings.interpolation])
    return NatImageProcessor(**shape, resample=resample, image_mean=settings.image_mean, image_std=settings.image_std)


def eval_image(image: bytes | np.ndarray, processor: NatImageProcessor) -> UInt8[np.ndarray, "H W C"]:
    """Returns an image as a processor prepares it, before it scales and normalises.

    Args:
        image: see `decode`.
        processor: a model's.

    Raises:
        ImageError: the image cannot be read.
    """
    plain = dataclasses.replace(processor, do_rescale=False, do_normalize=False)
    return plain(decode(image, processor.num_channels))[0].astype(np.uint8)
