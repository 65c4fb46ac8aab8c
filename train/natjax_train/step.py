"""One step of training, a pure function of state and batch, and the forward pass of evaluation.

The state is a pytree of plain dicts; the model is a static graphdef. Randomness is `fold_in(key(seed), step)`. Parameters are
float32 whatever the compute dtype. Batches are {"image": uint8 [B, H, W, C], ...} with what the task needs, "label" int32 [B] in
classification. `make_training` is all that a run, or a benchmark of one, executes:

    task = Classification(recipe, class_names)
    graphdef, eval_graphdef, params = split_model(model, remat=recipe.remat)
    training = make_training(model.config, graphdef, params, task, recipe, steps_per_epoch)
    with jax.set_mesh(make_mesh(recipe.mesh)):
        state = jax.jit(training.init)(params)
        state, metrics = training.step(state, batch)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import auto_axes, reshard

from natjax.configuration import NatConfig
from natjax.nn.xla import compiler_options
from natjax_kernels.sharding import reshape, shards, spec_of
from natjax_train import optim
from natjax_train.mesh import BATCH, images_spec, last_stride
from natjax_train.recipe import Recipe
from natjax_train.tasks.base import Task

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a run consists of, beside the data iterator.

    Attributes:
        step: steps done, skipped ones included, int32 [].
        skipped: steps left out because of a loss, gradient or statistic that is not finite, int32 [].
        params: nested dict of float32 arrays.
        opt_state: the optimiser's.
        ema: averaged params, or None.
        batch_stats: nested dict of the running statistics of batch normalisation; empty for models without.
        ema_batch_stats: averaged batch_stats; empty where there are no averages.
    """

    step: Any
    skipped: Any
    params: Any
    opt_state: Any
    ema: Any
    batch_stats: Any = dataclasses.field(default_factory=dict)
    ema_batch_stats: Any = dataclasses.field(default_factory=dict)

    @property
    def averaged(self) -> tuple[Any, Any]:
        """Parameters and batch statistics for evaluation and export: the averages, where the run has any."""
        return (self.params, self.batch_stats) if self.ema is None else (self.ema, self.ema_batch_stats)


@dataclasses.dataclass(frozen=True)
class Training:
    """The programs of a run.

    Attributes:
        init: from parameters and, where the model has them, batch statistics to the state before the first step.
        step: from state and batch to the next state and the step's metrics, jitted; donates the state.
    """

    init: Callable[..., TrainState]
    step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, Any]]]


def split_model(model: Any, *, remat: bool = False) -> tuple[Any, Any, Any]:
    """Returns the graphdefs of the training and of the evaluation view, and the params as a nested dict."""
    views = {"use_running_average": False} if batch_stats(model) else {}
    graphdef, _ = nnx.split(nnx.view(model, deterministic=False, remat=remat, **views))
    evaluation, params, _ = nnx.split(model, nnx.Param, ...)
    return graphdef, evaluation, nnx.to_pure_dict(params)


