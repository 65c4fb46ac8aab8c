"""Images in, predictions or features out: a checkpoint with its image processor, as in Hugging Face's `pipeline`.

    classify = natjax.pipeline("image-classification", "shi-labs/nat-mini-in1k-224")
    classify("cat.jpg")  # [{"label": "tabby, tabby cat", "score": ...}, ...]

    features = natjax.pipeline("image-feature-extraction", "run/model")
    features(["one.png", "two.png"])  # a list of two arrays [C]

An image is a path, the bytes of a file, a Pillow image or an array, see `natjax.NatImageProcessor`. Images go through the model
in batches of `batch_size`, or of 1, 2, 4, ... where a call has fewer, padded to that. It is compiled once per batch size and
image shape.
"""

from __future__ import annotations

import functools
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from flax import nnx

from natjax import models
from natjax.configuration import NatConfig
from natjax.errors import CheckpointError, ImageError, MissingNormsWarning
from natjax.hub import locate
from natjax.image_arrays import split_images
from natjax.image_processing import NatImageProcessor
from natjax.images import load_image
from natjax.nn.xla import compiler_options
from natjax.processors import check_channels, load_processor
from natjax_convert import Checkpoint
from natjax_kernels import default_implementation


def pipeline(
    task: str,
    model: str | os.PathLike | Checkpoint | None = None,
    *,
    config: NatConfig | None = None,
    processor: NatImageProcessor | None = None,
    batch_size: int = 8,
    top_k: Any = ...,
    stages: str | Sequence[str] | None = None,
    dtype: Any = None,
    implementation: str | None = None,
    report: Callable[[str], None] | None = None,
) -> ImageClassification | ImageFeatureExtraction:
    """Returns a function from images to what a model says of them.

    Args:
        task: "image-classification" or "image-feature-extraction".
        model: a checkpoint, see `natjax.hub.locate`; there is no default. "digits" is a small classifier of handwritten digits.
        config: the architecture, where there is none beside the weights.
        processor: prepares the images; by default the one beside the checkpoint, or else that of the preset of this architecture,
            or ImageNet's, which is reported.
        batch_size: images per step.
        top_k: of "image-classification": classes per image, at most all of them; 5 where it is not given, None means all.
        stages: of "image-feature-extraction": names of `NatConfig.stage_names`, one name or "all", for feature maps of these
            stages instead of pooled features. They are normalised where the checkpoint is a backbone's, which has norms for it.
        dtype: compute dtype; None computes in float32.
        implementation: of neighborhood attention.
        report: receives warnings; by default they are Python's.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit the task.
        ValueError: an argument is impossible.
    """
    if task not in ("image-classification", "image-feature-extraction"):
        raise ValueError(f"task must be 'image-classification' or 'image-feature-extraction'; got {task!r}.")
    if task == "image-classification" and stages is not None:
        raise ValueError(f"stages is for 'image-feature-extraction'; got {stages!r} with {task!r}.")
    if task == "image-feature-extraction" and top_k is not ...:
        raise ValueError(f"top_k is for 'image-classification'; got {top_k!r} with {task!r}.")
    top_k = 5 if top_k is ... else top_k
    _check_arguments(batch_size, top_k, dtype, implementation)
    for name, value, expected in (("config", config, NatConfig), ("processor", processor, NatImageProcessor)):
        if value is not None and not isinstance(value, expected):
            raise ValueError(f"{name} must be a {expected.__name__}; got {value!r}.")
    if isinstance(model, Checkpoint):
        if config is not None:
            raise ValueError("An open checkpoint has its configuration: give no config with it.")
        checkpoint, path = model, model.path
    elif model is None or isinstance(model, str | os.PathLike):
        path = locate(model)
        checkpoint = Checkpoint.open(path, config=config)
    else:
        raise ValueError(
            f"model must be a checkpoint; got {type(model).__name__}. A model in memory goes into "
            "natjax.pipelines.ImageClassification(model, processor) or ImageFeatureExtraction."
        )
    options: dict[str, Any] = {"dtype": dtype, "implementation": implementation}
    make: Callable[..., Any]
    if task == "image-classification":
        net: Any = models.NatForImageClassification.from_pretrained(checkpoint, **options)
        if not net.config.num_labels or net.config.problem_type == "regression":
            raise CheckpointError(
                f"{path}: the model has no classes to tell apart; image-feature-extraction (`natjax features`) may be "
                "of use."
            )
        make = functools.partial(ImageClassification, top_k=top_k)
    elif stages is None:
        net, make = models.NatModel.from_pretrained(checkpoint, **options), ImageFeatureExtraction
    else:
        names = _stage_names(stages, checkpoint.config.stage_names)
        with warnings.catch_warnings():
            # What a classifier's checkpoint always says. One that has norms for some of the stages only is worth the words.
            warnings.simplefilter("ignore", MissingNormsWarning)
            net = models.NatBackbone.from_pretrained(checkpoint, out_features=names, **options)
        make = functools.partial(ImageFeatureExtraction, stages=names)
    if processor is None:
        processor = load_processor(checkpoint, report or _warn)
    return make(net, processor, batch_size=batch_size, report=report)


