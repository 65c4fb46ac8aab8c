"""Detections of images: prepared, padded to one of a few sizes, through the model, and back to the original images' pixels.

mmdetection's test: an image is resized within a box and normalised, and gets zeros at the bottom and at the right; boxes are
divided by the scale before the class-wise suppression; masks are pasted at the original size. How many zeros there are decides
how many programs are compiled. mmdetection fills up to multiples of 32, which is nearly as many sizes as images. Here each side
is filled up to the next of five lengths (`paddings`), which makes nine sizes at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from natjax.detection.masks import paste_masks, paste_part
from natjax.detection.padding import DIVISOR, padded_size, paddings, scale_factors
from natjax.image_arrays import one_image, upright
from natjax.image_sizes import padded
from natjax.nn.xla import compiler_options

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int32

    from natjax.image_processing import NatImageProcessor

_FOUND = ("boxes", "scores", "labels", "valid", "masks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in an image, the highest score first.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the original image.
        scores: 0 to 1.
        labels: class indices.
        size: (height, width) of the original image.
        mask_probabilities: of a pixel in a box to be part of the object, on a grid over the box; None without masks.
        mask_threshold: probability from which on it is.
    """

    boxes: Float32[np.ndarray, "K 4"]
    scores: Float32[np.ndarray, "K"]
    labels: Int32[np.ndarray, "K"]
    size: tuple[int, int]
    mask_probabilities: Float32[np.ndarray, "K S S"] | None = None
    mask_threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, threshold: float = 0.0, top_k: int | None = None) -> Detections:
        """Returns those with a score above the threshold, and of them the `top_k` with the highest ones."""
        kept = np.flatnonzero(self.scores > threshold)[:top_k]
        masks = None if self.mask_probabilities is None else self.mask_probabilities[kept]
        return dataclasses.replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            mask_probabilities=masks,
        )

    def masks(self) -> Bool[np.ndarray, "K height width"]:
        """Returns which pixels of the original image are part of the objects. `mask` returns one at a time, for less memory.

        Raises:
            ValueError: they were found without masks.
        """
        return paste_masks(self._probabilities(), self.boxes, self.size, self.mask_threshold)

    def mask(self, index: int) -> Bool[np.ndarray, "height width"]:
        """Returns which pixels of the original image are part of an object.

        Raises:
            ValueError: it was found without a mask.
        """
        which = slice(index, index + 1)
        return paste_masks(self._probabilities()[which], self.boxes[which], self.size, self.mask_threshold)[0]

    def mask_part(self, index: int) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int]]:
        """Returns of `mask` the part at the object's box, for less work, and its (top, left) in the image.

        Raises:
            ValueError: it was found without a mask.
        """
        return paste_part(self._probabilities()[index], self.boxes[index], self.size, self.mask_threshold)

    def _probabilities(self) -> np.ndarray:
        if self.mask_probabilities is None:
            raise ValueError("These detections have no masks: they are of a Detector made with masks=False.")
        return self.mask_probabilities


class Prepared(NamedTuple):
    """An image as the model takes it.

    Attributes:
        pixels: with zeros at the bottom and at the right.
        image_size: (height, width) without these.
        size: (height, width) of the original image, upright.
    """

    pixels: Float32[np.ndarray, "H W C"]
    image_size: tuple[int, int]
    size: tuple[int, int]

    @property
    def scale_factors(self) -> Float32[np.ndarray, "4"]:
        """What boxes x1, y1, x2, y2 are divided by: the prepared width and height as parts of the original ones."""
        return scale_factors(self.image_size, self.size)


