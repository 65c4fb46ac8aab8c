"""Recipes: everything that decides a training run, in one frozen dataclass. A recipe determines a run bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from natjax.configuration import NatConfig, check_fields
from natjax_train.augment import policy

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run. Fractions are 0 to 1, rates are per step, lengths of the schedule are in epochs.

    Attributes:
        model: a preset's name for random weights (`natjax list`); "custom" for random weights of the architecture
            `model_config`; else a checkpoint, local or of the Hugging Face Hub, to start from.
        model_config: fields of `NatConfig` that differ from the model's own.
        image_size: side of the square images.
        epochs: length of the run, without the cool-down.
        batch_size: images of a step, over all devices and micro-batches.
        learning_rate: peak, for `base_batch_size` images; scales linearly with `batch_size`.
        base_batch_size: what `learning_rate` is for.
        schedule: "cosine" or "linear": how the rate falls from its peak.
        warmup_epochs: linear rise from `warmup_learning_rate`, part of `epochs`.
        warmup_learning_rate: the first step's.
        cooldown_epochs: at `min_learning_rate`, after `epochs`.
        min_learning_rate: where the schedule ends.
        weight_decay: decoupled; none on biases, norms, positional biases and layer scales.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
        clip_norm: largest norm of the gradients; None is off.
        ema_decay: of the averaged weights that evaluation and export then use; None is off.
        layer_decay: factor of the learning rate per layer below the head; 1 is off.
        freeze_backbone: whether the classifier alone is trained.
        accumulate: micro-batches of a step.
        drop_path_rate: stochastic depth; None is the model's own.
        label_smoothing: mass that goes to all classes.
        mixup: parameter of mixup's Beta distribution; 0 is off.
        cutmix: the same of cutmix.
        mixup_prob: probability that a batch is mixed at all.
        mixup_switch_prob: probability of cutmix where both are on.
        erasing: probability of random erasing.
        auto_augment: "rand-m9-mstd0.5-inc1" and its like; empty is off.
        color_jitter: strength where `auto_augment` is off.
        horizontal_flip: probability.
        crop: whether to train on random resized crops; else images are resized whole.
        crop_scale: least and greatest area of a crop.
        crop_ratio: least and greatest aspect ratio of a crop.
        affine: strength of small random rotations, shears, scales and shifts; 0 is off, 1 suits digits.
        train_interpolation: how training resizes and RandAugment resamples: "bicubic", "bilinear", or of the two a "random" one
            each time, timm's default.
        interpolation: how evaluation resizes: "bicubic" or "bilinear".
        crop_pct: part of the resized image that evaluation sees.
        image_mean: per channel, of pixels 0..1.
        image_std: per channel.
        dtype: compute dtype, "float32" or "bfloat16"; parameters are float32.
        remat: whether activations are computed again in the backward pass, for memory.
        mesh: "data=2,fsdp=4"; empty is all devices along data.
        seed: of weights, order, augmentation and dropouts.
        workers: of the input pipeline, per process; 0 reads in the main thread.
        worker_kind: "threads" or "processes".
        log_every: steps between lines of metrics.
        eval_every: epochs between evaluations.
        save_every: steps between checkpoints, beside one per evaluation; 0 is none.
        keep: newest checkpoints to keep, beside the best one.
        select: which step's model the run exports: "best" by top-1 on the validation split, or the "last", whose accuracy there
            is then no choice among many.
        skip_nonfinite: whether steps with a NaN or infinite loss or gradient are left out instead of ending the run.
        max_corrupt: unreadable images that are skipped before the run ends.

    Raises:
        ValueError: a field is impossible; the message names field, value and expectation.
    """

    model: str
    model_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int = 224
    epochs: float = 300.0
    batch_size: int = 1024
    learning_rate: float = 1e-3
    base_batch_size: int = 1024
    schedule: str = "cosine"
    warmup_epochs: float = 20.0
    warmup_learning_rate: float = 1e-6
    cooldown_epochs: float = 10.0
    min_learning_rate: float = 5e-6
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float | None = 5.0
    ema_decay: float | None = None
    layer_decay: float = 1.0
    freeze_backbone: bool = False
    accumulate: int = 1
    drop_path_rate: float | None = None
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    erasing: float = 0.25
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.0
    horizontal_flip: float = 0.5
    crop: bool = True
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    affine: float = 0.0
    train_interpolation: str = "random"
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    dtype: str = "float32"
    remat: bool = False
    mesh: str = ""
    seed: int = 0
    workers: int = 8
    worker_kind: str = "threads"
    log_every: int = 50
    eval_every: float = 1.0
    save_every: int = 1000
    keep: int = 2
    select: str = "best"
    skip_nonfinite: bool = False
    max_corrupt: int = 100

    def __post_init__(self):
        hints = field_types()
        for name, kind in hints.items():
            object.__setattr__(self, name, _as_type(name, kind, getattr(self, name)))
        for name in _POSITIVE:
            _check(getattr(self, name) > 0, self, name, "more than 0")
        for name, kind in hints.items():
            if kind in (int, float) and name not in _POSITIVE:
                _check(getattr(self, name) >= 0, self, name, "at least 0")
        for name in _FRACTIONS:
            value = getattr(self, name)
            _check(value is None or 0 <= value <= 1, self, name, "between 0 and 1")
        for name, choices in _CHOICES.items():
            _check(getattr(self, name) in choices, self, name, " or ".join(map(repr, choices)))
        for name in ("crop_scale", "crop_ratio"):
            value = getattr(self, name)
            _check(len(value) == 2 and 0 < value[0] <= value[1], self, name, "two numbers, 0 < least <= greatest")
        _check(self.clip_norm is None or self.clip_norm > 0, self, "clip_norm", "none or more than 0")
        _check(self.warmup_epochs <= self.epochs, self, "warmup_epochs", f"at most epochs ({self.epochs:g})")
        check_fields(NatConfig, self.model_config)
        if self.auto_augment:
            policy.parse(self.auto_augment)  # raises where it means nothing
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size ({self.batch_size}); got {self.accumulate}.")
        if len(self.image_mean) != len(self.image_std) or 0 in self.image_std:
            raise ValueError(
                "image_mean and image_std must have one number per channel, the latter none that is 0; "
                f"got {self.image_mean} and {self.image_std}."
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after warm-up, for this batch size."""
        return self.learning_rate * self.batch_size / self.base_batch_size

    def to_json(self) -> str:
        """Returns the recipe as a JSON document that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is no JSON object of a recipe's fields.
        """
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"A recipe is a JSON object; got {type(document).__name__}.")
        check_fields(cls, document)
        if "model" not in document:
            raise ValueError("A recipe needs a model; got none.")
        return cls(**document)


_POSITIVE = (
    "image_size",
    "epochs",
    "batch_size",
    "base_batch_size",
    "accumulate",
    "learning_rate",
    "log_every",
    "keep",
    "eval_every",
    "crop_pct",
)
_FRACTIONS = (
    "beta1",
    "beta2",
    "ema_decay",
    "layer_decay",
    "drop_path_rate",
    "label_smoothing",
    "mixup_prob",
    "mixup_switch_prob",
    "erasing",
    "color_jitter",
    "horizontal_flip",
    "crop_pct",
)
_CHOICES = {
    "schedule": ("cosine", "linear"),
    "train_interpolation": ("random", "bicubic", "bilinear"),
    "interpolation": ("bicubic", "bilinear"),
    "dtype": ("float32", "bfloat16"),
    "select": ("best", "last"),
    "worker_kind": ("threads", "processes"),
}


def field_types() -> dict[str, Any]:
    """Returns the type of every field of a recipe, by name."""
    return typing.get_type_hints(Recipe)


def override(recipe: Recipe, changes: Mapping[str, str]) -> Recipe:
    """Returns the recipe with fields changed, given as text: "none", "true", "0.1", "0.08,1", '{"kernel_size": 5}'.

    Raises:
        ValueError: there is no such field, or its text does not mean what the field takes.
    """
    check_fields(Recipe, changes)
    hints = field_types()
    return dataclasses.replace(recipe, **{name: _parse(name, hints[name], text) for name, text in changes.items()})


def _check(fine: bool, recipe: Recipe, name: str, expected: str) -> None:
    if not fine:
        raise ValueError(f"{name} must be {expected}; got {getattr(recipe, name)!r}.")


def _as_type(name: str, kind: Any, value: Any) -> Any:
    """Checks a value; whole numbers become floats and lists become tuples where those are meant."""
    if value is None and isinstance(kind, types.UnionType):
        return None
    plain = float if isinstance(kind, types.UnionType) else kind
    if plain is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if plain in (int, bool, str) and type(value) is plain:
        return value
    if typing.get_origin(plain) is tuple and isinstance(value, (list, tuple)) and value:
        return tuple(_as_type(name, float, entry) for entry in value)
    if typing.get_origin(plain) is Mapping and isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"{name} must be {_MEANING[plain]}; got {value!r}.")


def _parse(name: str, kind: Any, text: str) -> Any:
    if isinstance(kind, types.UnionType):
        return None if text.lower() == "none" else _parse(name, float, text)
    try:
        if kind is str:
            return text
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) is tuple:
            return tuple(float(entry) for entry in text.split(","))
        return json.loads(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name} must be {_MEANING[kind]}; got {text!r}.") from None


_MEANING: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple[float, ...]: "numbers with commas between",
    Mapping[str, Any]: "a JSON object",
}
