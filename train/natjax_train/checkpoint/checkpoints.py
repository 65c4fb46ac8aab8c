"""Checkpoints of a run, by Orbax: state, position in the data, score and recipe; asynchronous, atomic, restored on any mesh.

A checkpoint lies in `<directory>/<step>`, which appears under this name only once it is complete. A digest per array, a sum over
its bits that no sharding changes, is saved with the arrays and compared after reading, so that damage to the files is noticed
and the newest good checkpoint used instead. Position and score are natjax's own files in `<step>/data`: Orbax could add metrics
only to a checkpoint that it deletes and writes again, which a kill or a full disk would turn into none.

Nothing is set aside before a good checkpoint is found.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from natjax.errors import CheckpointError
from natjax_train.checkpoint.checksums import digests
from natjax_train.checkpoint.orbax_items import DataIterator, SmallFiles, position_name
from natjax_train.checkpoint.quiet import quiet_threads
from natjax_train.checkpoint.reading import GOOD, MISFIT, named, placed, read
from natjax_train.checkpoint.scores import SCORE, Scores

if TYPE_CHECKING:
    from natjax_train.step import TrainState


class Checkpoints:
    """The checkpoints of one run: the newest few and the best.

    Args:
        directory: made where it does not exist.
        keep: how many of the newest to keep.
        report: called with a message about damaged checkpoints.
    """

    def __init__(self, directory: str | os.PathLike, keep: int, report: Callable[[str], None]):
        self._directory, self._report = Path(directory).absolute(), report
        self._scores = Scores(self._directory, keep, report)
        self._pending: tuple[int, Any] | None = None
        self._has_failed = False
        self._end_quiet = quiet_threads()
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
            preservation_policy=self._scores,
            cleanup_tmp_directories=True,
        )
        self._scores.load(self.steps)

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
        return self._scores.of(self.steps)

    def save(self, state: TrainState, data: DataIterator, recipe: str, score: float | None = None) -> None:
        """Begins to save the state under its step, once the save before has ended. To one that exists a score is added.

        Raises:
            CheckpointError: this save or the one before failed, as on a full disk; what was saved earlier is intact.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps:
            if score is not None and not self.has_score(step):
                self._scores.add(step, score)
            return
        files = {position_name(jax.process_index(), jax.process_count()): data.get_state()}
        if score is not None:
            self._scores.note(step, score)
            if jax.process_index() == 0:
                files[SCORE] = score
        items = {"state": {"state": named(state), "digests": digests(state)}, "data": SmallFiles(files)}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, items, force=True, custom_metadata=json.loads(recipe)
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = (step, response)

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
        self._has_failed = True
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
            data.set_state(data.join_states(positions))  # first, as it may refuse
            self._set_aside(problems)
            return placed(arrays, like)
        if problems:
            each = "; ".join(f"of step {one}, {reason}" for one, reason in problems.items())
            raise CheckpointError(f"{self._directory}: no good checkpoint: {each}. Nothing was changed.")
        if set_aside := sorted(path.name for path in self._directory.glob("damaged-*")):
            raise CheckpointError(
                f"{self._directory}: there are only damaged checkpoints ({', '.join(set_aside)}). To start anew, remove them "
                "or choose another folder."
            )
        return None

    def restore_best(self, newest: TrainState) -> TrainState:
        """Returns the state of the good checkpoint with the highest score, placed as the newest is.

        Damaged ones with higher scores are reported and set aside.

        Args:
            newest: the run's state now, returned as it is where its checkpoint is the best.

        Raises:
            ValueError: the checkpoints are of another model or recipe.
        """
        ranked = [step for _, step in sorted(self._scored(), reverse=True)]
        better = itertools.takewhile(lambda step: step != int(newest.step), ranked)
        arrays, _, problems = self._first_good(better, newest)
        self._set_aside(problems)
        return newest if arrays is None else placed(arrays, newest)

    def _first_good(
        self, steps: Iterable[int], like: TrainState
    ) -> tuple[dict[str, np.ndarray] | None, list[Any], dict[int, str]]:
        """Returns arrays and positions of the first good checkpoint, and what is wrong with those before it."""
        problems: dict[int, str] = {}
        for step in steps:
            arrays, positions, verdict, reason = read(self._directory / str(step), like)
            if verdict == MISFIT:
                raise ValueError(f"{self._directory}: its checkpoints are of another model or recipe: {reason}.")
            if verdict == GOOD:
                return arrays, positions, problems
            problems[step] = reason
        return None, [], problems

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
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # of a failed save, which `wait` has raised
                self._checkpointer.close()
            if not self._has_failed:  # a failed save's threads may complain after this
                self._end_quiet()


def _rename_damaged(path: Path) -> None:
    names = (path.with_name(f"damaged-{path.name}" + (f"-{i}" if i else "")) for i in itertools.count())
    path.rename(next(name for name in names if not name.exists()))