class Detector:
    """A detector of images of any size, compiled once per padded size and number of images.

        detector = Detector(model, processor)
        found, = detector([detector.prepare("street.jpg")])  # Detections

    Attributes:
        model: the model.
        paddings: the lengths in pixels that sides are filled up to; none where they are multiples of a divisor alone.
    """

    def __init__(
        self, model: Any, processor: NatImageProcessor, *, masks: bool = True, size_divisor: int | None = None
    ):
        """Takes a model and what prepares images for it.

        Args:
            model: a `MaskRcnnForObjectDetection` or `CascadeMaskRcnnForObjectDetection`.
            processor: without a crop. Its own `size_divisor` does not count.
            masks: whether detections have masks.
            size_divisor: sides are filled up to multiples of it, as by mmdetection with 32, instead of to the next of
                `paddings`: more programs, less padding.

        Raises:
            ValueError: the processor crops images, or the divisor is impossible.
        """
        check_whole(processor)
        self.model = model
        self._processor = dataclasses.replace(processor, size_divisor=None)
        self._divisor = dataclasses.replace(processor, size_divisor=size_divisor).size_divisor or DIVISOR  # checked
        self.paddings = paddings(processor.size) if processor.do_resize and size_divisor is None else ()
        graphdef, self._state = nnx.split(model)

        def forward(state, pixels, image_sizes, scale_factors):
            return found_in(nnx.merge(graphdef, state)(pixels, image_sizes, scale_factors, output_masks=masks))

        self._forward = jax.jit(forward, compiler_options=compiler_options())

    def prepare(self, image: Any) -> Prepared:
        """Prepares one image: a path, bytes, an open file, a Pillow image or an array, see `NatImageProcessor`.

        Files and Pillow images are turned upright by their EXIF orientation.

        Raises:
            ImageError: it cannot be read, or is several.
        """
        image, size = upright(image, self._processor.mode)
        pixels = one_image(self._processor(image))[0]
        height, width, _ = pixels.shape
        shape = padded_size((height, width), self.paddings, self._divisor)
        return Prepared(padded(pixels, shape), (height, width), size)

    def __call__(self, images: Sequence[Prepared], batch_size: int | None = None) -> list[Detections]:
        """Returns what images of one padded size show.

        Args:
            images: see `prepare`.
            batch_size: number of images that the program is compiled for, at least as many as are given; by default as many.

        Raises:
            ValueError: the images are of several padded sizes.
        """
        if not images:
            return []
        sizes = dict.fromkeys(image.pixels.shape[:2] for image in images)
        if len(sizes) > 1:
            raise ValueError(
                f"the images of a call must be of one padded size; got {', '.join(f'{h} x {w}' for h, w in sizes)} (height x "
                "width). Give those of each size together, or use natjax.pipeline, which does."
            )
        last = len(images) - 1
        filled = [images[min(index, last)] for index in range(max(batch_size or 0, len(images)))]
        found = jax.device_get(
            self._forward(
                self._state,
                np.stack([image.pixels for image in filled]),
                np.array([image.image_size for image in filled], np.int32),
                np.stack([image.scale_factors for image in filled]),
            )
        )
        return each_image(found, [image.size for image in images], self.model.config.mask_threshold)


def check_whole(processor: NatImageProcessor) -> None:
    """Checks that a processor prepares whole images.

    Raises:
        ValueError: it crops them.
    """
    if processor.do_center_crop:
        raise ValueError(
            "the image processor crops images, so what is beside the crop would not be found; set do_center_crop=False."
        )


def found_in(output: Any) -> dict[str, Any]:
    """Returns the arrays of a model's output that `each_image` takes."""
    return {name: getattr(output, name) for name in _FOUND}


def each_image(
    found: Mapping[str, Any], sizes: Iterable[tuple[int, int]], mask_threshold: float = 0.5
) -> list[Detections]:
    """Returns the detections of each image of a batch. Boxes that are NaN or infinite, as of a broken model, are none.

    Args:
        found: `boxes` [B, K, 4] in pixels of the original images, `scores`, `labels` and `valid` [B, K], and `masks`
            [B, K, S, S] or None: a model's outputs on the host.
        sizes: (height, width) of the original images, at most B.
        mask_threshold: probability from which on a pixel is part of an object.
    """
    boxes, scores, labels, valid, masks = (found[name] for name in _FOUND)
    valid = valid & np.isfinite(boxes).all(-1)
    return [
        Detections(
            boxes=boxes[i][valid[i]].astype(np.float32),
            scores=scores[i][valid[i]].astype(np.float32),
            labels=labels[i][valid[i]].astype(np.int32),
            size=size,
            mask_probabilities=None if masks is None else masks[i][valid[i]].astype(np.float32),
            mask_threshold=mask_threshold,
        )
        for i, size in enumerate(sizes)
    ]
