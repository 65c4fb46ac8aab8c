"""Semantic segmentation: the class of every pixel of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
from jax.sharding import NamedSharding

from natjax import models
from natjax.image_arrays import one_image, upright
from natjax.image_processing import NatImageProcessor
from natjax.pipelines.base import ImagePipeline, joined
from natjax.segmentation.inference import MULTI_SCALE, checked_windows, segment
from natjax.segmentation.parts import Padded
from natjax_kernels.sharding import shards

DEFAULT_CROP = 512  # pixels: mmsegmentation's crop of ADE20K


class ImageSegmentation(ImagePipeline):
    """Classes of pixels: a list of {"label": name, "score": None, "mask": image of mode L, 255 where the class is} per image.

    The list has the classes that are there, in their order. `stream` yields class maps [H, W], of class indices, of the size
    of the upright image; so does `class_maps`.
    """

    def __init__(
        self,
        model: models.UperNetForSemanticSegmentation,
        processor: NatImageProcessor,
        *,
        batch_size: int = 1,
        mode: str | None = None,
        crop_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        scales: str | Sequence[float] | None = None,
        flip: bool = False,
        report: Callable[[str], None] | None = None,
        sharding: NamedSharding | None = None,
    ):
        """Makes a pipeline of a model in memory.

        Args:
            model: a segmentation model.
            processor: prepares images for it: of `model.config.num_channels` channels, without a crop.
            batch_size: images, or windows, per step; 1 by default, since images in a batch must be of one size.
            mode: "whole" or "slide"; by default "slide" where a `crop_size` is given, else "whole".
            crop_size: of the windows of "slide" in pixels of the prepared image, one side or (height, width); 512 by default.
            stride: from one window to the next, likewise; two thirds of `crop_size` by default.
            scales: ratios to the processor's size, such as (0.5, 1.0), whose softmaxes are averaged; "multi" means 0.5, 0.75,
                1, 1.25, 1.5 and 1.75, as in mmsegmentation. By default (1.0,).
            flip: whether to average with mirror images as well.
            report: receives warnings; by default they are Python's.
            sharding: see `pipeline`; images are taken whole.

        Raises:
            CheckpointError: the processor makes another number of channels.
            ValueError: an argument is impossible.
        """
        self.scales, self.flip = checked_scales(scales), bool(flip)
        self.crop_size, self.stride = checked_mode(mode, crop_size, stride)
        if processor.do_center_crop:
            raise ValueError(
                "the image processor crops images, so pixels would have no class; set do_center_crop=False."
            )
        if not processor.do_resize and self.scales != (1.0,):
            raise ValueError(
                f"scales are ratios to what an image processor resizes to, and this one does not; got {scales!r}."
            )
        if sharding is not None and self.crop_size is not None:
            raise ValueError(
                f"windows of images fit one device and are not split over several; got crop_size {crop_size!r} and a sharding."
            )
        super().__init__(model, processor, batch_size=batch_size, report=report, sharding=sharding)
        self._processors = [_scaled(processor, ratio) for ratio in self.scales]
        logits_of = self._jitted(
            lambda model, pixels, image_size: model.decode(pixels, image_size=image_size)[0], stays=True
        )
        self._segmenter = logits_of if sharding is None else lambda pixels: _padded(*logits_of(pixels))

    def class_maps(self, images: Any, *, skip_unreadable: bool = False) -> Any:
        """Returns the class map of an image, [H, W], or a list or an iterator of those of several; see `__call__`.

        Args:
            images: see `__call__`.
            skip_unreadable: see `__call__`.

        Returns:
            class indices, uint8, or uint16 with more than 256 classes.

        Raises:
            ImageError: an image cannot be read.
        """
        return self._call(images, lambda class_map: class_map, skip_unreadable)

    def _prepare(self, image: Any) -> tuple[list[np.ndarray], tuple[int, int]]:
        """Returns an image at all scales, each [1, H, W, C], and (height, width) of the upright original."""
        image, size = upright(image, self.processor.mode)
        return [one_image(processor(image)) for processor in self._processors], size

    def _shape(self, prepared: Any) -> Any:
        views, size = prepared
        return [view.shape for view in views], size

    def _outputs(self, batch: list[tuple[int, Any]], size: int) -> Any:
        views = [joined(images, size) for images in zip(*(views for _, (views, _) in batch), strict=True)]
        maps = segment(
            self._segmenter,
            views,
            batch[0][1][1],
            flip=self.flip,
            crop_size=self.crop_size,
            stride=self.stride,
            batch_size=self.batch_size,
        )
        yield from zip((index for index, _ in batch), np.asarray(maps), strict=False)  # without what filled the batch

    def _result(self, output: np.ndarray) -> list[dict[str, Any]]:
        names = self.model.config.id2label
        return [
            {
                "label": names[i],
                "score": None,
                "mask": PIL.Image.fromarray(np.where(output == i, 255, 0).astype(np.uint8)),
            }
            for i in np.unique(output).tolist()
        ]


def _padded(logits: jax.Array, alone: Any) -> Padded:
    """Returns logits that stay on the devices if these have parts of their rows."""
    return Padded(logits if shards(logits, 1) > 1 else jax.device_get(logits), alone.shape[1:3])


def checked_mode(
    mode: str | None, crop_size: Any, stride: Any
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Returns size and stride of windows as pairs, or None for whole images.

    Raises:
        ValueError: there is no such mode, or the sizes are impossible.
    """
    if mode not in (None, "whole", "slide"):
        raise ValueError(f"mode must be 'whole' or 'slide'; got {mode!r}.")
    if mode == "whole" and (crop_size is not None or stride is not None):
        raise ValueError("crop_size and stride are for mode='slide'; got them with mode='whole'.")
    if mode == "slide" and crop_size is None:
        crop_size = DEFAULT_CROP
    return checked_windows(crop_size, stride)


def checked_scales(scales: Any) -> tuple[float, ...]:
    """Returns the ratios that `scales` means.

    Raises:
        ValueError: they are no numbers above 0, or there is none.
    """
    if scales is None:
        return (1.0,)
    if isinstance(scales, str) and scales == "multi":
        return MULTI_SCALE
    try:
        ratios = () if isinstance(scales, str) else tuple(float(ratio) for ratio in scales)
    except (TypeError, ValueError):
        ratios = ()
    if not ratios or not all(0 < ratio < float("inf") for ratio in ratios):
        raise ValueError(f"scales must be 'multi' or numbers above 0, as in (0.5, 1.0, 1.5); got {scales!r}.")
    return ratios


def _scaled(processor: NatImageProcessor, ratio: float) -> NatImageProcessor:
    """Returns a processor that resizes to a multiple of what another one resizes to."""
    if ratio == 1:
        return processor
    size = {name: max(1, int(side * ratio)) for name, side in processor.size.items()}
    return dataclasses.replace(processor, size=size)