def _check_arguments(batch_size: Any, top_k: Any, dtype: Any, implementation: Any) -> None:
    """Refuses arguments before a checkpoint is read for them.

    Raises:
        ValueError: one is impossible.
    """
    _check_count("batch_size", batch_size)
    if top_k is not None:
        _check_count("top_k", top_k, " or None")
    try:
        floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"dtype must be floating point, such as 'bfloat16', or None; got {dtype!r}.")
    if dtype is not None and jnp.dtype(dtype).itemsize > 4 and not jax.config.read("jax_enable_x64"):
        raise ValueError(f"dtype {dtype!r} needs jax.config.update('jax_enable_x64', True); None computes in float32.")
    with default_implementation(implementation):  # raises if there is none of this name
        pass


def _check_count(name: str, value: Any, otherwise: str = "") -> int:
    """Returns a number of things as Python has it.

    Raises:
        ValueError: it is no integer, or less than 1.
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be at least 1{otherwise}; got {value!r}.")
    return count


def _stage_names(stages: str | Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the stages that `stages` means, in the order of the model.

    Raises:
        ValueError: there is none, or it names others.
    """
    asked = known if stages == "all" else (stages,) if isinstance(stages, str) else stages
    if not isinstance(asked, Iterable) or not (asked := tuple(asked)) or not set(asked) <= set(known):
        raise ValueError(f"stages must be 'all' or of {', '.join(known)}; got {stages!r}.")
    return tuple(name for name in known if name in asked)


