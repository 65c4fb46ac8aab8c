"""Programs of models: inference, and the training step that `natjax train` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from natjax.benchmarking.programs import Program, compiled, memory
from natjax.errors import install_line
from natjax.models import NatForImageClassification
from natjax.nn.xla import compiler_options

if TYPE_CHECKING:
    from natjax.configuration import NatConfig


def inference(config: NatConfig, batch: int, side: int, dtype: str = "float32") -> Program:
    """Compiles the logits of [batch, side, side, channels], with random weights of the same dtype."""
    graphdef, params = random_model(config, dtype, dtype)
    pixels = jax.random.normal(jax.random.key(0), (batch, side, side, config.num_channels), dtype)
    forward = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x).logits, compiler_options=compiler_options())
    program, seconds = compiled(forward, params, pixels)
    return Program(lambda: jax.block_until_ready(program(params, pixels)), seconds, memory(program))


def training(config: NatConfig, batch: int, side: int, dtype: str = "float32") -> Program:
    """Compiles a training step on images uint8 [batch, side, side, channels]; its run returns the loss.

    It is the step that `natjax train` takes on one device, with AdamW and label smoothing, without clipping and without
    augmentation. Parameters are float32.

    Raises:
        ImportError: the packages for training are not installed.
        ValueError: the model has no classes to train on.
    """
    if not config.num_labels:
        raise ValueError("The model has no classes to train on: its num_labels is 0.")
    try:
        from natjax_train import mesh, step
        from natjax_train.recipe import Recipe
        from natjax_train.tasks.classification import Classification
    except ImportError as error:
        raise ImportError(f"Training steps need more packages ({error}): {install_line('train')}.") from error

    channels, classes = config.num_channels, config.num_labels
    recipe = Recipe(
        model="custom",
        image_size=side,
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
    graphdef, state = random_model(config, dtype, "float32", deterministic=False)
    params = nnx.to_pure_dict(state)
    task = Classification(recipe, range(classes))
    programs = step.make_training(config, graphdef, params, task, recipe, steps_per_epoch=1000)
    devices = mesh.make_mesh("data=1")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, side, side, channels), np.uint8)
    with jax.set_mesh(devices):
        inputs = mesh.put_batch(devices, {"image": images, "label": np.zeros(batch, np.int32)})
        train_state = jax.jit(programs.init)(
            params
        )  # one program, where eagerly each shape of a parameter would be one
        train_state = jax.device_put(train_state, mesh.state_shardings(devices, train_state))
        program, seconds = compiled(programs.step, train_state, inputs)

    def run() -> Any:
        nonlocal train_state
        train_state, metrics = program(train_state, inputs)
        return jax.block_until_ready(metrics["loss"])

    return Program(run, seconds, memory(program))


def random_model(config: NatConfig, dtype: str, param_dtype: str, **view: Any) -> tuple[Any, Any]:
    """Returns graphdef and random parameters; drawn by numpy, as initialisers compile programs.

    Args:
        config: the architecture.
        dtype: compute dtype.
        param_dtype: dtype of the parameters.
        **view: of `nnx.view`, such as `deterministic=False`.
    """
    model = nnx.eval_shape(
        lambda: NatForImageClassification(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    )
    graphdef, shapes = nnx.split(nnx.view(model, **view))
    rng = np.random.default_rng(0)
    # Made of their dtype by numpy, too: on the device that would be a program for each shape.
    arrays = jax.tree.map(lambda x: (0.02 * rng.standard_normal(x.shape, np.float32)).astype(x.dtype), shapes)
    return graphdef, jax.device_put(arrays)
