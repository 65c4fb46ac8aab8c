"""What is exported of a model: one function of images [B, H, W, C], its parameters inside, that returns arrays by name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax import models
from natjax.errors import CheckpointError
from natjax.hub import locate
from natjax.image_processing import NatImageProcessor
from natjax.input_size import input_size
from natjax.processors import check_channels, default_processor, describe_default, load_processor
from natjax_convert import Checkpoint
from natjax_kernels import default_implementation

if TYPE_CHECKING:
    from natjax.configuration import Configuration
    from natjax.exporting.options import Options

_SEGMENTATION_SIZE = (512, 512)  # pixels: of windows that slide over images
_CLASSES: dict[str, Any] = {
    "image-classification": models.NatForImageClassification,
    "image-feature-extraction": models.NatModel,
    "image-segmentation": models.UperNetForSemanticSegmentation,
}
_TASKS = {  # of what checkpoints are of: the first one is the default
    "classifier": ("image-classification", "image-feature-extraction"),
    "model": ("image-feature-extraction",),
    "backbone": ("image-feature-extraction",),
    "segmentation": ("image-segmentation",),
    "detection": (),
}


@dataclasses.dataclass(frozen=True)
class Function:
    """A function to export.

    Attributes:
        call: of images, traceable.
        config: the model's.
        processor: prepares what it takes.
        image_size: (height, width) that it takes.
        input_dtype: that it takes.
    """

    call: Callable[[jax.Array], dict[str, jax.Array]]
    config: Configuration
    processor: NatImageProcessor
    image_size: tuple[int, int]
    input_dtype: str

    def images(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Returns what it takes, of a number of images that may be symbolic."""
        return jax.ShapeDtypeStruct((batch, *self.image_size, self.processor.num_channels), np.dtype(self.input_dtype))


def load(model: Any, task: str | None, options: Options, *, config: Any, processor: Any) -> Function:
    """Returns the function that a model is exported as; for arguments and errors see `natjax.export`."""
    if task is not None and task not in _CLASSES:
        raise ValueError(f"task must be {', '.join(map(repr, _CLASSES))} or None; got {task!r}.")
    if isinstance(model, models.NatPreTrainedModel):
        if config is not None or options.dtype is not None:
            raise ValueError(
                "A model in memory has its configuration and dtype: give neither config nor dtype with it."
            )
        path, kind, config = type(model).__name__, model.kind, model.config
        task = _task(path, kind, task)
        if not isinstance(model, _CLASSES[task]):
            raise ValueError(
                f"{task} needs a {_CLASSES[task].__name__}; got a {path}. Save it, and export what is saved."
            )
        processor = processor or default_processor(config)
        if processor is None:
            raise ValueError(f"processor is needed: {describe_default(config)}.")
        check_channels(processor, config)
    else:
        checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(locate(model), config=config)
        path, kind, config = checkpoint.path, checkpoint.kind, checkpoint.config
        task = _task(path, kind, task)
        processor = processor or load_processor(checkpoint, lambda message: warnings.warn(message, stacklevel=4))
        check_channels(processor, config)
        model = _CLASSES[task].from_pretrained(checkpoint, dtype=options.dtype)
    if task == "image-classification" and not config.num_labels:
        raise CheckpointError(f"{path}: the model has no classes; export it with task 'image-feature-extraction'.")
    size = options.image_size
    if size is None:
        size = _SEGMENTATION_SIZE if task == "image-segmentation" else input_size(config, processor)
    call, written = _forward(model, task), processor
    if options.input_dtype == "uint8":
        call, written = _prepared(call, processor), dataclasses.replace(processor, do_rescale=False, do_normalize=False)
    return Function(call, config, written, size, options.input_dtype)


def _task(path: Any, kind: str, task: str | None) -> str:
    """Returns the task that a model is exported for.

    Raises:
        CheckpointError: there is none, or it is none of the model's.
    """
    tasks = _TASKS[kind]
    if not tasks:
        raise CheckpointError(
            f"{path}: detectors are not exported yet, only models of {', '.join(_CLASSES)}. Use `natjax detect`."
        )
    if task is not None and task not in tasks:
        raise CheckpointError(f"{path}: is of {' or '.join(tasks)}; got task {task!r}.")
    return task or tasks[0]


def _forward(model: Any, task: str) -> Callable[[jax.Array], dict[str, jax.Array]]:
    graphdef, state = nnx.split(model)
    state = jax.device_get(state)  # constants, wherever they lie

    def call(pixels: jax.Array) -> dict[str, jax.Array]:
        net = nnx.merge(graphdef, state)
        with default_implementation("xla_autodiff"):
            if task == "image-segmentation":
                outputs = {"logits": net.decode(pixels)[0]}
            elif task == "image-classification":
                outputs = {"logits": net(pixels).logits}
            else:
                features = net(pixels)
                outputs = {"pooler_output": features.pooler_output, "last_hidden_state": features.last_hidden_state}
        return {name: array.astype(jnp.float32) for name, array in outputs.items()}

    return call


def _prepared(call: Callable[[jax.Array], dict[str, jax.Array]], processor: NatImageProcessor) -> Callable:
    """Returns a function of pixels of 0..255 that rescales and normalises them as a processor does."""
    mean, std = (np.asarray(values, np.float32) for values in (processor.image_mean, processor.image_std))

    def of_pixels(pixels: jax.Array) -> dict[str, jax.Array]:
        images = pixels.astype(jnp.float32)
        if processor.do_rescale:
            images = images * np.float32(processor.rescale_factor)
        return call((images - mean) / std if processor.do_normalize else images)

    return of_pixels
