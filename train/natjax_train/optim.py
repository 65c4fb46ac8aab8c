"""The optimiser: AdamW, without decay on some of the parameters; the schedule of the learning rate;
layer-wise decay and frozen backbones as factors of it; averages of weights and statistics (EMA).

Parameters are the nested dicts of `NatForImageClassification`; the schedule is timm's, per step (what the papers trained with).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from natjax_convert.pieces import Parameter
from natjax_train.recipe import Recipe

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def total_steps(recipe: Recipe, steps_per_epoch: int | float) -> int:
    """Returns the steps of a run, cool-down included."""
    return max(1, round((recipe.epochs + recipe.cooldown_epochs) * steps_per_epoch))


def schedule_epoch(recipe: Recipe, steps_per_epoch: int) -> int | float:
    """Returns the steps of an epoch of the schedule: those of the data's, or those that make a run of `recipe.steps`."""
    return steps_per_epoch if recipe.steps is None else recipe.steps / (recipe.epochs + recipe.cooldown_epochs)


def learning_rate(recipe: Recipe, steps_per_epoch: int | float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """Returns the rate of a step, float32: linear warm-up, fall by cosine, line or steps, cool-down.

    The fall is a function of all of `epochs`. As in timm the warm-up hides its beginning; in "poly", a line too, and in "step" it
    is multiplied by the warm-up, as in mmcv.
    """
    peak, least = recipe.peak_learning_rate, recipe.min_learning_rate
    step = jnp.asarray(step, jnp.float32)
    fraction = jnp.minimum(step / (recipe.epochs * steps_per_epoch), 1.0)
    if recipe.schedule == "step":
        starts = [round(milestone * steps_per_epoch) for milestone in recipe.milestones or ()]
        fall = jnp.maximum(peak * 0.1 ** jnp.sum(step >= jnp.asarray(starts, jnp.float32)), least)
    else:
        height = (1 + jnp.cos(jnp.pi * fraction)) / 2 if recipe.schedule == "cosine" else 1 - fraction
        fall = least + (peak - least) * height
    warmup = recipe.warmup_epochs * steps_per_epoch
    if recipe.schedule in ("poly", "step"):
        ratio = recipe.warmup_learning_rate / peak
        return fall * jnp.where(step < warmup, ratio + (1 - ratio) * step / max(warmup, 1.0), 1.0)
    rise = recipe.warmup_learning_rate + (peak - recipe.warmup_learning_rate) * step / max(warmup, 1.0)
    return jnp.where(step < warmup, rise, fall)


def decay_mask(params: Any, decayed: str = "kernels") -> Any:
    """Returns which parameters decay, see `Recipe.decayed`."""
    decays = _DECAYED[decayed]
    return jax.tree_util.tree_map_with_path(lambda path, _: decays([str(entry.key) for entry in path]), params)


def _is_no_norm(path: Sequence[str]) -> bool:
    """Of the authors' segmentation: nothing decays with "norm" or "rpb" in its name. Norms of heads are called "bn" there."""
    return path[-1] != "rpb" and not any("norm" in name and name != "batch_norm" for name in path)


_DECAYED: dict[str, Callable[[Sequence[str]], bool]] = {
    "kernels": lambda path: path[-1] == "kernel",
    "all but norms": _is_no_norm,
}


def learning_rate_factors(params: Any, declared: Sequence[Parameter], recipe: Recipe, backbone: str = "nat") -> Any:
    """Returns a factor of the learning rate per parameter: `layer_decay` to the power of the layers above it, 0 where frozen.

    Args:
        params: nested dict of arrays or their shapes.
        declared: the same parameters, of `natjax_convert.shapes`, which say their depth.
        recipe: the run's.
        backbone: the first key of the parameters that `freeze_backbone` freezes.
    """
    depths = {parameter.path: parameter.depth for parameter in declared}
    top = max(depths.values())

    def factor(path: tuple[Any, ...], _: Any) -> float:
        keys = tuple(entry.key for entry in path)
        if recipe.freeze_backbone and keys[0] == backbone:
            return 0.0
        return recipe.layer_decay ** (top - depths[keys])

    return jax.tree_util.tree_map_with_path(factor, params)


def make_optimizer(recipe: Recipe, factors: Any) -> optax.GradientTransformation:
    """Returns AdamW up to the learning rate, which `apply_updates` brings in. Frozen parameters have no moments."""
    steps = [
        optax.scale_by_adam(b1=recipe.beta1, b2=recipe.beta2),
        optax.add_decayed_weights(recipe.weight_decay, mask=functools.partial(decay_mask, decayed=recipe.decayed)),
    ]
    if recipe.clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(recipe.clip_norm))
    optimizer = optax.chain(*steps)
    if not recipe.freeze_backbone:
        return optimizer
    labels = jax.tree.map(lambda factor: "train" if factor else "frozen", factors)
    return optax.partition({"train": optimizer, "frozen": optax.set_to_zero()}, labels)


def apply_updates(params: Any, updates: Any, factors: Any, rate: Float[Array, ""]) -> Any:
    """Returns the parameters one step down: `params - rate * factor * update`."""
    return jax.tree.map(lambda p, u, factor: p - (rate * factor) * u if factor else p, params, updates, factors)


def update_ema(ema: Any, new: Any, decay: float | None) -> Any:
    """Returns averages after a step, of weights and of running statistics; with no decay, what was given.

    As in timm's ModelEmaV3, statistics are averaged as weights are, and integers, which count, are the newest.
    """
    if decay is None:
        return ema
    return jax.tree.map(
        lambda mean, now: now if jnp.issubdtype(now.dtype, jnp.integer) else decay * mean + (1 - decay) * now, ema, new
    )
