"""Programs of models: inference, and the training step that `natjax train` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from natjax.benchmarking.programs import Program, compiled, memory
from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig, UperNetConfig
from natjax.errors import install_line
from natjax.models.create import class_of
from natjax.nn.xla import compiler_options

if TYPE_CHECKING:
    from natjax.configuration import NatConfig


def inference(config: NatConfig, batch: int, side: int, dtype: str = "float32") -> Program:
    """Compiles what a model makes of [batch, side, side, channels], with random weights of the same dtype."""
    if isinstance(config, MaskRcnnConfig):
        config = config.replace(score_threshold=0.0)  # random weights have low scores, and masks are of what is found
    graphdef, params = random_model(config, dtype, dtype)
    pixels = jax.random.normal(jax.random.key(0), (batch, side, side, config.num_channels), dtype)
    forward = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x), compiler_options=compiler_options())
    program, seconds = compiled(forward, params, pixels)
    return Program(lambda: jax.block_until_ready(program(params, pixels)), seconds, memory(program))


def training(config: NatConfig, batch: int, side: int, dtype: str = "float32") -> Program:
    """Compiles a training step on images uint8 [batch, side, side, channels]; its run returns the loss.

    It is the step that `natjax train` takes on one device, with AdamW and label smoothing, without clipping and without
    augmentation. Parameters are float32. Images of a detector have the objects of `boxes_within`.

    Raises:
        ImportError: the packages for training are not installed.
        ValueError: the model has no classes to train on, or it is a detector and the side is no multiple of 8.
    """
    if not config.num_labels:
        raise ValueError("The model has no classes to train on: its num_labels is 0.")
    try:
        from natjax_train import mesh, step
        from natjax_train.recipe import Recipe
        from natjax_train.tasks import find_task
    except ImportError as error:
        raise ImportError(f"Training steps need more packages ({error}): {install_line('train')}.") from error

    channels, classes = config.num_channels, config.num_labels
    kind = task_of(config)
    if kind == "detection" and side % 8:
        raise ValueError(f"A detector trains on images whose side is a multiple of 8; got {side}.")
    recipe = Recipe(
        task=kind,
        model="custom",
        image_size=side,
        scale_range=(1.0, 1.0),  # of a detector at most 1; here nothing is scaled
        batch_size=batch,
        base_batch_size=batch,
        warmup_epochs=0,
        clip_norm=None,
        mixup=0,
        cutmix=0,
        erasing=0,
        image_mean=(0.5,) * channels,
        image_std=(0.25,) * channels,
    )
    task = find_task(recipe.task)(recipe, tuple(map(str, range(classes))))
    graphdef, state = random_model(config, dtype, "float32", deterministic=False)
    params, stats = (nnx.to_pure_dict(nnx.filter_state(state, kind)) for kind in (nnx.Param, nnx.BatchStat))
    programs = step.make_training(config, graphdef, params, task, recipe, steps_per_epoch=1000)
    devices = mesh.make_mesh("data=1")
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, channels), np.uint8)
    with jax.set_mesh(devices):
        inputs = mesh.put_batch(devices, {"image": images, **_targets(kind, batch, side)})
        # One program, where eagerly each shape of a parameter would be one.
        train_state = jax.jit(programs.init)(params, stats)
        train_state = jax.device_put(train_state, mesh.state_shardings(devices, train_state))
        program, seconds = compiled(programs.step, train_state, inputs)

    def run() -> Any:
        nonlocal train_state
        train_state, metrics = program(train_state, inputs)
        return jax.block_until_ready(metrics["loss"])

    return Program(run, seconds, memory(program))


def task_of(config: Any) -> str:
    """Returns the name of the task that a model of a configuration is trained for."""
    kinds = {UperNetConfig: "segmentation", MaskRcnnConfig: "detection"}
    return next((task for kind, task in kinds.items() if isinstance(config, kind)), "classification")


def boxes_within(side: int) -> np.ndarray:
    """Returns the boxes of 8 objects anywhere in an image, of sides from a sixteenth of its side to a half: float32 [8, 4]."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(side / 16, side / 2, (8, 2))
    corner = rng.uniform(0, 1, (8, 2)) * (side - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def _targets(task: str, batch: int, side: int) -> dict[str, np.ndarray]:
    """Returns what images of a batch of a task have beside their pixels."""
    if task == "classification":
        return {"label": np.zeros(batch, np.int32)}
    size = np.full((batch, 2), side, np.int32)
    if task == "segmentation":
        return {"label": np.zeros((batch, side, side), np.uint8), "size": size}
    boxes = np.tile(boxes_within(side), (batch, 1, 1))
    return {
        "size": size,
        "boxes": boxes,
        "class_labels": np.zeros(boxes.shape[:2], np.int32),
        "valid": np.ones(boxes.shape[:2], bool),
        "masks": np.full((*boxes.shape[:2], side, side // 8), 255, np.uint8),  # eight pixels to a byte
    }


def random_model(config: Any, dtype: str, param_dtype: str, **view: Any) -> tuple[Any, Any]:
    """Returns graphdef and random parameters; drawn by numpy, as initialisers compile programs. Running statistics are 1.

    Args:
        config: the architecture, of a model of any kind. Training views with batch normalisation use the batch's statistics.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
        **view: of `nnx.view`, such as `deterministic=False`.
    """
    model_class: Any = class_of(config)
    model = nnx.eval_shape(lambda: model_class(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    if isinstance(config, UperNetConfig | CascadeMaskRcnnConfig) and view.get("deterministic") is False:
        view["use_running_average"] = False
    graphdef, params, stats = nnx.split(nnx.view(model, **view), nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)
    # Made of their dtype by numpy, too: on the device that would be a program for each shape.
    params = jax.tree.map(lambda x: (0.02 * rng.standard_normal(x.shape, np.float32)).astype(x.dtype), params)
    stats = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), stats)
    return graphdef, jax.device_put(nnx.merge_state(params, stats))
