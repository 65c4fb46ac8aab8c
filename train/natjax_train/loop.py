"""The training run: one loop, to be read from top to bottom.

A run's folder holds recipe.json, config.json (the model's), metrics.jsonl, checkpoints/, from the first evaluation on model/, and
at its end pictures. All randomness derives from the seed and the step (or, in the data, the epoch and the index), so that a run
that was killed goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from natjax.atomic import staging
from natjax.configuration import NatConfig
from natjax.errors import CheckpointError, NatjaxError
from natjax_train import data as data_
from natjax_train import evaluate, optim, plots
from natjax_train import log as log_
from natjax_train.augment import device
from natjax_train.checkpoint import Checkpoints
from natjax_train.lock import sole_use
from natjax_train.mesh import check_batch, make_mesh, put_batch, state_shardings
from natjax_train.model import export, initial_model, resumed_model, split_model
from natjax_train.recipe import Recipe
from natjax_train.recipes import find_recipe
from natjax_train.step import init_state, make_eval_step, make_train_step

_UNCHANGED = ("model", "batch_size", "seed")  # when a run goes on: they decide its weights and the order of its data
_MOST_SKIPPED_IN_A_ROW = 100  # steps that are not finite: beyond that nothing is learnt any more


class NonFiniteError(NatjaxError, ValueError):
    """The loss or a gradient is NaN or infinite."""


class PreemptedError(NatjaxError):
    """SIGTERM or SIGINT came; the run was saved and can be resumed.

    Attributes:
        signal: which.
    """

    def __init__(self, step: int, total: int, received: signal.Signals):
        super().__init__(f"{received.name}: saved after step {step} of {total}; go on with --resume.")
        self.signal = received


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
        PreemptedError: SIGTERM or SIGINT came; the state was saved.
        NonFiniteError: the loss or gradients are not finite, unless the recipe skips such steps.
        CheckpointError: a checkpoint cannot be written or read.
        ValueError: recipe, data and machine do not fit, or cannot continue the run in `out`, or that is under way.
    """
    out = Path(out)
    lead = jax.process_index() == 0
    used = (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir())
    if not resume and _of_lead(used):
        raise ValueError(f"{out} holds a run already: go on with --resume, or choose another folder.")
    if used:  # before there are threads of Orbax, which complain when a refusal ends the process
        _check_unchanged(find_recipe(str(out / "recipe.json")), recipe)
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
        report=lambda message: report(message),  # what it is by then: beside the log's live line
        **share,
    )
    with (
        sole_use(out) if lead else contextlib.nullcontext(),
        jax.set_mesh(mesh),
        _interruption(report) as interruption,
        contextlib.closing(loader) as batches,
        Checkpoints(out / "checkpoints", recipe.keep, report) as checkpoints,
    ):
        if checkpoints.steps:
            config = NatConfig.from_json_file(out / "config.json")
            model = resumed_model(recipe, train_source.class_names, config)
        else:
            model = initial_model(recipe, train_source.class_names)
        graphdef, eval_graphdef, params = split_model(model, remat=recipe.remat)
        config = model.config
        factors = optim.learning_rate_factors(params, recipe)
        optimizer = optim.make_optimizer(recipe, factors)
        init = functools.partial(init_state, optimizer=optimizer, recipe=recipe)
        abstract = jax.eval_shape(init, params)
        shardings = state_shardings(mesh, abstract)
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        state = checkpoints.restore(like, batches)
        if state is None:
            params = jax.device_put(jax.tree.map(np.asarray, params), shardings.params)
            state = jax.jit(init, out_shardings=shardings)(params)
        del model, params  # the state has them
        step = int(state.step)
        if step > total:
            raise ValueError(
                f"The run is at step {step}, beyond the {total} that it is to have now: give it more epochs."
            )
        train_step = make_train_step(
            graphdef,
            optimizer,
            factors,
            functools.partial(device.prepare, settings=recipe, num_classes=num_classes),
            recipe,
            steps_per_epoch,
        )
        eval_step = make_eval_step(eval_graphdef)

        if lead:
            with staging(out) as folder:
                (folder / "recipe.json").write_text(recipe.to_json() + "\n", encoding="utf-8")
                (folder / "config.json").write_text(config.to_json() + "\n", encoding="utf-8")
            if step:
                report(f"Goes on after step {step} of {total}.")
        log = log_.Log(out, total, first_step=step, log_every=recipe.log_every) if lead else None
        report = log.beside(report) if log else report
        watch = _Watch(recipe, state.params, batches, checkpoints, log, report)

        def measure(params: Any) -> Any:
            batches = data_.eval_loader(
                val_source,
                batch_size=recipe.batch_size,
                processor=processor,
                max_corrupt=recipe.max_corrupt,
                report=report,
                **share,
            )
            with contextlib.closing(batches):
                return evaluate.evaluate(
                    functools.partial(eval_step, params),
                    interruption.during(batches),
                    num_classes=num_classes,
                    mean=recipe.image_mean,
                    std=recipe.image_std,
                    mesh=mesh,
                )

        def deliver(state: Any) -> None:
            params = jax.device_get(jax.device_put(_averaged(state), NamedSharding(mesh, P())))
            if lead:
                export(eval_graphdef, params, processor, out / "model")

        def evaluates() -> bool:
            return step % eval_every == 0 or step == total

        result = None
        behind = step > 0 and evaluates() and not checkpoints.has_score(step)  # it was stopped before it could evaluate
        while behind or step < total:
            if not behind:
                start = time.perf_counter()
                batch = put_batch(mesh, next(batches))
                waited = time.perf_counter() - start
                state, found = train_step(state, batch)
                step += 1
                watch.add(step, found, waited)  # looks at the step before, while the devices work at this one

            behind, stop, score = False, interruption.at(step), None
            if evaluates() or stop or (recipe.save_every and step % recipe.save_every == 0):
                watch.flush()  # what is not finite is not saved
                if evaluates() and not stop:
                    try:
                        result = measure(_averaged(state))
                    except _InterruptedError as error:  # who stops a run may not wait for long
                        stop = error.signal
                    else:
                        score = result.top1
                        if log:
                            log.evaluation(step, result)
                        if recipe.select == "last" or score >= checkpoints.best_score:
                            deliver(state)  # the run can be used, and looked at, before its end
                checkpoints.save(state, batches, recipe.to_json(), score)
                watch.restart_clock()  # evaluation and saving are not the steps' time
            if stop:
                checkpoints.wait()
                raise PreemptedError(step, total, stop)
        checkpoints.wait()
        if recipe.select == "best":
            state = checkpoints.restore_best(like, state)
            result = result if int(state.step) == step else None
        deliver(state)
        try:
            result = result or measure(_averaged(state))
        except _InterruptedError as error:
            raise PreemptedError(total, total, error.signal) from None
        if log:
            log.close()
            plots.curves(out / "metrics.jsonl", out / "curves.png")
            plots.confusion(result.confusion, train_source.class_names, out / "confusion.png")
            report(f"{out / 'model'}: the model of step {int(state.step)}, top-1 {result.top1:.2%}.")
    return out / "model"


