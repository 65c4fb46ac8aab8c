"""Batches of images with masks: crops of one size for training, and whole images in groups of one size for evaluation.

Evaluation resizes an image until its shorter side is that of the processor or its longer one at the bound, as mmsegmentation
does, and rounds both sides to multiples of `divisor`, 32 by default: one program serves all images of a size, and a data set
has a few dozen at most, where its aspect ratios would have hundreds. The aspect ratio changes by 3 % at most; a divisor of 1
leaves it. Masks keep their size; they are filled up with 255 to multiples of 256 pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax.image_processing import NatImageProcessor
from natjax.image_sizes import multiple_of, resized_shape
from natjax_train.augment.masks import augment
from natjax_train.data.masks import IGNORED, MaskFolder
from natjax_train.data.pipeline import Batches
from natjax_train.data.sized_batches import sized_loader
from natjax_train.data.transforms import decode, eval_image

if TYPE_CHECKING:
    from jaxtyping import Float32

    from natjax_train.augment.settings import MaskSettings

_MASK_STEP = 256  # pixels


def masked_image(
    item: dict[str, Any], rng: np.random.Generator, settings: Any, image_size: int, num_channels: int
) -> dict[str, Any]:
    """Returns an image and its mask as training sees them: {"image": uint8 [H, W, C], "label": uint8 [H, W], "size": int32 [2]}.

    Both are squares; what lies below and right of `size` fills up, and its label is 255.

    Args:
        item: of a `MaskFolder`.
        rng: the image's own, of this epoch.
        settings: `MaskSettings`, and `horizontal_flip` of `HostSettings`.
        image_size: side of the square.
        num_channels: 1 or 3.

    Raises:
        ImageError: the image cannot be read.
    """
    image = decode(item["image"], num_channels)
    image, mask = augment(image, item["mask"], rng, settings, settings.horizontal_flip, image_size)
    pixels, (height, width) = _channels(image), mask.shape
    fill = ((0, image_size - height), (0, image_size - width))
    return {
        "image": np.pad(pixels, (*fill, (0, 0))),
        "label": np.pad(mask, fill, constant_values=IGNORED),
        "size": np.array((height, width), np.int32),
    }


def mask_processor(settings: MaskSettings, image_size: int, **statistics: Any) -> NatImageProcessor:
    """Returns how images are prepared for evaluation, and what the exported model is used with.

    Args:
        settings: bound of the longer side.
        image_size: of the shorter side.
        statistics: image_mean and image_std.
    """
    box = NatImageProcessor.semantic_segmentation(settings.longest_edge, image_size)
    return dataclasses.replace(box, **statistics)


def prepared_size(size: tuple[int, int], processor: NatImageProcessor, divisor: int = 1) -> tuple[int, int]:
    """Returns height and width that evaluation gives to an image.

    Args:
        size: height and width of the image.
        processor: a model's.
        divisor: of the sides.
    """
    height, width = resized_shape("The image", size, processor.size) if processor.do_resize else size
    return _rounded(height, divisor), _rounded(width, divisor)


def sized_image(
    image: bytes | np.ndarray, size: tuple[int, int], processor: NatImageProcessor, divisor: int = 1
) -> Float32[np.ndarray, "1 H W C"]:
    """Returns an image of a height and width as evaluation prepares it, normalised, see `prepared_size`.

    Raises:
        ImageError: the image cannot be read.
    """
    fixed = _of_size(processor, prepared_size(size, processor, divisor))
    return fixed(decode(image, processor.num_channels))


def _of_size(processor: NatImageProcessor, size: tuple[int, int]) -> NatImageProcessor:
    height, width = size
    whole = {"height": height, "width": width}
    return dataclasses.replace(processor, do_resize=True, do_center_crop=False, size=whole)


def mask_eval_loader(source: MaskFolder, *, processor: NatImageProcessor, divisor: int = 1, **options: Any) -> Batches:
    """Returns this process's part of one pass over a source, by size of the images.

    A batch is {"image": uint8 [B, H, W, C], "label": uint8 [B, Y, X], "size": int32 [B, 2] of the labels, "mask": bool [B],
    "index": int32 [B]}, H to X of its own. An image that `inspect` could not read is in the first. Other arguments and errors
    are those of `data.eval_loader`; the divisor is that of `prepared_size`.
    """

    def sizes(size: tuple[int, int]) -> Any:
        padded = tuple(multiple_of(_MASK_STEP, side) for side in size)
        return None if size == (0, 0) else (prepared_size(size, processor, divisor), padded)

    found = [sizes((height, width)) for height, width in source.sizes.tolist()]
    return sized_loader(
        source, found, functools.partial(_blank, processor), functools.partial(_prepared, processor), **options
    )


def _blank(processor: NatImageProcessor, sizes: Any, count: int) -> dict[str, np.ndarray]:
    size, padded = sizes
    return {
        "image": np.zeros((count, *size, processor.num_channels), np.uint8),
        "label": np.full((count, *padded), IGNORED, np.uint8),
        "size": np.ones((count, 2), np.int32),
    }


def _prepared(processor: NatImageProcessor, sizes: Any, item: dict[str, Any]) -> dict[str, Any]:
    image = eval_image(item["image"], _of_size(processor, sizes[0]))
    return {"image": image, "label": item["mask"], "size": item["mask"].shape}


def _channels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _rounded(side: int, divisor: int) -> int:
    return max(1, round(side / divisor)) * divisor
