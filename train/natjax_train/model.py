"""The model a run starts from, and the folder it ends as: Hugging Face's format, which `natjax classify` loads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from natjax.configuration import NatConfig
from natjax.image_processing import NatImageProcessor
from natjax.models import NatForImageClassification
from natjax.presets import PRESETS, get_config
from natjax_train.recipe import Recipe


def initial_model(recipe: Recipe, class_names: Sequence[str]) -> NatForImageClassification:
    """Returns the recipe's model for these classes. A checkpoint keeps its classifier where its classes are the same.

    Raises:
        CheckpointError: there is no such checkpoint.
        ValueError: the recipe's fields do not fit the model.
    """
    options: dict[str, Any] = {"dtype": _dtype(recipe), "rngs": nnx.Rngs(recipe.seed)}
    changes, labels = _changes(recipe), {"id2label": dict(enumerate(class_names))}
    if recipe.model == "custom":
        model = NatForImageClassification(NatConfig(**changes, **labels), **options)
    elif recipe.model in PRESETS:
        model = NatForImageClassification(get_config(recipe.model, **changes, **labels), **options)
    else:
        options["resize_biases"] = True
        model = NatForImageClassification.from_pretrained(recipe.model, **changes, **options)
        if model.config.id2label != labels["id2label"]:
            model = NatForImageClassification.from_pretrained(
                recipe.model, **changes, **labels, **options, replace_head=True
            )
    if len(recipe.image_mean) != model.config.num_channels:
        raise ValueError(
            f"image_mean must have one number for each of the model's {model.config.num_channels} channel(s); "
            f"got {recipe.image_mean}."
        )
    return model


def resumed_model(recipe: Recipe, class_names: Sequence[str], config: NatConfig) -> NatForImageClassification:
    """Returns the model of a run that goes on, without weights: those are in its checkpoints, wherever it once got them from.

    Raises:
        ValueError: the data have other classes than the run.
    """
    names = list((config.id2label or {}).values())
    if names != list(class_names):
        raise ValueError(
            f"The data's {len(class_names)} classes ({', '.join(class_names[:5])}, ...) are not the run's {len(names)} "
            f"({', '.join(names[:5])}, ...): resume with the same data, or choose another folder for another run."
        )
    config = config.replace(**_changes(recipe))
    return nnx.eval_shape(lambda: NatForImageClassification(config, dtype=_dtype(recipe), rngs=nnx.Rngs(0)))


def _dtype(recipe: Recipe) -> Any:
    return jnp.bfloat16 if recipe.dtype == "bfloat16" else None


def _changes(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of the model's config that the recipe decides."""
    drop_path = {} if recipe.drop_path_rate is None else {"drop_path_rate": recipe.drop_path_rate}
    return dict(recipe.model_config) | drop_path


def split_model(model: NatForImageClassification, *, remat: bool = False) -> tuple[Any, Any, Any]:
    """Returns the graphdefs of the training and of the evaluation view, and the params as a nested dict."""
    graphdef, _ = nnx.split(nnx.view(model, deterministic=False, remat=remat))
    evaluation, state = nnx.split(model)
    return graphdef, evaluation, nnx.to_pure_dict(state)


def export(graphdef: Any, params: Any, processor: NatImageProcessor, directory: str | os.PathLike) -> None:
    """Saves the model with these params, and the image processor that prepared the images of the run's evaluations.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    nnx.merge(graphdef, params).save_pretrained(directory, processor=processor)
