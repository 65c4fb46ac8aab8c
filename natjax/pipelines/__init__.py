"""Images in, predictions or features out: a checkpoint with its image processor, as in Hugging Face's `pipeline`.

    classify = natjax.pipeline("image-classification", "shi-labs/nat-mini-in1k-224")
    classify("cat.jpg")  # [{"label": "tabby, tabby cat", "score": ...}, ...]

    features = natjax.pipeline("image-feature-extraction", "run/model")
    features(["one.png", "two.png"])  # a list of two arrays [C]

    segment = natjax.pipeline("image-segmentation", "upernet_nat_tiny.pth")
    segment("street.jpg")  # [{"label": "road", "score": None, "mask": a Pillow image}, ...]

    detect = natjax.pipeline("object-detection", "mask_rcnn_nat_tiny.pth")
    detect("street.jpg")  # [{"score": 0.98, "label": "person", "box": {"xmin": 10, ...}}, ...]

An image is a path, the bytes of a file, a Pillow image or an array, see `natjax.NatImageProcessor`. Images go through the model
in batches of `batch_size`, or of 1, 2, 4, ... where a call has fewer, padded to that. It is compiled once per batch size and
image shape.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from natjax import models
from natjax.checks import check_count
from natjax.configuration import Configuration, MaskRcnnConfig, UperNetConfig
from natjax.errors import CheckpointError, MissingNormsWarning
from natjax.exporting.exported import find_exported
from natjax.hub import locate
from natjax.image_processing import NatImageProcessor
from natjax.models.detection import DETECTORS
from natjax.pipelines.base import warn
from natjax.pipelines.classification import ImageClassification
from natjax.pipelines.detection import THRESHOLD, ObjectDetection, checked_threshold
from natjax.pipelines.exported import exported_pipeline
from natjax.pipelines.features import ImageFeatureExtraction
from natjax.pipelines.segmentation import ImageSegmentation, checked_mode, checked_scales
from natjax.processors import load_processor
from natjax_convert import Checkpoint
from natjax_kernels import default_implementation

__all__ = ["ImageClassification", "ImageFeatureExtraction", "ImageSegmentation", "ObjectDetection", "pipeline"]

_BATCH_SIZES = {
    "image-classification": 8,
    "image-feature-extraction": 8,
    "image-segmentation": 1,
    "object-detection": 1,
}
_OWNERS = {
    "top_k": ("image-classification", "object-detection"),
    "stages": ("image-feature-extraction",),
    **dict.fromkeys(("mode", "crop_size", "stride", "scales", "flip"), ("image-segmentation",)),
    **dict.fromkeys(("threshold", "masks", "size_divisor"), ("object-detection",)),
    **dict.fromkeys(
        ("full_size", "sharding"), ("image-classification", "image-feature-extraction", "image-segmentation")
    ),
}
_EXPECTED = {
    Configuration: "a NatConfig, a UperNetConfig or a MaskRcnnConfig",
    NatImageProcessor: "a NatImageProcessor",
}


class _Dense(NamedTuple):
    """What messages say of the models of a task of dense prediction.

    Attributes:
        config: class of their configurations.
        does: what they do.
        heads: what others are without.
        needed: which ones there are.
        command: the natjax command for them.
    """

    config: type[Configuration]
    does: str
    heads: str
    needed: str
    command: str


_DENSE = {
    "image-segmentation": _Dense(
        UperNetConfig,
        "says what every pixel shows, not what the image does",
        "head for semantic segmentation",
        "a UPerNet, such as upernet_nat_tiny",
        "segment",
    ),
    "object-detection": _Dense(
        MaskRcnnConfig,
        "says where objects are, not what the image shows",
        "heads for object detection",
        "a Mask R-CNN or a Cascade Mask R-CNN, such as mask_rcnn_nat_tiny",
        "detect",
    ),
}


def pipeline(
    task: str,
    model: str | os.PathLike | Checkpoint | None = None,
    *,
    config: Configuration | None = None,
    processor: NatImageProcessor | None = None,
    batch_size: int | None = None,
    top_k: Any = ...,
    stages: str | Sequence[str] | None = None,
    mode: str | None = None,
    crop_size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: str | Sequence[float] | None = None,
    flip: bool = False,
    threshold: float | None = None,
    masks: bool = False,
    size_divisor: int | None = None,
    full_size: bool = False,
    sharding: NamedSharding | None = None,
    dtype: Any = None,
    implementation: str | None = None,
    report: Callable[[str], None] | None = None,
) -> ImageClassification | ImageFeatureExtraction | ImageSegmentation | ObjectDetection:
    """Returns a function from images to what a model says of them.

    Args:
        task: "image-classification", "image-feature-extraction", "image-segmentation" or "object-detection".
        model: a checkpoint, see `natjax.hub.locate`; there is no default. "digits" is a small classifier of handwritten digits.
            A folder or file that `natjax.export` wrote runs as it was exported.
        config: the architecture, where there is none beside the weights.
        processor: prepares the images; by default the one beside the checkpoint, or else that of the preset of this architecture,
            ImageNet's, of a UPerNet mmsegmentation's or of a detector mmdetection's, which is reported.
        batch_size: images per step; by default 8, of "image-segmentation" and "object-detection" 1.
        top_k: of "image-classification": classes per image, 5 where it is not given. Of "object-detection": objects per image,
            all where it is not given. None means all.
        stages: of "image-feature-extraction": names of `NatConfig.stage_names`, one name or "all", for feature maps of these
            stages instead of pooled features. They are normalised where the checkpoint is a backbone's, which has norms for it.
        mode: of "image-segmentation", as what follows; see `ImageSegmentation`: "whole" images, or windows that "slide" over
            them.
        crop_size: of the windows in pixels.
        stride: from one window to the next in pixels.
        scales: ratios of several sizes that are averaged, or "multi".
        flip: whether to average with mirror images.
        threshold: of "object-detection", as what follows; see `ObjectDetection`: objects of a higher score are returned; 0.5 by
            default.
        masks: whether objects have masks.
        size_divisor: 32 pads images exactly as mmdetection does.
        full_size: whether images keep their size: they are neither resized nor cropped. Not of "object-detection".
        sharding: where images [B, H, W, C] lie whose height or width, or both, are split over devices, as by
            `NamedSharding(jax.make_mesh((8,), ("space",)), PartitionSpec(None, "space"))`; results are those of one device.
            Likewise.
        dtype: compute dtype; None computes in float32.
        implementation: of neighborhood attention.
        report: receives warnings; by default they are Python's.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit the task.
        ValueError: an argument is impossible.
    """
    if task not in _BATCH_SIZES:
        *tasks, last = map(repr, _BATCH_SIZES)
        raise ValueError(f"task must be {', '.join(tasks)} or {last}; got {task!r}.")
    windows: dict[str, Any] = {
        "mode": mode,
        "crop_size": crop_size,
        "stride": stride,
        "scales": scales,
        "flip": flip or None,
    }
    objects: dict[str, Any] = {"threshold": threshold, "masks": masks or None, "size_divisor": size_divisor}
    others = {"stages": stages, "full_size": full_size or None, "sharding": sharding}
    given = {name: value for name, value in {**windows, **objects, **others}.items() if value is not None}
    for name, value in {**given, **({} if top_k is ... else {"top_k": top_k})}.items():
        if task not in _OWNERS[name]:
            raise ValueError(f"{name} is for {' or '.join(map(repr, _OWNERS[name]))}; got {value!r} with {task!r}.")
    if top_k is ...:
        top_k = 5 if task == "image-classification" else None
    threshold = THRESHOLD if threshold is None else checked_threshold(threshold)
    batch_size = _BATCH_SIZES[task] if batch_size is None else batch_size
    _check_arguments(batch_size, top_k, dtype, implementation)
    checked_mode(mode, crop_size, stride)
    checked_scales(scales)
    for name, value, expected in (("config", config, Configuration), ("processor", processor, NatImageProcessor)):
        if value is not None and not isinstance(value, expected):
            raise ValueError(f"{name} must be {_EXPECTED[expected]}; got {value!r}.")
    if isinstance(model, Checkpoint):
        if config is not None:
            raise ValueError("An open checkpoint has its configuration: give no config with it.")
        checkpoint, path = model, model.path
    elif model is None or isinstance(model, str | os.PathLike):
        path = locate(model)
        if (program := find_exported(path)) is not None:
            settled = {"stages": stages, "full_size": full_size or None, "sharding": sharding, "dtype": dtype}
            return exported_pipeline(
                task,
                program,
                config=config,
                processor=processor,
                settled={**settled, "implementation": implementation},
                windows={**windows, "flip": flip},
                top_k=top_k,
                batch_size=batch_size,
                report=report,
            )
        checkpoint = Checkpoint.open(path, config=config)
    else:
        raise ValueError(
            f"model must be a checkpoint; got {type(model).__name__}. A model in memory goes into "
            "natjax.pipelines.ImageClassification(model, processor), ImageFeatureExtraction, ImageSegmentation or "
            "ObjectDetection."
        )
    _check_kind(task, checkpoint)
    options: dict[str, Any] = {"dtype": dtype, "implementation": implementation}
    net: Any
    make: Callable[..., Any]
    if task == "image-classification":
        net = models.NatForImageClassification.from_pretrained(checkpoint, **options)
        if not net.config.num_labels or net.config.problem_type == "regression":
            raise CheckpointError(
                f"{path}: the model has no classes to tell apart; image-feature-extraction (`natjax features`) may be "
                "of use."
            )
        make = functools.partial(ImageClassification, top_k=top_k)
    elif task == "image-segmentation":
        net = models.UperNetForSemanticSegmentation.from_pretrained(checkpoint, **options)
        make = functools.partial(ImageSegmentation, **{**windows, "flip": flip})
    elif task == "object-detection":
        net = DETECTORS[checkpoint.config.model_type].from_pretrained(checkpoint, **options)
        objects = {"threshold": threshold, "top_k": top_k, "masks": masks, "size_divisor": size_divisor}
        make = functools.partial(ObjectDetection, **objects)
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
        processor = load_processor(checkpoint, report or warn)
    if full_size:
        processor = dataclasses.replace(processor, do_resize=False, do_center_crop=False)
    if sharding is not None:
        make = functools.partial(make, sharding=sharding)
    return make(net, processor, batch_size=batch_size, report=report)


def _check_arguments(batch_size: Any, top_k: Any, dtype: Any, implementation: Any) -> None:
    """Refuses arguments before a checkpoint is read for them.

    Raises:
        ValueError: one is impossible.
    """
    check_count("batch_size", batch_size)
    if top_k is not None:
        check_count("top_k", top_k, " or None")
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


def _check_kind(task: str, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint of another kind than a task needs, before its weights are loaded.

    Raises:
        CheckpointError: it is one of dense prediction and the task is another, or the other way round.
    """
    config = checkpoint.config
    own = next((name for name, dense in _DENSE.items() if isinstance(config, dense.config)), None)
    if own is not None and own != task:
        raise CheckpointError(
            f"{checkpoint.path}: the model is a {config.title}, which {_DENSE[own].does}; use it with {own} "
            f"(`natjax {_DENSE[own].command}`) instead of {task}."
        )
    if own is None and task in _DENSE:
        raise CheckpointError(
            f"{checkpoint.path}: the model has no {_DENSE[task].heads}; {task} needs {_DENSE[task].needed}. With this one, "
            "image-classification (`natjax classify`) or image-feature-extraction (`natjax features`) may be of use."
        )


def _stage_names(stages: str | Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the stages that `stages` means, in the order of the model.

    Raises:
        ValueError: there is none, or it names others.
    """
    asked = known if stages == "all" else (stages,) if isinstance(stages, str) else stages
    if not isinstance(asked, Iterable) or not (asked := tuple(asked)) or not set(asked) <= set(known):
        raise ValueError(f"stages must be 'all' or of {', '.join(known)}; got {stages!r}.")
    return tuple(name for name in known if name in asked)