class _ImagePipeline:
    """What both tasks share. Subclasses choose from a model's outputs, and say what a result looks like.

    Attributes:
        model: the model.
        processor: what prepares images for it.
        batch_size: images per step.
    """

    def __init__(
        self, model: Any, processor: NatImageProcessor, *, batch_size: int, report: Callable[[str], None] | None
    ):
        """Takes a model and what prepares images for it; see the subclasses."""
        check_channels(processor, model.config)
        self.model, self.processor, self.batch_size = model, processor, _check_count("batch_size", batch_size)
        self._report = report or _warn
        graphdef, self._state = nnx.split(model)
        self._forward = jax.jit(
            lambda state, pixels: self._select(nnx.merge(graphdef, state)(pixels)), compiler_options=compiler_options()
        )

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
        batch: list[tuple[int, np.ndarray]] = []
        size = self.batch_size
        if isinstance(images, Sequence):  # few images: to the next power of two, so that calls share what is compiled
            size = min(size, 1 << (len(images) - 1).bit_length()) if images else size
        for index, image in enumerate(images):
            try:
                if isinstance(
                    image, PIL.Image.Image
                ):  # upright by its EXIF orientation, as files are and Hugging Face's pipelines do
                    image = load_image(image, "L" if self.processor.num_channels == 1 else "RGB")
                pixels = self.processor(image)
                if len(pixels) != 1:
                    raise ImageError(f"One image was expected here; got {len(pixels)}.")
            except ImageError as error:
                skip(index, error)
                continue
            if batch and (len(batch) == size or batch[0][1].shape != pixels.shape):
                yield from self._outputs(batch, size)
                batch = []
            batch.append((index, pixels))
        if batch:
            yield from self._outputs(batch, size)

    def _outputs(self, batch: list[tuple[int, np.ndarray]], size: int) -> Iterator[tuple[int, Any]]:
        pixels = np.concatenate([image for _, image in batch])
        pixels = np.pad(pixels, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
        outputs = jax.device_get(self._forward(self._state, pixels))
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


class ImageClassification(_ImagePipeline):
    """Classes of images, the likeliest first: a list of {"label": name, "score": probability} per image.

    `stream` yields the probabilities of all classes, float64 [L]. They sum to 1, but for a model of several labels at a time.
    """

    def __init__(
        self,
        model: models.NatForImageClassification,
        processor: NatImageProcessor,
        *,
        batch_size: int = 8,
        top_k: int | None = 5,
        report: Callable[[str], None] | None = None,
    ):
        """Makes a pipeline of a model in memory.

        Args:
            model: a classifier.
            processor: prepares images for it: of `model.config.num_channels` channels.
            batch_size: images per step, 8 by default.
            top_k: classes per image, 5 by default; None means all.
            report: receives warnings; by default they are Python's.

        Raises:
            CheckpointError: the processor makes another number of channels.
            ValueError: `batch_size` or `top_k` is no integer, or less than 1.
        """
        super().__init__(model, processor, batch_size=batch_size, report=report)
        self.top_k = None if top_k is None else _check_count("top_k", top_k, " or None")

    def __call__(self, images: Any, *, top_k: Any = ..., skip_unreadable: bool = False) -> Any:
        """Returns the classes of an image, or of several; see `pipeline`.

        Args:
            images: an image; a list, tuple or array [B, H, W, C] of images; or an iterator of them, which is read batch by batch.
            top_k: classes per image, None for all; by default what the pipeline was made with.
            skip_unreadable: whether images that cannot be read are reported and have the result None, instead of ending the call.

        Raises:
            ImageError: an image cannot be read.
            ValueError: `top_k` is less than 1.
        """
        if top_k is ...:
            top_k = self.top_k
        elif top_k is not None:
            top_k = _check_count("top_k", top_k, " or None")
        return self._call(images, functools.partial(self._result, top_k=top_k), skip_unreadable)

    def best(self, probabilities: np.ndarray) -> list[int]:
        """Returns the `top_k` likeliest classes."""
        return _best(probabilities, self.top_k)

    def _select(self, outputs: Any) -> Any:
        return outputs.logits

    def _finish(self, output: np.ndarray) -> np.ndarray:
        if self.model.config.problem_type == "multi_label_classification":
            return 1 / (1 + np.exp(-output.astype(np.float64)))
        probabilities = np.exp(output - output.max(), dtype=np.float64)
        return probabilities / probabilities.sum()

    def _result(self, output: np.ndarray, top_k: int | None = None) -> list[dict[str, Any]]:
        names = self.model.config.id2label
        return [{"label": names[i], "score": float(output[i])} for i in _best(output, top_k)]


class ImageFeatureExtraction(_ImagePipeline):
    """Features of images, float32: pooled ones [C], or a feature map [H_i, W_i, C_i] of every stage asked for, by name."""

    def __init__(
        self,
        model: models.NatModel | models.NatBackbone,
        processor: NatImageProcessor,
        *,
        batch_size: int = 8,
        stages: Sequence[str] | None = None,
        report: Callable[[str], None] | None = None,
    ):
        """Makes a pipeline of a model in memory.

        Args:
            model: a `NatModel` for pooled features, or a `NatBackbone` for feature maps.
            processor: prepares images for it: of `model.config.num_channels` channels.
            batch_size: images per step, 8 by default.
            stages: of a `NatBackbone`: the names of its feature maps, its `config.out_features`; None, the default, for a
                `NatModel`.
            report: receives warnings; by default they are Python's.

        Raises:
            CheckpointError: the processor makes another number of channels.
            ValueError: `batch_size` is no integer, or less than 1.
        """
        super().__init__(model, processor, batch_size=batch_size, report=report)
        self.stages = stages

    def _select(self, outputs: Any) -> Any:
        return outputs.pooler_output if self.stages is None else tuple(outputs.feature_maps)

    def _finish(self, output: Any) -> Any:
        return output if self.stages is None else dict(zip(self.stages, output, strict=True))


def _best(probabilities: np.ndarray, top_k: int | None) -> list[int]:
    return np.argsort(-probabilities, kind="stable")[:top_k].tolist()


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