def batch_stats(model: Any) -> Any:
    """Returns the running statistics of batch normalisation as a nested dict, {} for a model without."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def make_training(
    config: NatConfig, graphdef: Any, params: Any, task: Task, recipe: Recipe, steps_per_epoch: int | float
) -> Training:
    """Returns the programs that train a model; nothing is computed or compiled yet.

    Args:
        config: of the model.
        graphdef: of the model in its training view.
        params: its parameters or their shapes, as a nested dict.
        task: of the model, by whose recipe batches are prepared.
        recipe: the run's.
        steps_per_epoch: for the schedule.
    """
    factors = optim.learning_rate_factors(params, task.parameters(config), recipe, task.backbone)
    optimizer = optim.make_optimizer(recipe, factors)
    return Training(
        init=functools.partial(init_state, optimizer=optimizer, recipe=recipe),
        step=make_train_step(graphdef, optimizer, factors, task, recipe, steps_per_epoch),
    )


def init_state(
    params: Any, batch_stats: Any = None, *, optimizer: optax.GradientTransformation, recipe: Recipe
) -> TrainState:
    """Returns the state before the first step."""
    stats, zero = batch_stats or {}, jnp.zeros((), jnp.int32)
    averages = (None, {}) if recipe.ema_decay is None else (params, stats)
    ema, ema_stats = jax.tree.map(jnp.copy, averages)  # copied: both are donated
    return TrainState(zero, jnp.copy(zero), params, optimizer.init(params), ema, stats, ema_stats)


def make_train_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    factors: Any,
    task: Task,
    recipe: Recipe,
    steps_per_epoch: int | float,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, Any]]]:
    """Returns the jitted step, to be called under `jax.set_mesh`; it donates the state.

    The step's metrics are float32: `loss`, `parts`, a dict of those that the task names, `lr`, `grad_norm` and `grad_norms`, one
    per parameter in the tree's order; int32 `skipped`; bool `finite`. A step whose loss, gradients or batch statistics are not
    finite changes nothing but `step` and `skipped`.

    Args:
        graphdef: of the model in its training view.
        optimizer: of `optim.make_optimizer`.
        factors: of `optim.learning_rate_factors`.
        task: prepares batches and has the loss.
        recipe: the run's.
        steps_per_epoch: for the schedule.
    """

    def loss_fn(params: Any, stats: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Float[Array, ""], Any]:
        augmentation, dropout = jax.random.split(key)
        params = jax.tree.map(lambda p, factor: p if factor else jax.lax.stop_gradient(p), params, factors)
        with jax.named_scope("augment"):
            # It mixes images of the whole batch, so how its indexing is sharded is left to the partitioner.
            specs = images_spec(), images_spec() if task.targets_are_maps else BATCH
            pixel_values, targets = auto_axes(task.prepare, out_sharding=specs)(augmentation, batch)
        model = nnx.merge(graphdef, params, stats)
        loss, parts = task.training_loss(model, pixel_values, targets, dropout)
        # Statistics of the global batch: the arrays are split over the devices, not the program.
        return loss, (batch_stats(model), parts)

    def gradients(
        params: Any, stats: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[Float[Array, ""], Any, Any, dict[str, Float[Array, ""]]]:
        differentiated = functools.partial(jax.value_and_grad(loss_fn, has_aux=True), _gathered(params, factors))
        if recipe.accumulate == 1:
            (loss, (stats, parts)), grads = differentiated(stats, batch, key)
            return loss, _reduced(grads, params), stats, parts

        def micro_step(carry: Any, micro: Any) -> tuple[Any, dict[str, Float[Array, ""]]]:
            (total, stats), (index, batch) = carry, micro
            (loss, (stats, parts)), grads = differentiated(stats, batch, jax.random.fold_in(key, index))
            return (jax.tree.map(jnp.add, total, (loss, grads)), stats), parts

        micro_batches = jax.tree.map(lambda x: _split(x, recipe.accumulate), batch)
        zeros = (jnp.zeros(()), _zero_gradients(params, factors))
        indices = jnp.arange(recipe.accumulate)
        ((loss, grads), stats), parts = jax.lax.scan(micro_step, (zeros, stats), (indices, micro_batches))
        mean = jax.tree.map(lambda x: x / recipe.accumulate, (loss, _reduced(grads, params)))
        return *mean, stats, jax.tree.map(jnp.mean, parts)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        stats = jax.tree.map(lambda x: reshard(x, P()), state.batch_stats)
        loss, grads, stats, parts = gradients(state.params, stats, batch, key)
        stats = jax.tree.map(lambda new, old: reshard(new, jax.typeof(old).sharding.spec), stats, state.batch_stats)
        with jax.named_scope("optimizer"):
            norms = jnp.stack([jnp.sqrt(jnp.sum(g * g)) for g in jax.tree.leaves(grads)])
            norm = jnp.sqrt(jnp.sum(norms * norms))
            rate = optim.learning_rate(recipe, steps_per_epoch, state.step)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optim.apply_updates(state.params, updates, factors, rate)
            averages = (state.ema, state.ema_batch_stats)
            ema, ema_stats = optim.update_ema(averages, (params, stats), recipe.ema_decay)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            for leaf in jax.tree.leaves(stats):  # an infinite variance leaves the loss finite: all is divided by it
                finite &= jnp.all(jnp.isfinite(leaf))
            params, opt_state, ema, stats, ema_stats = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (params, opt_state, ema, stats, ema_stats),
                (state.params, state.opt_state, state.ema, state.batch_stats, state.ema_batch_stats),
            )
        skipped = state.skipped + (1 - finite.astype(jnp.int32))
        state = TrainState(state.step + 1, skipped, params, opt_state, ema, stats, ema_stats)
        metrics = {"loss": loss, "parts": parts, "lr": rate, "grad_norm": norm, "grad_norms": norms, "skipped": skipped}
        return state, metrics | {"finite": finite}

    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())


def make_eval_step(graphdef: Any, task: Task) -> Callable[..., Any]:
    """Returns the jitted forward pass in evaluation mode: of params, the task's inputs and, where the model has them, batch
    statistics to what the task judges."""

    def eval_step(params: Any, inputs: Any, batch_stats: Any = None) -> Any:
        params, stats = jax.tree.map(lambda p: reshard(p, P()), (params, batch_stats or {}))
        model = nnx.merge(graphdef, params, stats)
        return task.predict(model, _in_equal_parts(inputs, last_stride(model.config)))

    return jax.jit(eval_step, compiler_options=compiler_options())


def _in_equal_parts(inputs: Any, stride: int) -> Any:
    """Returns evaluation inputs with images on all devices of a group where these cannot have equal parts at every level."""

    def laid(x: jax.Array) -> jax.Array:
        is_uneven = x.ndim == 4 and (x.shape[1] // shards(x, 1)) % stride
        return reshard(x, BATCH) if is_uneven and shards(x, 1) > 1 else x

    return jax.tree.map(laid, inputs)


def _gathered(params: Any, factors: Any) -> Any:
    """Returns parameters as a forward pass takes them, all of them on every device.

    Their gradients are those that each device has of its own images, until `_reduced` sums them. A frozen parameter has a
    gradient of zeros, on all devices.
    """
    return jax.tree.map(lambda p, factor: reshard(p, P(reduced=_devices()) if factor else P()), params, factors)


def _zero_gradients(params: Any, factors: Any) -> Any:
    """Returns zeros that lie as the gradients of `_gathered` parameters."""

    def zeros(param: jax.Array, factor: float) -> jax.Array:
        return reshard(jnp.zeros(param.shape, param.dtype), P(unreduced=_devices()) if factor else P())

    return jax.tree.map(zeros, params, factors)


def _devices() -> set[str]:
    """Returns the axes of the mesh along which there are several devices."""
    return {name for name, size in jax.sharding.get_abstract_mesh().shape.items() if size > 1}


def _reduced(gradients: Any, params: Any) -> Any:
    """Returns gradients that are summed over devices, split as their parameters are."""
    return jax.tree.map(lambda g, p: reshard(g, jax.typeof(p).sharding.spec), gradients, params)


def _split(x: jax.Array, parts: int) -> jax.Array:
    """Returns [parts, B / parts, ...]; every device's images stay where they are."""
    batch, *others = spec_of(x)
    shape, spec = (x.shape[0] // parts, parts, *x.shape[1:]), (batch, None, *others)
    return jnp.moveaxis(reshape(x, shape, spec), 1, 0)
