"""Object detection: boxes, classes and masks of the objects in images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from natjax import models
from natjax.checks import check_count
from natjax.detection.inference import Detections, Detector, Prepared
from natjax.image_processing import NatImageProcessor
from natjax.pipelines.base import ImagePipeline

THRESHOLD = 0.5  # Hugging Face's


class ObjectDetection(ImagePipeline):
    """Objects in images: a list of {"score": s, "label": name, "box": {"xmin", "ymin", "xmax", "ymax"}} per image.

    The highest score comes first. Boxes are whole pixels of the upright image, rounded towards zero as Hugging Face has them.
    With `masks` there is a "mask" as well: an image of mode L of the size of the upright image, 255 where the object is.
    `stream` yields `natjax.detection.inference.Detections`, all that the model found, in fractions of pixels; so does
    `detections`.
    """

    def __init__(
        self,
        model: models.MaskRcnnForObjectDetection,
        processor: NatImageProcessor,
        *,
        batch_size: int = 1,
        threshold: float = THRESHOLD,
        top_k: int | None = None,
        masks: bool = False,
        size_divisor: int | None = None,
        report: Callable[[str], None] | None = None,
    ):
        """Makes a pipeline of a model in memory.

        Args:
            model: a detector.
            processor: prepares images for it: of `model.config.num_channels` channels, without a crop.
            batch_size: images per step; 1 by default, since images in a batch must be of one padded size.
            threshold: objects of a higher score are returned.
            top_k: objects per image, at most; None means all.
            masks: whether objects have masks.
            size_divisor: see `natjax.detection.inference.Detector`; 32 pads exactly as mmdetection does.
            report: receives warnings; by default they are Python's.

        Raises:
            CheckpointError: the processor makes another number of channels.
            ValueError: an argument is impossible.
        """
        self.threshold, self.top_k = checked_threshold(threshold), checked_top_k(top_k)
        super().__init__(model, processor, batch_size=batch_size, report=report)
        self._detector = Detector(model, processor, masks=masks, size_divisor=size_divisor)

    def __call__(self, images: Any, *, threshold: Any = ..., top_k: Any = ..., skip_unreadable: bool = False) -> Any:
        """Returns the objects in an image, or in several; see `pipeline`.

        Args:
            images: an image; a list, tuple or array [B, H, W, C] of images; or an iterator of them, which is read batch by batch.
            threshold: objects of a higher score are returned; by default what the pipeline was made with.
            top_k: objects per image, at most, None for all; likewise.
            skip_unreadable: whether images that cannot be read are reported and have the result None, instead of ending the call.

        Raises:
            ImageError: an image cannot be read.
            ValueError: `threshold` is not between 0 and 1, or `top_k` is less than 1.
        """
        threshold = self.threshold if threshold is ... else checked_threshold(threshold)
        top_k = self.top_k if top_k is ... else checked_top_k(top_k)
        result = functools.partial(self._result, threshold=threshold, top_k=top_k)
        return self._call(images, result, skip_unreadable)

    def detections(self, images: Any, *, skip_unreadable: bool = False) -> Any:
        """Returns the `Detections` of an image, or a list or an iterator of those of several; see `__call__`.

        These are all that the model found, whatever the threshold.

        Args:
            images: see `__call__`.
            skip_unreadable: see `__call__`.

        Raises:
            ImageError: an image cannot be read.
        """
        return self._call(images, lambda found: found, skip_unreadable)

    def _prepare(self, image: Any) -> Prepared:
        return self._detector.prepare(image)

    def _shape(self, prepared: Prepared) -> Any:
        return prepared.pixels.shape

    def _outputs(self, batch: list[tuple[int, Prepared]], size: int) -> Any:
        indices, images = zip(*batch, strict=True)
        yield from zip(indices, self._detector(images, size), strict=True)

    def _result(
        self, output: Detections, threshold: float = THRESHOLD, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        found, names = output.best(threshold, top_k), self.model.config.id2label
        objects: list[dict[str, Any]] = [
            {
                "score": score,
                "label": names[label],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            }
            for score, label, box in zip(
                found.scores.tolist(), found.labels.tolist(), found.boxes.astype(int).tolist(), strict=True
            )
        ]
        if found.mask_probabilities is not None:
            for index, each in enumerate(objects):
                each["mask"] = PIL.Image.fromarray(np.where(found.mask(index), 255, 0).astype(np.uint8))
        return objects


def checked_threshold(threshold: Any) -> float:
    """Returns a threshold of scores.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    try:
        value = math.nan if isinstance(threshold, bool | str) else float(threshold)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"threshold must be a number from 0 to 1; got {threshold!r}.")
    return value


def checked_top_k(top_k: Any) -> int | None:
    """Returns a number of objects, None for all.

    Raises:
        ValueError: it is no integer, or less than 1.
    """
    return None if top_k is None else check_count("top_k", top_k, " or None")
