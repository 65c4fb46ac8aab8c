"""What a run starts from: random weights or a checkpoint, and the preprocessing of images that follows from it.

What a recipe leaves open (None) of image size, crop, interpolation, mean and standard deviation, the checkpoint's image processor
decides: a model sees images in training as those it knows. With random weights it is ImageNet's evaluation.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from natjax.configuration import PROCESSOR_NAME, NatConfig
from natjax.errors import CheckpointError
from natjax.hub import locate, locate_preset
from natjax.image_processing import NatImageProcessor
from natjax.labels import composed
from natjax.presets import PRESETS, get_config
from natjax.processors import default_processor, own_processor
from natjax.text import counted
from natjax_convert import Checkpoint
from natjax_train.recipe import IMAGE_FIELDS, Recipe

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_OF_PROCESSOR = tuple(name for name in IMAGE_FIELDS if name != "crop")  # crop is of training alone

_FLAGS = {  # that say what an image processor does not
    "image_size": "--image-size N",
    "eval_crop": "--eval-crop true (or false)",
    "crop_pct": "--crop-pct P",
    "interpolation": "--interpolation bicubic (or bilinear)",
    "image_mean": "--image-mean M",
    "image_std": "--image-std S",
}


def open_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """Returns the checkpoint that a recipe's model starts from, or None where its weights are random.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if recipe.has_random_weights:
        return None
    is_preset = recipe.model in PRESETS  # not a folder of that name, such as the run's own
    return Checkpoint.open(locate_preset(recipe.model) if is_preset else locate(recipe.model))


def architecture(recipe: Recipe, checkpoint: Checkpoint | None) -> NatConfig:
    """Returns the configuration of the model that a recipe starts from, before what the recipe changes."""
    if checkpoint is not None:
        return checkpoint.config
    return NatConfig() if recipe.model == "custom" else get_config(recipe.model)


def check_channels(recipe: Recipe, channels: int) -> None:
    """Checks that a recipe normalises images of as many channels as the model takes.

    Raises:
        ValueError: it does not.
    """
    if recipe.image_mean and len(recipe.image_mean) != channels:
        given = len(recipe.image_mean)
        either = f'add "num_channels": {given} to --model-config, or ' if given in (1, 3) else ""
        raise ValueError(
            f"image_mean must have one number for each of the model's {counted(channels, 'channel')}; got "
            f"{recipe.image_mean}: {either}give --image-mean and --image-std with {channels}."
        )


def is_resolved(recipe: Recipe) -> bool:
    """Returns whether a recipe leaves nothing open, as one that a run has saved."""
    # Recipes of natjax 0.1 have no eval_crop, which follows crop.
    return all(getattr(recipe, name) is not None for name in IMAGE_FIELDS if name != "eval_crop")


def resolved(recipe: Recipe) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Returns side, mean and standard deviation of the images of a recipe that leaves none of them open.

    Raises:
        ValueError: it leaves one open.
    """
    if recipe.image_size is None or recipe.image_mean is None or recipe.image_std is None:
        raise ValueError("The recipe leaves image_size, image_mean or image_std open.")
    return recipe.image_size, recipe.image_mean, recipe.image_std


def resolve(recipe: Recipe) -> tuple[Recipe, str]:
    """Returns a recipe with what it leaves open decided, and in words where the preprocessing is from.

    Raises:
        CheckpointError: there is no such checkpoint, or its image processor does what training cannot do.
        ValueError: the recipe's fields do not fit the model.
    """
    checkpoint = open_checkpoint(recipe)
    config = architecture(recipe, checkpoint)
    num_channels = recipe.model_config.get("num_channels", config.num_channels)
    own = None if checkpoint is None else _of_checkpoint(checkpoint, is_resolved(recipe))
    default = default_processor(config.trunk.replace(num_channels=num_channels))
    if default is None:
        raise ValueError(f"Images have 1 or 3 channels; the model takes {num_channels}.")
    usual = fields_of(default)
    found = usual if own is None else own
    crop = True if recipe.crop is None else recipe.crop
    eval_crop = recipe.eval_crop if recipe.eval_crop is not None else recipe.crop
    if eval_crop is None and recipe.crop_pct is not None and recipe.crop_pct < 1:
        eval_crop = True  # who says how much evaluation is to see wants it to crop
    values: dict[str, Any] = {"crop": crop, "eval_crop": eval_crop}
    for name in _OF_PROCESSOR:
        given = eval_crop if name == "eval_crop" else getattr(recipe, name)
        values[name] = found[name] if given is None else given
    if not values["eval_crop"] and recipe.crop_pct is None:
        values["crop_pct"] = 1.0
    elif values["crop_pct"] is None:  # of a checkpoint that crops nothing
        values["crop_pct"] = usual["crop_pct"]
    impossible = {name: str(value) for name, value in values.items() if isinstance(value, _Impossible)}
    if impossible:
        flags = " ".join(_FLAGS[name] for name in _FLAGS if name in impossible)
        reasons = " and ".join(dict.fromkeys(impossible.values()))
        raise CheckpointError(
            f"{recipe.model}: its {PROCESSOR_NAME} {reasons}. Say how to prepare images instead: {flags}."
        )
    return dataclasses.replace(recipe, **values), _words(recipe, checkpoint, own, values)


def origin(recipe: Recipe, config: Any, kind: str = "classifier") -> str:
    """Returns in words where the weights of a run's model are from.

    Args:
        recipe: the run's.
        config: the model's, with the classes of the data.
        kind: of checkpoints whose heads it can keep.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    checkpoint, name = open_checkpoint(recipe), recipe.model
    is_both = name in PRESETS and os.path.exists(name)
    which = f"{name} (the preset, not the {'folder' if os.path.isdir(name) else 'file'} ./{name})"
    if checkpoint is None:
        return f"random weights: {which if is_both else name}"
    is_like = type(checkpoint.config) is type(config)  # a cascade and a Mask R-CNN are of one kind
    if is_like and keeps_head(checkpoint, config.id2label or {}, kind):
        head = "head kept"
    elif is_like and checkpoint.kind == kind and (before := checkpoint.config.num_labels):
        head = f"head replaced ({before} -> {config.num_labels})"
    else:
        head = f"new head ({config.num_labels})"
    return f"{head}; weights of {which}" if is_both else head


