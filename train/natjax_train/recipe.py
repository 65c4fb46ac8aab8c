"""Recipes: everything that decides a training run, in one frozen dataclass. A recipe determines a run bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

from natjax.configuration import MaskRcnnConfig, NatConfig, UperNetConfig, check_fields
from natjax.presets import PRESETS
from natjax_train import fields
from natjax_train.augment.settings import BoxSettings, DeviceSettings, EvalSettings, HostSettings, MaskSettings
from natjax_train.fields import setting
from natjax_train.tasks import TASKS

# What a recipe may leave open: None stands for what the checkpoint's image processor does.
IMAGE_FIELDS = ("image_size", "crop", "eval_crop", "crop_pct", "interpolation", "image_mean", "image_std")
_DEFAULT = "(default: as the checkpoint's image processor, or ImageNet's)"
_HEADS = {"segmentation": UperNetConfig, "detection": MaskRcnnConfig}  # whose fields a model has beside its backbone's
_NO_PATHS = {"custom", *PRESETS}  # what `model` may be that is no path, whatever lies in the folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(HostSettings, DeviceSettings, EvalSettings, MaskSettings, BoxSettings):
    """All settings of a run; every field's meaning is the help text in its metadata.

    Fractions are 0 to 1, rates are per step, lengths of the schedule are in epochs.

    Raises:
        ValueError: a field is impossible; the message names field, value and expectation.
    """

    model: str = setting(
        "a preset's name (natjax list), for random weights or, where pretrained is true, its published ones; "
        '"custom" for random weights of the architecture model_config; else a checkpoint to start from: a path, a run\'s '
        "folder, an id of the Hugging Face Hub"
    )
    pretrained: bool = setting("whether a preset's name stands for its published weights", False)
    model_config: Mapping[str, Any] = setting(
        "fields of NatConfig (and UperNetConfig or MaskRcnnConfig) that differ from the model's own", {}
    )
    task: str = setting(f"what is learnt: {' or '.join(TASKS)}", "classification")
    val_fraction: float | None = setting(
        "part of each class's images that is held out for validation, of data without val/; none is off", None, "part"
    )
    classes: str | None = setting(
        "segmentation: names of the classes: a file with one a line, ade20k or cityscapes; none is classes.txt in the data",
        None,
    )
    reduce_zero_label: bool = setting(
        "segmentation: whether 0 in masks is ignored and 1 is the first class, as in ADE20K", False
    )
    loss_average: str = setting(
        "segmentation: whether ignored pixels count as a loss of 0, as in mmsegmentation, or not at all",
        "all",
        choices=("all", "valid"),
    )
    detector: str | None = setting(
        "detection: the heads; none is those of the model, and mask_rcnn on a backbone",
        None,
        choices=("mask_rcnn", "cascade_mask_rcnn"),
    )
    # Where one of these is None, the checkpoint's image processor decides, and with random weights ImageNet's evaluation: see
    # `start.resolve`. The recipe that a run saves has them all.
    image_size: int | None = setting(f"side of the square images {_DEFAULT}", None, "positive")
    crop: bool | None = setting(
        "whether to train on random resized crops; else images are resized whole; none is true, whatever evaluation does",
        None,
    )
    eval_crop: bool | None = setting(
        "whether evaluation crops the middle, else resizes images whole; default: as crop, or without that as the "
        "checkpoint's image processor, or ImageNet's",
        None,
    )
    crop_pct: float | None = setting(
        f"part of the resized image that evaluation sees {_DEFAULT}", None, "positive", "fraction"
    )
    interpolation: str | None = setting(f"how evaluation resizes {_DEFAULT}", None, choices=("bicubic", "bilinear"))
    image_mean: tuple[float, ...] | None = setting(f"per channel, of pixels 0..1 {_DEFAULT}", None)
    image_std: tuple[float, ...] | None = setting(f"per channel {_DEFAULT}", None)
    epochs: float = setting("length of the run, without the cool-down", 300.0, "positive")
    steps: int | None = setting(
        "length of the run in steps, cool-down included, whatever the data; epochs then only says which part of it the lengths "
        "in epochs are; none is as epochs says",
        None,
        "positive",
    )
    batch_size: int = setting("images of a step, over all devices and micro-batches", 1024, "positive")
    learning_rate: float = setting(
        "peak, for base_batch_size images; scales linearly with batch_size", 1e-3, "positive"
    )
    base_batch_size: int = setting("what learning_rate is for", 1024, "positive")
    schedule: str = setting(
        "how the rate falls from its peak; poly is mmcv's line, step is mmcv's tenth at each of the milestones",
        "cosine",
        choices=("cosine", "linear", "poly", "step"),
    )
    milestones: tuple[float, ...] | None = setting(
        "epochs, of the schedule step, from which on the rate is a tenth of what it was", None
    )
    warmup_epochs: float = setting("linear rise from warmup_learning_rate, part of epochs", 20.0)
    warmup_learning_rate: float = setting("learning rate of the first step", 1e-6)
    cooldown_epochs: float = setting("epochs at min_learning_rate, after epochs", 10.0)
    min_learning_rate: float = setting("learning rate where the schedule ends", 5e-6)
    weight_decay: float = setting("decoupled", 0.05)
    decayed: str = setting(
        "which parameters decay: the kernels of linear layers and convolutions; or, as in the authors' segmentation, all but the "
        "backbone's norms and positional biases",
        "kernels",
        choices=("kernels", "all but norms"),
    )
    beta1: float = setting("decay of AdamW's first moment", 0.9, "fraction")
    beta2: float = setting("decay of AdamW's second moment", 0.999, "fraction")
    clip_norm: float | None = setting("largest norm of the gradients; none is off", 5.0, "positive")
    ema_decay: float | None = setting(
        "decay of the averages of weights and batch statistics that evaluation and export then use; none is off",
        None,
        "fraction",
    )
    layer_decay: float = setting("factor of the learning rate per layer below the head; 1 is off", 1.0, "fraction")
    freeze_backbone: bool = setting("whether the head alone is trained", False)
    accumulate: int = setting("micro-batches of a step", 1, "positive")
    drop_path_rate: float | None = setting("stochastic depth; none is the model's own", None, "fraction")
    dtype: str = setting("compute dtype; parameters are float32", "float32", choices=("float32", "bfloat16"))
    remat: bool = setting("whether activations are computed again in the backward pass, for memory", False)
    mesh: str = setting('devices, as in "data=2,fsdp=4" or "data=2,space=4"; empty is all devices along data', "")
    seed: int = setting("of weights, order, augmentation and dropouts", 0)
    workers: int = setting("workers of the input pipeline, per process; 0 reads in the main thread", 8)
    worker_kind: str = setting("what the workers are", "threads", choices=("threads", "processes"))
    log_every: int = setting("steps between lines of metrics", 50, "positive")
    eval_every: float = setting("epochs between evaluations", 1.0, "positive")
    save_every: int = setting("steps between checkpoints, beside one per evaluation; 0 is none", 1000)
    keep: int = setting("newest checkpoints to keep, beside the best one", 2, "positive")
    select: str = setting(
        "which step's model the run exports, the best by the task's score on the validation split, or the last, whose score is "
        "then no choice among many",
        "best",
        choices=("best", "last"),
    )
    skip_nonfinite: bool = setting(
        "whether steps with a NaN or infinite loss, gradient or batch statistic are left out instead of ending the run",
        False,
    )
    max_corrupt: int = setting("unreadable images that are skipped before the run ends", 100)

    def __post_init__(self):
        super().__post_init__()
        heads = _HEADS.get(self.task)
        of_heads = set() if heads is None else {field.name for field in dataclasses.fields(heads)}
        check_fields(NatConfig, [name for name in self.model_config if name not in of_heads])
        if self.task not in TASKS:
            raise ValueError(f"task must be {' or '.join(map(repr, TASKS))}; got {self.task!r}.")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs must be at most epochs ({self.epochs:g}); got {self.warmup_epochs!r}.")
        self._check_milestones()
        if self.task == "detection" and self.scale_range[1] > 1:
            raise ValueError(
                "scale_range of detection is part of image_size, and must be at most 1; got "
                f"{list(self.scale_range)}: begin with --recipe finetune_boxes, or give the authors' --scale-range 0.6,1 "
                "--longest-edge 1333."
            )
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size ({self.batch_size}); got {self.accumulate}.")

    def _check_milestones(self) -> None:
        if self.schedule == "step" and self.milestones is None:
            raise ValueError("The schedule step needs milestones: give --milestones, as in 27,33 of 36 epochs.")
        if self.milestones is not None and self.schedule != "step":
            raise ValueError(
                f"milestones are of the schedule step; got {list(self.milestones)} and {self.schedule}: give --schedule step "
                "or --milestones none."
            )
        marks = (0.0, *(self.milestones or ()), self.epochs)
        if any(one >= next_ for one, next_ in itertools.pairwise(marks)):
            raise ValueError(
                f"milestones must rise, from more than 0 to less than epochs ({self.epochs:g}); got {list(marks[1:-1])}."
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up, for this batch size."""
        return self.learning_rate * self.batch_size / self.base_batch_size

    @property
    def has_random_weights(self) -> bool:
        """Whether the model starts from random weights; else it starts from a checkpoint."""
        return self.model == "custom" or (self.model in PRESETS and not self.pretrained)

    def with_absolute_path(self) -> Recipe:
        """Returns the recipe with the path of a checkpoint that is here made absolute.

        It says the same from any folder, and is no id of the Hugging Face Hub once the checkpoint is gone.
        """
        is_path = self.model not in _NO_PATHS and os.path.exists(self.model)
        return dataclasses.replace(self, model=os.path.abspath(self.model)) if is_path else self

    def to_json(self) -> str:
        """Returns the recipe as a JSON document that `from_json` reads."""
        return json.dumps({name: getattr(self, name) for name in field_help()}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads what `to_json` wrote. What a document leaves out has its default, the warm-up one that fits its epochs.

        Raises:
            ValueError: it is no JSON object of a recipe's fields.
        """
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"A recipe is a JSON object; got {type(document).__name__}.")
        check_fields(cls, document)
        if "model" not in document:
            raise ValueError("A recipe needs a model; got none.")
        usual: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        lengths = (usual[name] for name in ("epochs", "warmup_epochs", "milestones"))
        return cls(**_fitting_lengths(document, *lengths))


def is_same_model(one: str, other: str) -> bool:
    """Returns whether two recipes' `model` mean the same: a path may be relative or absolute."""
    return one == other or (_NO_PATHS.isdisjoint((one, other)) and os.path.abspath(one) == os.path.abspath(other))


def field_help() -> dict[str, str]:
    """Returns what every field of a recipe means, by name: the run's own fields first, then those of augmentation."""
    texts = fields.help_texts(Recipe)
    own = list(
        Recipe.__annotations__
    )  # in the order they are written down; what is redeclared has its place among them
    return {name: texts[name] for name in dict.fromkeys((*own, *texts))}


def override(recipe: Recipe, changes: Mapping[str, str]) -> Recipe:
    """Returns the recipe with fields changed, given as text: "none", "true", "0.1", "0.08,1", '{"kernel_size": 5}'.

    Where `epochs` is changed to less than the warm-up or a milestone, which are not, these keep their share of the epochs.

    Raises:
        ValueError: there is no such field, or its text does not mean what the field takes.
    """
    check_fields(Recipe, changes)
    kinds = fields.field_types(Recipe)
    values = {name: fields.parse(name, kinds[name], text) for name, text in changes.items()}
    return dataclasses.replace(
        recipe, **_fitting_lengths(values, recipe.epochs, recipe.warmup_epochs, recipe.milestones)
    )


def _fitting_lengths(
    values: dict[str, Any], epochs: float, warmup_epochs: float, milestones: tuple[float, ...] | None
) -> dict[str, Any]:
    """Returns the values with a warm-up and milestones that fit into their epochs, where they say nothing of these.

    Args:
        values: fields of a recipe.
        epochs: the usual ones, of which those that do not fit keep their share.
        warmup_epochs: the usual ones.
        milestones: the usual ones.
    """
    length = values.get("epochs", epochs)
    if not isinstance(length, int | float) or length <= 0:
        return values
    fitting: dict[str, Any] = {}
    if length < warmup_epochs:
        fitting["warmup_epochs"] = length * warmup_epochs / epochs
    if milestones and length <= milestones[-1]:
        fitting["milestones"] = tuple(length * milestone / epochs for milestone in milestones)
    return fitting | values
