"""The training run: one loop, to be read from top to bottom.

A run's folder holds recipe.json, config.json (the model's), metrics.jsonl, checkpoints/, from the first evaluation on model/, and
at its end, whatever ends it, curves.png. All randomness derives from the seed and the step (or, in the data, the epoch and
the index), so that an interrupted run resumes bit-exactly. What is learnt, and how it is scored, is the recipe's task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax import run_files
from natjax.atomic import replacing, staging
from natjax.configuration import CONFIG_NAME, read_config
from natjax.errors import NatjaxError
from natjax.text import counted
from natjax_train import data as data_
from natjax_train import optim, plots, start
from natjax_train.checkpoint import Checkpoints
from natjax_train.evaluate import measure
from natjax_train.interruption import InterruptedEvaluationError, noted_signals
from natjax_train.lock import sole_use
from natjax_train.log import Log
from natjax_train.mesh import (
    check_batch,
    check_height,
    height_divisor,
    make_mesh,
    own_loading,
    put_batch,
    state_shardings,
)
from natjax_train.model_card import model_card
from natjax_train.monitor import NonFiniteError, StepMonitor
from natjax_train.recipe import IMAGE_FIELDS, Recipe, is_same_model
from natjax_train.recipes import find_recipe
from natjax_train.step import Training, TrainState, batch_stats, make_eval_step, make_training, split_model
from natjax_train.tasks import find_task

__all__ = ["NonFiniteError", "PreemptedError", "train"]

# What a resumed run may not change, beside the preprocessing of images: it decides the weights and the order of the data.
_UNCHANGED = (
    "task",
    "model",
    "batch_size",
    "seed",
    "val_fraction",
    "reduce_zero_label",
    "detector",
    "keep_empty",
    "max_objects",
)

_COMPILING = "compiling the training step; this can take minutes on a CPU"
_KEPT = "with JAX_COMPILATION_CACHE_DIR=FOLDER in the environment, the next run has it from there"


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
    started: Callable[[Recipe], None] = lambda recipe: None,
) -> Path:
    """Trains, and returns the folder of the exported model: that of the step the recipe selects.

    Args:
        recipe: all settings.
        data: a folder or "digits", see `data.open_splits`; or a source of training and one of validation images.
        out: the run's folder.
        resume: whether to resume from the newest good checkpoint in it; starts where there is none.
        report: called with messages for people.
        started: called with the run's recipe, with what it left open decided, once data and model were found.

    Raises:
        PreemptedError: SIGTERM or SIGINT came; the state was saved.
        NonFiniteError: the loss, gradients or batch statistics are not finite, unless the recipe skips such steps.
        CheckpointError: a checkpoint cannot be written or read.
        ValueError: recipe, data and machine do not fit, or cannot continue the run in `out`, or that is under way.
    """
    out = Path(out)
    is_main_process = jax.process_index() == 0
    used = _check_folder(out, recipe, resume)
    if used:  # what its weights have learnt to see
        kept = {name: value for name in ("model", *IMAGE_FIELDS) if (value := getattr(used, name)) is not None}
        recipe = dataclasses.replace(recipe, **kept)
    task_type = find_task(recipe.task)
    train_source, val_source = task_type.open_splits(recipe, data, report) if isinstance(data, str) else data
    task_type.check(train_source, val_source)
    preprocessing = "preprocessing from the run's recipe"
    if not (used and start.is_resolved(recipe)):  # the checkpoint that a run started from may be gone
        recipe, preprocessing = task_type.resolve(recipe)
    recipe = recipe.with_absolute_path()
    if len(train_source) < recipe.batch_size:
        raise ValueError(
            f"batch_size {recipe.batch_size} is more than the {len(train_source)} training images: give --batch-size "
            f"{len(train_source)} or less."
        )
    epoch = optim.schedule_epoch(recipe, data_.steps_per_epoch(train_source, recipe.batch_size))
    total = optim.total_steps(recipe, epoch)
    eval_every = max(1, round(recipe.eval_every * epoch))
    mesh = make_mesh(recipe.mesh)
    check_batch(mesh, recipe.batch_size, recipe.accumulate)
    task = task_type.of(recipe, train_source)
    image_size, mean, std = start.resolved(recipe)
    processor = task.processor(recipe, image_size)
    loading: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "workers": recipe.workers,
        "worker_kind": recipe.worker_kind,
        "max_corrupt": recipe.max_corrupt,
        "advice": "Mend or remove them, or allow more by --max-corrupt.",
        "report": lambda message: report(message),  # looked up at the call: the log replaces it
    }
    with jax.set_mesh(mesh):
        initial = None if used else task.initial_model()  # before the folder is made, which a failed start leaves alone
    config = initial.config if initial else read_config(out / CONFIG_NAME)
    check_height(mesh, task, image_size, config)
    loader = task.train_loader(
        train_source,
        height_divisor=height_divisor(mesh, config),
        image_size=image_size,
        num_channels=len(mean),
        augmentation=recipe,
        seed=recipe.seed,
        **own_loading(mesh, **loading),
    )
    with (
        sole_use(out) if is_main_process else contextlib.nullcontext(),
        jax.set_mesh(mesh),
        noted_signals(report) as interruption,
        contextlib.closing(loader) as batches,
        Checkpoints(out / run_files.CHECKPOINTS, recipe.keep, report) as checkpoints,
        contextlib.ExitStack() as at_end,
    ):
        if is_main_process and not used and run_files.has_checkpoints(out):  # between the first look and the lock
            raise ValueError(f"{out}: another run has begun there meanwhile; choose another folder.")
        model = task.resumed_model(config) if checkpoints.steps else initial or task.initial_model()
        initial, config = None, model.config
        graphdef, eval_graphdef, params = split_model(model, remat=recipe.remat)
        stats = batch_stats(model)
        training = make_training(config, graphdef, params, task, recipe, epoch)
        eval_step = make_eval_step(eval_graphdef, task)
        state = _restored_or_initial(checkpoints, batches, training, (params, stats), mesh)
        del model, params, stats  # the state has them
        step = int(state.step)
        if step > total:
            more = "steps" if recipe.steps else "epochs"
            raise ValueError(
                f"The run is at step {step}, beyond the {total} that it is to have now: give it more {more}."
            )
        log = None
        if is_main_process:
            with staging(out) as folder:
                (folder / run_files.RECIPE).write_text(recipe.to_json() + "\n", encoding="utf-8")
                (folder / CONFIG_NAME).write_text(config.to_json() + "\n", encoding="utf-8")
            if step:
                report(f"Resuming after step {step} of {total}.")
            begins = "weights from its checkpoint" if step else start.origin(recipe, config, task.kind)
            for message in _opening(train_source, val_source, begins, preprocessing):
                report(message)
            started(recipe)
            log = Log(out, total, first_step=step, log_every=recipe.log_every)
            at_end.callback(_draw_curves, out, task, report)  # also of a run that is interrupted or fails
            at_end.callback(log.close)
            report = log.beside(report)
        monitor = StepMonitor(recipe, state.params, batches, checkpoints, log, report)

        def evaluation_due() -> bool:
            return step % eval_every == 0 or step == total

        def evaluated(state: TrainState) -> Any:
            params, stats = state.averaged
            return measure(
                task,
                lambda inputs: eval_step(params, inputs, stats),
                val_source,
                processor,
                mean=mean,
                std=std,
                mesh=mesh,
                through=interruption.during,
                **loading,
            )

        def export_model(state: TrainState) -> None:
            whole = jax.device_put(state.averaged, NamedSharding(mesh, P()))
            params, stats = jax.device_get(whole)
            if is_main_process:
                nnx.merge(eval_graphdef, params, stats).save_pretrained(out / run_files.MODEL, processor=processor)

        def describe_model(step: int, result: Any) -> None:
            if is_main_process:
                name = data if isinstance(data, str) else None
                text = model_card(recipe, name, train_source, val_source, result.row(), step, task.card())
                with replacing(out / run_files.MODEL / run_files.CARD) as temporary:
                    temporary.write_text(text, encoding="utf-8")

        exported: tuple[int, Any] | None = None  # the step of the model in the folder, and what was measured of it
        # A run may have been stopped after a step and before its evaluation.
        evaluation_missed = step > 0 and evaluation_due() and not checkpoints.has_score(step)
        if is_main_process and step < total:
            report(_COMPILING if getattr(jax.config, "jax_compilation_cache_dir", None) else f"{_COMPILING}; {_KEPT}")
        while evaluation_missed or step < total:
            if not evaluation_missed:
                asked = time.perf_counter()
                batch = put_batch(mesh, next(batches))
                waited = time.perf_counter() - asked
                with jax.transfer_guard("disallow"):  # a step needs nothing but what is on the devices
                    state, metrics = training.step(state, batch)
                step += 1
                monitor.add(step, metrics, waited)  # looks at the step before, while the devices work at this one

            evaluation_missed, stop, score = False, interruption.at(step), None
            if evaluation_due() or stop or (recipe.save_every and step % recipe.save_every == 0):
                monitor.flush()  # what is not finite is not saved
                if evaluation_due() and not stop:
                    try:
                        result = evaluated(state)
                    except InterruptedEvaluationError as error:  # the system that stops a run waits for seconds only
                        stop = error.signal
                    else:
                        score = result.score
                        if log:
                            log.evaluation(step, result)
                        if recipe.select == "last" or score >= checkpoints.best_score:
                            export_model(state)  # the run can be used, and looked at, before its end
                            describe_model(step, result)
                            exported = step, result
                checkpoints.save(state, batches, recipe.to_json(), score)
                monitor.restart_clock()  # evaluation and saving are not the steps' time
            if stop:
                checkpoints.wait()
                raise PreemptedError(step, total, stop)

        checkpoints.wait()
        if exported is None or exported[0] != (checkpoints.best if recipe.select == "best" else total):
            if recipe.select == "best":
                state = checkpoints.restore_best(state)
            export_model(state)
            try:
                exported = int(state.step), evaluated(state)
            except InterruptedEvaluationError as error:
                raise PreemptedError(total, total, error.signal) from None
            describe_model(*exported)
        if log:
            step, result = exported
            log.close()
            task.plot(result, out)
            report(f"{out / run_files.MODEL}: the model of step {step}, {result.headline()}.")
    return out / run_files.MODEL


def _check_folder(out: Path, recipe: Recipe, resume: bool) -> Recipe | None:
    """Checks that a run may begin or resume in the folder, before Orbax starts threads that complain about an early end.

    Returns the recipe of the run that is in it already, or None.

    Raises:
        ValueError: it may not begin or resume there.
    """
    if blocked := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{out}: a run needs a folder, and {blocked} is a file; give another name.")
    try:
        os.fspath(out.absolute()).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{out}: the folder's name is no UTF-8, and checkpoints cannot be written there.") from None
    used = run_files.has_checkpoints(out)
    if not used and (out / CONFIG_NAME).exists() and not (out / run_files.RECIPE).exists():
        raise ValueError(
            f"{out} holds a model and no run, whose {CONFIG_NAME} would be replaced: choose another folder."
        )
    used_in_main = used
    if jax.process_count() > 1:
        used_in_main = bool(multihost_utils.broadcast_one_to_all(np.asarray(used)))
    if used_in_main and not resume:
        raise ValueError(f"{out} holds a run already: go on with --resume, or choose another folder.")
    if not used:
        return None
    begun = find_recipe(str(out / run_files.RECIPE))
    if begun.eval_crop is None:  # of natjax 0.1
        begun = dataclasses.replace(begun, eval_crop=begun.crop)
    for name in (*_UNCHANGED, *IMAGE_FIELDS):
        before, now = getattr(begun, name), getattr(recipe, name)
        left_open = name in IMAGE_FIELDS and None in (before, now)
        is_same = is_same_model(before, now) if name == "model" else before == now
        if not (is_same or left_open):
            raise ValueError(
                f"The run was begun with {name} {before}, and cannot go on with {now}: leave it as it was, or choose another "
                "folder for another run."
            )
    return begun


def _opening(training: data_.Source, validation: data_.Source, begins: str, preprocessing: str) -> list[str]:
    """Returns what a run says first: its images, model and preprocessing, and what is odd about the data."""
    classes = counted(len(training.class_names), "class")
    images = f"{len(training):,} training and {len(validation):,} validation images, {classes}"
    notes = dict.fromkeys((*training.notes, *validation.notes))  # what both say, once
    return [f"{images}; {begins}; {preprocessing}", *notes, *data_.remarks(validation, training)]


def _draw_curves(out: Path, task: Any, report: Callable[[str], None]) -> None:
    try:
        plots.curves(out / run_files.METRICS, out / run_files.CURVES, task.curves)
    except OSError as error:  # a full disk, say, which is no reason to lose the error that ended the run
        report(f"{out / run_files.CURVES} could not be drawn: {error.strerror or error}.")


def _restored_or_initial(
    checkpoints: Checkpoints, batches: data_.Batches, training: Training, variables: tuple[Any, Any], mesh: Mesh
) -> TrainState:
    """Returns the newest good checkpoint's state, with the batches moved to where it was; else the initial state."""
    abstract = jax.eval_shape(training.init, *variables)
    shardings = state_shardings(mesh, abstract)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    state = checkpoints.restore(like, batches)
    if state is None:
        of_variables = (shardings.params, shardings.batch_stats)
        variables = jax.device_put(jax.tree.map(np.asarray, variables), of_variables)
        state = jax.jit(training.init, out_shardings=shardings)(*variables)
    return state
