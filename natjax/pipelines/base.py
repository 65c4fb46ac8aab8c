"""What the pipelines of all tasks share: reading, preparing and batching images."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
from flax import nnx
from jax.sharding import NamedSharding

from natjax.checks import check_count
from natjax.errors import ImageError
from natjax.exporting.exported import ExportedModel
from natjax.image_arrays import one_image, split_images
from natjax.image_processing import NatImageProcessor
from natjax.images import load_image
from natjax.nn.sizes import mask_of_size
from natjax.nn.xla import compiler_options
from natjax.pipelines.spread import Spread
from natjax.processors import check_channels


class ImagePipeline:
    """What all tasks share. Subclasses choose from a model's outputs, and say what a result looks like.

    Attributes:
        model: the model.
        processor: what prepares images for it.
        batch_size: images per step.
    """

    def __init__(
        self,
        model: Any,
        processor: NatImageProcessor,
        *,
        batch_size: int,
        report: Callable[[str], None] | None,
        sharding: NamedSharding | None = None,
    ):
        """Takes a model and what prepares images for it; see the subclasses."""
        check_channels(processor, model.config)
        self.model, self.processor, self.batch_size = model, processor, check_count("batch_size", batch_size)
        self._report = report or warn
        self._spread = None if sharding is None else Spread(sharding, model.config.trunk)

    @functools.cached_property
    def _apply(self) -> Callable[[np.ndarray], Any]:
        def select(model, pixels, image_size):
            mask = {} if image_size is None else {"pixel_mask": mask_of_size(image_size, pixels)}
            return self._select(model(pixels, **mask))

        return self._jitted(select)

    def _jitted(self, function: Callable[[Any, Any, Any], Any], *, stays: bool = False) -> Callable[[np.ndarray], Any]:
        """Returns a compiled function of images [B, H, W, C].

        What it returns is on the host where images are split over devices.

        Args:
            function: of the model, images and, where these are padded, their own (height, width), or None.
            stays: whether what is split over devices stays there: the function returns what `Spread.on_devices` does.
        """
        if isinstance(self.model, ExportedModel):
            return lambda pixels: function(self.model, pixels, None)
        graphdef, state = nnx.split(self.model)

        @functools.partial(jax.jit, static_argnames="image_size", compiler_options=compiler_options())
        def forward(state, pixels, image_size):
            return function(nnx.merge(graphdef, state), pixels, image_size)

        if self._spread is None:
            return lambda pixels: forward(state, pixels, None)
        run = self._spread.on_devices if stays else self._spread
        return functools.partial(run, forward, jax.device_put(state, self._spread.parameters))

    def __call__(self, images: Any, *, skip_unreadable: bool = False) -> Any:
        """Returns the result of an image, or a list of those of several, or an iterator of those of an iterator.

        Args:
            images: an image; a list, tuple or array [B, H, W, C] of images; or an iterator of them, which is read batch by batch.
            skip_unreadable: whether images that cannot be read are reported and have the result None, instead of ending the call.

        Raises:
            ImageError: an image cannot be read.
        """
        return self._call(images, self._result, skip_unreadable)

    def _call(self, images: Any, result: Callable[[Any], Any], skip_unreadable: bool) -> Any:
        if isinstance(images, Iterator) and not hasattr(images, "read"):
            return self._results(images, result, skip_unreadable)
        images, several = split_images(images)
        results = list(self._results(images, result, skip_unreadable))
        return results if several else results[0]

    def _results(self, images: Iterable[Any], result: Callable[[Any], Any], skip_unreadable: bool) -> Iterator[Any]:
        """Yields the results of images in order, None for those that are skipped."""
        skipped: set[int] = set()

        def skip(index: int, error: ImageError) -> None:
            if not skip_unreadable:
                raise error
            named = isinstance(images, list) and isinstance(images[index], str | os.PathLike)  # then the error names it
            self._report(f"skipped {error}" if named else f"skipped image {index}: {error}")
            skipped.add(index)

        due = 0
        for index, output in self.stream(images, skip):
            yield from (None for _ in range(due, index))
            yield result(output)
            due = index + 1
        yield from (None for index in skipped if index >= due)

    def stream(self, images: Iterable[Any], skip: Callable[[int, ImageError], None]) -> Iterator[tuple[int, Any]]:
        """Yields an image's index and what the model gives for it, batch by batch, in order.

        Args:
            images: one by one, each as the processor takes it.
            skip: is told which images cannot be read, and why.
        """
        batch: list[tuple[int, Any]] = []
        shape = None
        size = self.batch_size
        if isinstance(images, Sequence):  # few images: to the next power of two, so that calls share what is compiled
            size = min(size, 1 << (len(images) - 1).bit_length()) if images else size
        for index, image in enumerate(images):
            try:
                prepared = self._prepare(image)
            except ImageError as error:
                skip(index, error)
                continue
            if batch and (len(batch) == size or shape != self._shape(prepared)):
                yield from self._outputs(batch, size)
                batch = []
            shape = self._shape(prepared)
            batch.append((index, prepared))
        if batch:
            yield from self._outputs(batch, size)

    def _prepare(self, image: Any) -> Any:
        """Returns what goes into a batch of an image: pixel values [1, H, W, C].

        Raises:
            ImageError: it cannot be read, or it is several.
        """
        if isinstance(
            image, PIL.Image.Image
        ):  # upright by its EXIF orientation, as files are and Hugging Face's pipelines do
            image = load_image(image, self.processor.mode)
        return one_image(self.processor(image))

    def _shape(self, prepared: Any) -> Any:
        """Returns what is equal for images that can be in one batch."""
        return prepared.shape

    def _outputs(self, batch: list[tuple[int, Any]], size: int) -> Iterator[tuple[int, Any]]:
        pixels = joined([image for _, image in batch], size)
        outputs = jax.device_get(self._apply(pixels))
        for i, (index, _) in enumerate(batch):
            yield index, self._finish(jax.tree.map(lambda array, i=i: np.asarray(array[i], np.float32), outputs))

    def _select(self, outputs: Any) -> Any:
        """Returns a pytree of arrays [B, ...] of the model's outputs; traced."""
        raise NotImplementedError

    def _finish(self, output: Any) -> Any:
        """Returns what `stream` yields of this pytree of one image."""
        return output

    def _result(self, output: Any) -> Any:
        """Returns what a call returns of what `stream` yields."""
        return output


def joined(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns images [1, H, W, C] as one batch [size, H, W, C], with zeros where there are fewer."""
    if len(images) == size == 1:
        return images[0]  # uncopied, as it may be large
    return np.pad(np.concatenate(images), [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])


def warn(message: str) -> None:
    """Warns whoever called a pipeline."""
    warnings.warn(message, stacklevel=3)