class _Watch:
    """Looks at the metrics of steps, one step late so that the devices never wait for it; logs them, stops at NaNs."""

    def __init__(
        self,
        recipe: Recipe,
        params: Any,
        batches: data_.Batches,
        checkpoints: Checkpoints,
        log: Any,
        report: Callable[[str], None],
    ):
        self._recipe, self._batches, self._checkpoints = recipe, batches, checkpoints
        self._log, self._report = log, report
        self._skipped_in_a_row = 0
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
            self._skipped_in_a_row += 1
            self._stop_or_skip(step, loss, norm, np.asarray(found["grad_norms"]))
        else:
            self._skipped_in_a_row = 0
        if self._log:
            self._log.step(
                step,
                loss=loss,
                lr=rate,
                grad_norm=norm,
                images_per_second=self._recipe.batch_size / seconds,
                data_wait=waited / seconds,
                skipped=int(found["skipped"]),
                unreadable=len(self._batches.unreadable),
            )

    def _stop_or_skip(self, step: int, loss: float, norm: float, norms: np.ndarray) -> None:
        bad = [name for name, one in zip(self._names, norms, strict=True) if not np.isfinite(one)]
        where = (
            f"{len(bad)} of {len(norms)} parameters have such gradients: {', '.join(bad[:5])}" if bad else "no gradient"
        )
        what = f"Step {step} is not finite: loss {loss}, norm of the gradients {norm}; {where}."
        if self._recipe.skip_nonfinite and self._skipped_in_a_row < _MOST_SKIPPED_IN_A_ROW:
            self._report(f"{what} It is left out.")
            return
        with contextlib.suppress(CheckpointError):
            self._checkpoints.wait()  # one that is being written counts only once it is there
        good = self._checkpoints.steps
        last = f"The last good checkpoint is of step {good[-1]}." if good else "There is no checkpoint yet."
        raise NonFiniteError(f"{what} {last} A lower learning_rate, clip_norm or --skip_nonfinite true may help.")


def _check_unchanged(begun: Recipe, recipe: Recipe) -> None:
    for name in _UNCHANGED:
        before, now = getattr(begun, name), getattr(recipe, name)
        if before != now:
            raise ValueError(
                f"The run was begun with {name} {before}, and cannot go on with {now}: leave it as it was, or choose another "
                "folder for another run."
            )


def _averaged(state: Any) -> Any:
    return state.params if state.ema is None else state.ema


def _of_lead(value: bool) -> bool:
    """Returns the leading process's value, in all processes."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value))) if jax.process_count() > 1 else value


class _InterruptedError(Exception):
    """A signal came amid an evaluation."""

    def __init__(self, received: signal.Signals):
        super().__init__(received.name)
        self.signal = received


class _Interruption:
    """Tells which signal came that says to save and stop, if one came."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def at(self, step: int) -> signal.Signals | None:
        """Asked in every step; all processes of a run hear the same."""
        if jax.process_count() == 1:
            return self.received
        # The processes' coordination catches SIGTERM and settles on a step.
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    def during(self, batches: Iterable[Any]) -> Generator[Any]:
        """The batches of an evaluation, which a signal ends; not where other processes would go on with theirs."""
        for batch in batches:
            if self.received:
                raise _InterruptedError(self.received)
            yield batch


@contextlib.contextmanager
def _interruption(report: Callable[[str], None]) -> Generator[_Interruption]:
    """Notes SIGTERM and the first SIGINT (Ctrl-C) instead of ending the process."""
    interruption, before = _Interruption(), {}

    def note(number: int, _: Any) -> None:
        interruption.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            report("Stopping after this step. Once more to stop at once.")

    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        before |= {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
