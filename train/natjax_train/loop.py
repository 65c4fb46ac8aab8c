"""The training run: one loop, to be read from top to bottom.

A run's folder holds recipe.json, metrics.jsonl, checkpoints/, from the first evaluation on model/, and at its end pictures. All
randomness derives from the seed and the step (or, in the data, the epoch and the index), so that a run that was killed goes on
bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from natjax.errors import NatjaxError
from natjax_train import augment, evaluate, metrics, optim, pictures
from natjax_train import data as data_
from natjax_train.checkpoints import Checkpoints
from natjax_train.mesh import check_batch, make_mesh, put_batch, state_shardings
from natjax_train.model import export, initial_model, split_model
from natjax_train.recipes import Recipe
from natjax_train.step import init_state, make_eval_step, make_train_step


class NonFiniteError(NatjaxError, ValueError):
    """The loss or a gradient is NaN or infinite."""


class PreemptedError(NatjaxError):
    """SIGTERM came; the run was saved and can be resumed."""


def train(
    recipe: Recipe,
    data: str | tuple[Any, Any],
    out: str | os.PathLike,
    *,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Trains, and returns the folder of the exported model: that of the step the recipe selects.

    Args:
        recipe: all settings.
        data: a folder or "digits", see `data.open_source`; or a source of training and one of validation images.
        out: the run's folder.
        resume: whether to go on from the newest good checkpoint in it; starts where there is none.
        report: called with messages for people.

    Raises:
        PreemptedError: SIGTERM came; the state was saved.
        NonFiniteError: the loss or gradients are not finite, unless the recipe skips such steps.
        CheckpointError: a checkpoint cannot be written or read.
        ValueError: recipe, data and machine do not fit.
    """
    out = Path(out)
    lead = jax.process_index() == 0
    if lead and not resume and (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise ValueError(f"{out} holds a run already: go on with --resume, or choose another folder.")
    train_source, val_source = (
        (data_.open_source(data, "train"), data_.open_source(data, "val")) if isinstance(data, str) else data
    )
    steps_per_epoch = len(train_source) // recipe.batch_size
    if not steps_per_epoch:
        raise ValueError(f"batch_size {recipe.batch_size} is more than the {len(train_source)} training images.")
    total = optim.total_steps(recipe, steps_per_epoch)
    eval_every = max(1, round(recipe.eval_every * steps_per_epoch))
    num_classes = len(train_source.class_names)

    mesh = make_mesh(recipe.mesh)
    check_batch(mesh, recipe.batch_size, recipe.accumulate)
    share: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    share |= {"workers": recipe.workers, "worker_kind": recipe.worker_kind}

    processor = data_.eval_processor(recipe, recipe.image_size)
    loader = data_.train_loader(
        train_source,
        batch_size=recipe.batch_size,
        image_size=recipe.image_size,
        num_channels=len(recipe.image_mean),
        augmentation=recipe,
        seed=recipe.seed,
        **share,
    )
    with jax.set_mesh(mesh), _sigterm() as sigterm, contextlib.closing(loader) as batches:
        model = initial_model(recipe, train_source.class_names)
        graphdef, eval_graphdef, params = split_model(model, remat=recipe.remat)
        factors = optim.learning_rate_factors(params, recipe)
        optimizer = optim.make_optimizer(recipe, factors)
        init = functools.partial(init_state, optimizer=optimizer, recipe=recipe)
        shardings = state_shardings(mesh, jax.eval_shape(init, params))
        params = jax.device_put(jax.tree.map(np.asarray, params), shardings.params)
        state = jax.jit(init, out_shardings=shardings)(params)
        train_step = make_train_step(
            graphdef,
            optimizer,
            factors,
            functools.partial(augment.prepare, settings=recipe, num_classes=num_classes),
            recipe,
            steps_per_epoch,
        )
        eval_step = make_eval_step(eval_graphdef)

        checkpoints = Checkpoints(out / "checkpoints", recipe.keep, report)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        state = checkpoints.restore(like, batches) or state
        step = int(state.step)
        if lead:
            (out / "recipe.json").write_text(recipe.to_json() + "\n", encoding="utf-8")
            if step:
                report(f"Goes on after step {step} of {total}.")
        log = metrics.Log(out, total, first_step=step, log_every=recipe.log_every) if lead else None
        report = log.beside(report) if log else report
        watch = _Watch(recipe, params, checkpoints, log, report)

        def measure(params: Any) -> Any:
            batches = data_.eval_loader(
                val_source, batch_size=recipe.batch_size, processor=processor, max_corrupt=recipe.max_corrupt, **share
            )
            with contextlib.closing(batches):
                return evaluate.evaluate(
                    functools.partial(eval_step, params),
                    batches,
                    num_classes=num_classes,
                    mean=recipe.image_mean,
                    std=recipe.image_std,
                    mesh=mesh,
                )

        def deliver(state: Any) -> None:
            params = jax.device_get(jax.device_put(_averaged(state), NamedSharding(mesh, P())))
            if lead:
                export(model, params, processor, out / "model")

        result = None
        while step < total:
            start = time.perf_counter()
            batch = put_batch(mesh, next(batches))
            waited = time.perf_counter() - start
            state, found = train_step(state, batch)
            step += 1
            watch.add(step, found, waited)  # looks at the step before, while the devices work at this one

            stop = sigterm(step)
            evaluates = step % eval_every == 0 or step == total
            if evaluates or stop or (recipe.save_every and step % recipe.save_every == 0):
                watch.flush()  # what is not finite is not saved
                score = None
                if evaluates:
                    result = measure(_averaged(state))
                    score = result.top1
                    if log:
                        log.evaluation(step, result)
                    if recipe.select == "last" or score >= checkpoints.best_score:
                        deliver(state)  # the run can be used, and looked at, before its end
                checkpoints.save(state, batches, recipe.to_json(), score)
                watch.restart_clock()  # evaluation and saving are not the steps' time
            if stop:
                checkpoints.close()
                raise PreemptedError(f"SIGTERM: saved after step {step} of {total}; go on with --resume.")

        checkpoints.wait()
        best = checkpoints.best if recipe.select == "best" else step
        if best is not None and best != step:
            state, result = checkpoints.restore(like, step=best), None
        checkpoints.close()
        deliver(state)
        result = result or measure(_averaged(state))
        if log:
            log.close()
            pictures.curves(out / "metrics.jsonl", out / "curves.png")
            pictures.confusion(result.confusion, train_source.class_names, out / "confusion.png")
            report(f"{out / 'model'}: the model of step {best or step}, top-1 {result.top1:.2%}.")
    return out / "model"


class _Watch:
    """Looks at the metrics of steps, one step late so that the devices never wait for it; logs them, stops at NaNs."""

    def __init__(self, recipe: Recipe, params: Any, checkpoints: Checkpoints, log: Any, report: Callable[[str], None]):
        self._recipe, self._checkpoints, self._log, self._report = recipe, checkpoints, log, report
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        self._names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
        self._pending: tuple[int, dict[str, jax.Array], float, float] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        self._clock = time.perf_counter()

    def add(self, step: int, found: dict[str, jax.Array], waited: float) -> None:
        self.flush()
        seconds = time.perf_counter() - self._clock
        self.restart_clock()
        self._pending = (step, found, waited, seconds)

    def flush(self) -> None:
        if self._pending is None:
            return
        (step, found, waited, seconds), self._pending = self._pending, None
        loss, rate, norm = (float(found[name]) for name in ("loss", "lr", "grad_norm"))  # waits for the step
        if not (np.isfinite(loss) and np.isfinite(norm)):
            self._stop_or_skip(step, loss, norm, np.asarray(found["grad_norms"]))
        if self._log:
            speed = self._recipe.batch_size / seconds
            self._log.step(
                step, loss=loss, lr=rate, grad_norm=norm, images_per_second=speed, data_wait=waited / seconds
            )

    def _stop_or_skip(self, step: int, loss: float, norm: float, norms: np.ndarray) -> None:
        bad = [name for name, one in zip(self._names, norms, strict=True) if not np.isfinite(one)]
        where = (
            f"{len(bad)} of {len(norms)} parameters have such gradients: {', '.join(bad[:5])}" if bad else "no gradient"
        )
        what = f"Step {step} is not finite: loss {loss}, norm of the gradients {norm}; {where}."
        if self._recipe.skip_nonfinite:
            self._report(f"{what} It is left out.")
            return
        good = self._checkpoints.steps
        last = f"The last good checkpoint is of step {good[-1]}." if good else "There is no checkpoint yet."
        raise NonFiniteError(f"{what} {last} A lower learning_rate, clip_norm or --skip_nonfinite true may help.")


def _averaged(state: Any) -> Any:
    return state.params if state.ema is None else state.ema


@contextlib.contextmanager
def _sigterm() -> Generator[Callable[[int], bool]]:
    """Gives a function that tells, at a step, whether to save and stop: all processes of a run hear the same."""
    if jax.process_count() > 1:  # the signal is caught by the processes' coordination
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
