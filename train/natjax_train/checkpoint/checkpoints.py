"""Checkpoints of a run, by Orbax: state, position in the data, score and recipe; asynchronous, atomic, restored on any mesh.

A checkpoint lies in `<directory>/<step>`, which appears under this name only once it is complete. A digest per array, a sum over
its bits that no sharding changes, is saved with the arrays and compared after reading, so that damage to the files is noticed
and the newest good checkpoint used instead. Position and score are natjax's own files in `<step>/data`: Orbax could add metrics
only to a checkpoint that it deletes and writes again, which a kill or a full disk would turn into none.

Every process reads a checkpoint as a whole, by itself, and all agree on whether it is good before any takes it: a file that one
of them cannot read would otherwise leave the others waiting for it. Nothing is set aside before a good one is found.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from natjax.atomic import staging
from natjax.errors import CheckpointError
from natjax_train.checkpoint.checksums import digest, digests, sealed, unsealed
from natjax_train.checkpoint.orbax_items import DataIterator, SmallFiles, own_position, position_name, read_positions

if TYPE_CHECKING:
    from natjax_train.step import TrainState

_GOOD, _DAMAGED, _MISFIT = range(3)
_SCORE = "score.json"


class Checkpoints:
    """The checkpoints of one run: the newest few and the best.

    Args:
        directory: made where it does not exist.
        keep: how many of the newest to keep.
        report: called with a message about damaged checkpoints.
    """

    def __init__(self, directory: str | os.PathLike, keep: int, report: Callable[[str], None]):
        self._directory, self._keep, self._report = Path(directory).absolute(), keep, report
        self._pending: tuple[int, Any] | None = None
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_quiet_threads())
        self._open()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.close()  # whatever happened, the save under way is brought to its end
        except CheckpointError as also:
            if error is None:
                raise
            self._report(str(also))

    def _open(self) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,  # ty: ignore
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # ty: ignore
            preservation_policy=self,
            cleanup_tmp_directories=True,
        )
        steps = self.steps
        found = np.array([self._read_score(step) for step in steps], np.float64)
        if steps and jax.process_count() > 1:  # on a network's file system not all may see the same
            bits = found.view(np.uint32)  # as JAX would round them
            found = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
        self._scores = {step: float(score) for step, score in zip(steps, found, strict=True) if not math.isnan(score)}

    def _read_score(self, step: int) -> float:
        """Returns NaN where there is none."""
        path = self._directory / str(step) / "data" / _SCORE
        try:
            return float(unsealed(path, "score")) if path.exists() else math.nan
        except (CheckpointError, OSError, ValueError, KeyError, TypeError):
            if jax.process_index() == 0:
                self._report(f"The score of step {step} is unreadable: it counts as not evaluated.")
            return math.nan

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says which checkpoints to keep; Orbax asks."""
        best = max(((self._scores[c.step], c.step) for c in checkpoints if c.step in self._scores), default=(0.0, None))
        newest = [c.step for c in checkpoints][-self._keep :]
        return [c.step in newest or c.step == best[1] for c in checkpoints]

    @property
    def steps(self) -> list[int]:
        """Steps of which there is a complete checkpoint, in order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest score, the last of equal ones; None where none has one."""
        return max(self._scored(), default=(0.0, None))[1]

    @property
    def best_score(self) -> float:
        """The highest score; minus infinity where there is none."""
        return max(self._scored(), default=(-math.inf, None))[0]

    def has_score(self, step: int) -> bool:
        """Whether the checkpoint of this step has a score."""
        return any(scored == step for _, scored in self._scored())

    def _scored(self) -> list[tuple[float, int]]:
        self.wait()
        return [(self._scores[step], step) for step in self.steps if step in self._scores]

    def save(self, state: TrainState, data: DataIterator, recipe: str, score: float | None = None) -> None:
        """Begins to save the state under its step, once the save before has ended. To one that exists a score is added.

        Raises:
            CheckpointError: this save or the one before failed, as on a full disk; what was saved earlier is intact.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps:
            if score is not None and not self.has_score(step):
                self._add_score(step, score)
            return
        files = {position_name(jax.process_index(), jax.process_count()): data.get_state()}
        if score is not None:
            self._scores[step] = score
            if jax.process_index() == 0:
                files[_SCORE] = score
        items = {"state": {"state": _named(state), "digests": digests(state)}, "data": SmallFiles(files)}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, items, force=True, custom_metadata=json.loads(recipe)
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = (step, response)

    def _add_score(self, step: int, score: float) -> None:
        if jax.process_index() == 0:
            with staging(self._directory / str(step) / "data") as folder:
                (folder / _SCORE).write_text(sealed(score))
        self._scores[step] = score

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
            CheckpointError: it failed.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:  # Orbax and its storage raise what they like
            raise self._failed(step, error) from error

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        good = [s for s in self.steps if s < step]
        rest = f"The earlier ones are intact, the newest is of step {good[-1]}." if good else "There is no earlier one."
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        return CheckpointError(
            f"{self._directory}: the checkpoint of step {step} could not be written: {reason} {rest}"
        )

    def restore(self, like: TrainState, data: DataIterator) -> TrainState | None:
        """Returns the newest good checkpoint's state and moves `data` to where it was; None where there is no checkpoint.

        Damaged ones that are newer are reported and set aside, as `damaged-<step>`; but none where no good one is found.

        Args:
            like: shapes, dtypes and shardings to restore to, of `jax.eval_shape` for instance.
            data: the batches of the run.

        Raises:
            CheckpointError: there are checkpoints, but none is good.
            ValueError: the checkpoints are of another model, recipe or data set.
        """
        arrays, positions, problems = self._first_good(reversed(self.steps), like)
        if arrays is not None:
            data.set_state(own_position(positions, data))  # first, as it may refuse
            self._set_aside(problems)
            return _placed(arrays, like)
        if problems:
            each = "; ".join(f"of step {one}, {reason}" for one, reason in problems.items())
            raise CheckpointError(f"{self._directory}: no good checkpoint: {each}. Nothing was changed.")
        if set_aside := sorted(path.name for path in self._directory.glob("damaged-*")):
            raise CheckpointError(
                f"{self._directory}: there are only damaged checkpoints ({', '.join(set_aside)}). To start anew, remove them "
                "or choose another folder."
            )
        return None

    def restore_best(self, like: TrainState, newest: TrainState) -> TrainState:
        """Returns the state of the good checkpoint with the highest score, which may be the newest: that is at hand.

        Damaged ones with higher scores are reported and set aside.

        Raises:
            ValueError: the checkpoints are of another model or recipe.
        """
        ranked = [step for _, step in sorted(self._scored(), reverse=True)]
        better = itertools.takewhile(lambda step: step != int(newest.step), ranked)
        arrays, _, problems = self._first_good(better, like)
        self._set_aside(problems)
        return newest if arrays is None else _placed(arrays, like)

    def _first_good(
        self, steps: Iterable[int], like: TrainState
    ) -> tuple[dict[str, np.ndarray] | None, list[Any], dict[int, str]]:
        """Returns arrays and positions of the first good checkpoint, and what is wrong with those before it."""
        problems: dict[int, str] = {}
        for step in steps:
            arrays, positions, verdict, reason = self._read(step, like)
            verdict, reason = _agreed(verdict, reason)
            if verdict == _MISFIT:
                raise ValueError(f"{self._directory}: its checkpoints are of another model or recipe: {reason}.")
            if verdict == _GOOD:
                return arrays, positions, problems
            problems[step] = reason
        return None, [], problems

    def _read(self, step: int, like: TrainState) -> tuple[dict[str, np.ndarray], list[Any], int, str]:
        """Returns all arrays, all processes' positions in the data, a verdict and the reason for it."""
        path = self._directory / str(step)
        try:
            with _alone():
                saved: Any = ocp.metadata(str(path), "state").metadata
                if difference := _difference(saved["state"], _named(like)):
                    return {}, [], _MISFIT, difference
                wanted = {name: np.empty((), leaf.dtype) for name, leaf in _named(like).items()}
                items = {"state": wanted, "digests": np.empty((), np.uint32)}
                found = ocp.load_checkpointables(str(path), {"state": items})["state"]
            positions = read_positions(path / "data")
            right = [digest(np, found["state"][name]) for name in wanted]
            if not np.array_equal(np.stack(right), found["digests"]):
                return {}, [], _DAMAGED, "some of its arrays are not what was saved"
            return found["state"], positions, _GOOD, ""
        except Exception as error:  # whatever a damaged file makes of Orbax
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # where each array's read would say the same
            return {}, [], _DAMAGED, _reason(error)

    def _set_aside(self, problems: dict[int, str]) -> None:
        for step, reason in problems.items():
            self._report(f"The checkpoint of step {step} is damaged: {reason}. It is set aside as damaged-{step}.")
        if problems:
            self._checkpointer.close()
            if jax.process_index() == 0:
                for step in problems:
                    _rename_damaged(self._directory / str(step))
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("natjax damaged checkpoints")
            self._open()

    def close(self) -> None:
        """Waits for the save under way and ends.

        Raises:
            CheckpointError: that save failed.
        """
        with self._quiet:
            try:
                self.wait()
            finally:
                with contextlib.suppress(Exception):  # of a failed save, which `wait` has raised
                    self._checkpointer.close()


