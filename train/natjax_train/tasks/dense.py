"""What tasks of dense prediction share: models with heads on the maps of a backbone, and what these start from."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
from flax import nnx

from natjax.configuration import DenseConfig, NatConfig
from natjax.models.base import DensePreTrainedModel
from natjax.models.create import class_of
from natjax.presets import IMAGENET_MEAN, IMAGENET_STD
from natjax.processors import own_processor
from natjax_train import start
from natjax_train.recipe import Recipe
from natjax_train.tasks.base import Task


class DenseTask(Task):
    """A task whose models are heads on a backbone."""

    backbone = "backbone"
    image_size: int  # where the recipe leaves it open
    crop: bool  # likewise

    @classmethod
    def resolve(cls, recipe: Recipe) -> tuple[Recipe, str]:
        """Returns a recipe with what it leaves open decided: mean and standard deviation are the checkpoint's, or ImageNet's."""
        checkpoint = start.open_checkpoint(recipe)
        own = None if checkpoint is None or start.is_resolved(recipe) else own_processor(checkpoint)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if own is None else start.normalisation(own)
        usual: dict[str, Any] = {"image_size": cls.image_size, "crop": cls.crop, "image_mean": mean, "image_std": std}
        usual |= {"eval_crop": False, "crop_pct": 1.0, "interpolation": "bilinear"}
        values = {name: value for name, value in usual.items() if getattr(recipe, name) is None}
        of = "the checkpoint" if own is not None and "image_mean" in values else "the recipe"
        return dataclasses.replace(recipe, **values), f"colours normalised as {of} says"

    def model_class(self, config: Any) -> type[DensePreTrainedModel]:
        """Returns the class of the run's model, given the configuration of what it starts from."""
        raise NotImplementedError

    def labels(self, config: Any) -> dict[str, Any]:
        """Returns the fields of the model's configuration that follow from the data's classes; config as in `model_class`."""
        return {"id2label": dict(enumerate(self._class_names))}

    def check_model(self, config: Any) -> None:
        """Checks that the recipe fits the model.

        Raises:
            ValueError: it does not.
        """
        start.check_channels(self.recipe, config.num_channels)

    def initial_model(self) -> Any:
        """Returns the recipe's model for these classes: a whole one, or its heads on the backbone that the recipe names.

        Raises:
            CheckpointError: there is no such checkpoint.
            ValueError: the recipe's fields do not fit the model.
        """
        recipe = self.recipe
        options: dict[str, Any] = {"dtype": _dtype(recipe), "rngs": nnx.Rngs(recipe.seed)}
        checkpoint = start.open_checkpoint(recipe)
        if checkpoint is None and recipe.model != "custom" and "backbone_config" in recipe.model_config:
            raise ValueError(
                f"model_config has a backbone_config, and the model is {recipe.model} with random weights: give --model custom "
                "for the former, or a checkpoint."
            )
        config = start.architecture(recipe, checkpoint)
        model_class, labels = self.model_class(config), self.labels(config)
        family = cast("type[DenseConfig]", model_class.config_class)
        has_heads = type(config) is family
        changes = _changes(recipe, None if recipe.model == "custom" else config.trunk, family)
        if checkpoint is None:
            if not has_heads:
                trunk = config.trunk.replace(out_features=config.trunk.stage_names[1:])
                config = family(backbone_config=trunk, num_labels=1)
            model = model_class(config.replace(**changes, **labels), **options)
        elif not (has_heads and checkpoint.kind == self.kind):
            options["resize_biases"] = True
            model = model_class.from_backbone(checkpoint, **changes, **labels, **options)
        else:
            if not start.keeps_head(checkpoint, labels["id2label"], self.kind):
                changes, options = changes | labels, options | {"replace_head": True}
            model = model_class.from_pretrained(checkpoint, **changes, **options)
        self.check_model(model.config)
        return model

    def resumed_model(self, config: Any) -> Any:
        """Returns the model of a resumed run, without weights: those are in its checkpoints.

        Raises:
            ValueError: the data have other classes than the run.
        """
        self.check_classes(config)
        recipe = self.recipe
        config = config.replace(**_changes(recipe, config.trunk, type(config)))
        self.check_model(config)
        return nnx.eval_shape(lambda: class_of(config)(config, dtype=_dtype(recipe), rngs=nnx.Rngs(0)))


def _dtype(recipe: Recipe) -> Any:
    return jnp.bfloat16 if recipe.dtype == "bfloat16" else None


def _changes(recipe: Recipe, trunk: NatConfig | None, family: type[DenseConfig]) -> dict[str, Any]:
    """Returns the fields of the model's config that the recipe decides.

    Args:
        recipe: the run's.
        trunk: the backbone that there is, of a checkpoint or a preset. A recipe's `backbone_config` then changes the entries that
            it has; without one it is the whole backbone.
        family: of the model's config.

    Raises:
        ValueError: its `backbone_config` is of another family.
    """
    drop_path = {} if recipe.drop_path_rate is None else {"drop_path_rate": recipe.drop_path_rate}
    changes: dict[str, Any] = dict(recipe.model_config) | drop_path
    if trunk is None or not isinstance(changes.get("backbone_config"), dict):
        return changes
    entries = dict(changes.pop("backbone_config"))
    of_trunk = entries.pop("model_type", trunk.model_type)
    if of_trunk not in trunk.model_types:
        raise ValueError(
            f"model_config has a backbone_config of model_type {of_trunk!r}, the backbone of {recipe.model} is of "
            f"{trunk.model_type!r}: give another model, or --model custom for random weights."
        )
    own = {field.name for field in dataclasses.fields(family)}  # a backbone's classes mean nothing here
    return {name: value for name, value in entries.items() if name not in own} | changes
