"""Batches of images with objects, for training and for evaluation.

In training all images of a batch are wide, or all are upright, and a batch has the size that the largest of them need: two
programs serve all images. In evaluation an image is resized as `natjax detect` does and filled up to one of a few sizes, and a
batch has images of one of them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from natjax.detection.padding import DIVISOR, padded_size, paddings, scale_factors
from natjax.image_sizes import multiple_of
from natjax_train.augment.boxes import draw, largest
from natjax_train.data.coco_images import decode_annotated
from natjax_train.data.coco_masks import mask_pixels
from natjax_train.data.mask_batches import prepared_size
from natjax_train.data.pipeline import Batches, train_loader
from natjax_train.data.sized_batches import sized_loader
from natjax_train.data.transforms import eval_image

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor
    from natjax_train.data.coco_images import CocoImages

_OBJECTS = 8  # the number of objects of a batch is a multiple of it


def boxed_image(
    item: dict[str, Any],
    rng: np.random.Generator,
    settings: Any,
    image_size: int,
    num_channels: int,
    *,
    canvases: dict[bool, tuple[int, int]],
    max_objects: int,
    height_divisor: int,
) -> dict[str, Any]:
    """Returns an image and its objects as training sees them.

    {"image": uint8 [H, W, C], "size": int32 [2] of what is no filling, "boxes": float32 [G, 4] of x1, y1, x2, y2,
    "class_labels": int32 [G], "valid": bool [G], "masks": uint8 [G, H, W / 8], see `Geometry.mask`}; filled up with zeros.

    Args:
        item: of `CocoImages`.
        rng: the image's own, of this epoch.
        settings: those of `augment.boxes.draw`.
        image_size: shorter side of the images at a scale of 1.
        num_channels: 1 or 3.
        canvases: size that images are drawn within, of those that are wide (False) and upright (True): W, and H before it is
            rounded up.
        max_objects: G. Of more objects a random part is taken.
        height_divisor: H is rounded up to a multiple of it.

    Raises:
        ImageError: the image cannot be read, or has another size than its annotations say.
    """
    height, width = item["size"]
    canvas = canvases[height > width]
    image = decode_annotated(item["image"], (height, width), num_channels)
    geometry = draw((height, width), rng, settings, image_size, canvas)
    pixels = geometry.image(np.asarray(image).reshape(height, width, num_channels))
    boxes, kept = geometry.boxes(item["boxes"])
    kept = np.flatnonzero(kept)
    if len(kept) > max_objects:
        kept = np.sort(rng.choice(kept, max_objects, replace=False))
    count, (rows, columns) = len(kept), geometry.size
    sides = multiple_of(height_divisor, canvas[0]), canvas[1]
    found = {
        "image": np.zeros((*sides, num_channels), np.uint8),
        "size": np.array(geometry.size, np.int32),
        "boxes": np.zeros((max_objects, 4), np.float32),
        "class_labels": np.zeros(max_objects, np.int32),
        "valid": np.arange(max_objects) < count,
        "masks": np.zeros((max_objects, sides[0], sides[1] // 8), np.uint8),
    }
    found["image"][:rows, :columns] = pixels
    found["boxes"][:count], found["class_labels"][:count] = boxes[kept], item["class_labels"][kept]
    for place, number in enumerate(kept.tolist()):
        found["masks"][place, :rows, : -(-columns // 8)] = geometry.mask(mask_pixels(item["masks"][number]))
    return found


def box_train_loader(
    source: CocoImages, *, augmentation: Any, image_size: int, height_divisor: int = 1, **options: Any
) -> Batches:
    """Returns an endless run's batches of images with objects, see `boxed_image`; arguments are those of `train_loader`.

    Heights are multiples of `height_divisor`, so that devices can have equal parts of images, see `mesh.height_divisor`.
    A batch has as many places for objects as the image with the most of them needs, up to the settings' `max_objects`. Masks
    make it large: a thread reads no more than one ahead.
    """
    objects = min(multiple_of(_OBJECTS, source.max_objects), augmentation.max_objects)
    canvases = {}
    for group in set(source.groups.tolist()):
        sizes = np.unique(source.sizes[source.groups == group], axis=0).tolist()
        needed = [largest((height, width), augmentation, image_size) for height, width in sizes]
        height, width = np.max(needed, axis=0).tolist()
        canvases[bool(group)] = multiple_of(DIVISOR, height), multiple_of(DIVISOR, width)
    prepare = functools.partial(boxed_image, canvases=canvases, max_objects=objects, height_divisor=height_divisor)
    return train_loader(source, prepare=prepare, augmentation=augmentation, image_size=image_size, ahead=1, **options)


def box_eval_loader(
    source: CocoImages, *, processor: NatImageProcessor, divisor: int | None = None, **options: Any
) -> Batches:
    """Returns this process's part of one pass over a source, by size of the images.

    A batch is {"image": uint8 [B, H, W, C] with zeros below and right, "size": int32 [B, 2] of what is no filling, "scale":
    float32 [B, 4] that boxes are divided by, "mask": bool [B], "index": int32 [B]}, H and W of its own: with a
    divisor multiples of it, else of `paddings`. Other arguments and errors are those of `data.eval_loader`.
    """
    lengths = paddings(processor.size) if processor.do_resize and divisor is None else ()
    sizes = [prepared_size((height, width), processor) for height, width in source.sizes.tolist()]
    canvases = [padded_size(size, lengths, divisor or DIVISOR) for size in sizes]
    whole = dataclasses.replace(processor, size_divisor=None)
    return sized_loader(
        source, canvases, functools.partial(_blank, whole), functools.partial(_prepared, whole), **options
    )


def _blank(processor: NatImageProcessor, canvas: tuple[int, int], count: int) -> dict[str, np.ndarray]:
    return {
        "image": np.zeros((count, *canvas, processor.num_channels), np.uint8),
        "size": np.ones((count, 2), np.int32),
        "scale": np.ones((count, 4), np.float32),
    }


def _prepared(processor: NatImageProcessor, canvas: tuple[int, int], item: dict[str, Any]) -> dict[str, Any]:
    image = decode_annotated(item["image"], item["size"], processor.num_channels)
    pixels = eval_image(np.asarray(image).reshape(*item["size"], processor.num_channels), processor)
    size = pixels.shape[:2]
    return {"image": pixels, "size": size, "scale": scale_factors(size, item["size"])}