def keeps_head(checkpoint: Checkpoint, id2label: Mapping[int, str], kind: str = "classifier") -> bool:
    """Returns whether a checkpoint of this kind has a head for exactly these classes; names are compared in composed form."""
    own, wanted = ({i: composed(name) for i, name in (x or {}).items()} for x in (checkpoint.config.id2label, id2label))
    return checkpoint.kind == kind and own == wanted


@dataclasses.dataclass(frozen=True)
class _Impossible:
    """Stands for a field's value where an image processor does what training cannot, and says what that is."""

    what: str

    def __str__(self) -> str:
        return self.what


def _of_checkpoint(checkpoint: Checkpoint, lenient: bool) -> dict[str, Any] | None:
    """Returns the fields that a checkpoint's image processor stands for; None where there is none.

    Where nothing is to be taken from it (`lenient`), one that cannot be read counts as none.
    """
    try:
        processor = own_processor(checkpoint)
    except CheckpointError:
        if lenient:
            return None
        raise
    return None if processor is None else fields_of(processor)


def fields_of(processor: NatImageProcessor) -> dict[str, Any]:
    """Returns the fields of a recipe that an image processor stands for.

    A value is None where it does not matter, and an object whose text says why where training cannot do the same.
    """
    found = _geometry(processor)
    found["interpolation"] = _INTERPOLATIONS.get(
        processor.resample, _Impossible("resamples neither bilinearly nor bicubically")
    )
    try:
        found["image_mean"], found["image_std"] = normalisation(processor)
    except ValueError as error:
        found["image_mean"] = found["image_std"] = _Impossible(str(error))
    return found


def normalisation(processor: NatImageProcessor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, of pixels 0..1, that do what a processor does to pixels 0..255.

    Whatever a processor multiplies pixels with, x * factor normalised is (x / 255 - mean / scale) / (std / scale) where the
    scale is 255 * factor.

    Raises:
        ValueError: it makes all pixels alike.
    """
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    if scale == 0:
        raise ValueError("multiplies pixels with 0")
    if math.isclose(scale, 1, rel_tol=1e-5):  # 0.00392157 is 1 / 255 as some write it
        scale = 1.0
    channels = processor.num_channels
    of_mean, of_std = ((np.broadcast_to(x, channels) / scale).tolist() for x in (mean, std))
    return tuple(of_mean), tuple(of_std)


def _geometry(processor: NatImageProcessor) -> dict[str, Any]:
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    if not processor.do_resize:
        why = _Impossible("does not resize images")
        return {"image_size": why, "eval_crop": why, "crop_pct": None}
    if edge := size.get("shortest_edge"):
        if crop is None:
            why = _Impossible("keeps the aspect ratio of images, and a batch of training needs one size")
            return {"image_size": why, "eval_crop": why, "crop_pct": None}
        if crop["height"] != crop["width"]:
            return {"image_size": _not_square(crop), "eval_crop": True, "crop_pct": None}
        side = crop["height"]
        pct = _part(side, edge) if side <= edge else _Impossible(f"crops {side} pixels out of {edge}")
        return {"image_size": side, "eval_crop": True, "crop_pct": pct}
    if crop is not None and crop != size:
        why = _Impossible("resizes to a fixed size and then crops")
        return {"image_size": why, "eval_crop": why, "crop_pct": None}
    side = size["height"] if size["height"] == size["width"] else _not_square(size)
    return {"image_size": side, "eval_crop": False, "crop_pct": None}


def _not_square(size: Mapping[str, int]) -> _Impossible:
    return _Impossible(
        f"makes images of {size['height']} x {size['width']} pixels (height x width), and training makes squares"
    )


def _part(side: int, edge: int) -> float:
    """Returns the part for which `math.floor(side / part)` is the edge."""
    part = side / edge
    while math.floor(side / part) < edge:
        part = math.nextafter(part, 0)
    return part


def _words(recipe: Recipe, checkpoint: Checkpoint | None, own: dict[str, Any] | None, values: dict[str, Any]) -> str:
    if own is None:
        left_open = not is_resolved(recipe)
        if not left_open:
            return "preprocessing from the recipe"
        why = "" if checkpoint is None else f", as the checkpoint has no {PROCESSOR_NAME}"
        return f"preprocessing as for ImageNet{why}"
    differing = [name for name in _OF_PROCESSOR if own[name] is not None and own[name] != values[name]]
    if not differing:
        return "preprocessing from the checkpoint"
    if values["eval_crop"] and own["crop_pct"] is None:  # of a checkpoint that crops nothing
        differing.append(f"crop_pct {values['crop_pct']:g}")
    return f"preprocessing from the checkpoint except {', '.join(differing)}, which the recipe says"