def _alone() -> ocp.Context:
    """Returns a context in which Orbax waits for no other process."""
    context, index = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"natjax-{index}"
    return context


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Returns in words how the arrays of a checkpoint differ from those wanted; "" where they do not."""
    lacking, spare = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    if lacking or spare:
        parts = [
            f"{what} {names[0]} ({len(names)} arrays)" for what, names in (("lacks", lacking), ("has", spare)) if names
        ]
        return f"the checkpoint {' and '.join(parts)}{'' if lacking else ', which the recipe does without'}"
    for name, leaf in wanted.items():
        if (found := (tuple(saved[name].shape), saved[name].dtype)) != (tuple(leaf.shape), leaf.dtype):
            return f"{name} is {list(found[0])} {found[1]} in the checkpoint and {list(leaf.shape)} {leaf.dtype} here"
    return ""


def _placed(arrays: dict[str, np.ndarray], like: TrainState) -> TrainState:
    """Returns the arrays on the devices, each with its sharding."""

    def place(name: str, leaf: Any) -> jax.Array:
        array = arrays.pop(name)  # the host's copy goes as soon as it is on the devices
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.unflatten(jax.tree.structure(like), [place(name, leaf) for name, leaf in _named(like).items()])


def _named(state: TrainState) -> dict[str, Any]:
    """Returns the arrays by path: Orbax would make text of the model's whole-number keys."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _reason(error: BaseException) -> str:
    """Returns what was at the root of an error, on one line: Orbax wraps what its storage says."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).partition(" [tensorstore_spec")[0].split()).removesuffix(".")
    return text[max(0, text.rfind("Error ")) :][:400] or type(error).__name__


def _agreed(verdict: int, reason: str) -> tuple[int, str]:
    """Returns the worst verdict of all processes; the reason is this process's own, if it has one."""
    if jax.process_count() > 1:
        verdict = int(np.max(multihost_utils.process_allgather(np.asarray(verdict))))
    return verdict, reason or ("another process says so" if verdict else "")


def _rename_damaged(path: Path) -> None:
    names = (path.with_name(f"damaged-{path.name}" + (f"-{i}" if i else "")) for i in itertools.count())
    path.rename(next(name for name in names if not name.exists()))


@contextlib.contextmanager
def _quiet_threads() -> Generator[None]:
    """Keeps every thread of Orbax and its storage from printing the traceback of an error that the main one raises as well."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def of_others(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def note(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # the storage's answer comes after Orbax has given up
            hook(unraisable)

    logger.addFilter(of_others)
    sys.unraisablehook = note
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(of_others)
