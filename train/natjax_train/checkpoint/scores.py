"""The scores of a run's checkpoints: which is the best, and which are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from natjax.atomic import staging
from natjax.errors import CheckpointError
from natjax_train.checkpoint.checksums import sealed, unsealed

SCORE = "score.json"


class Scores:
    """Scores by step; also Orbax's policy of preservation: the newest few checkpoints and the best are kept.

    Args:
        directory: of the checkpoints.
        keep: how many of the newest to keep.
        report: called with a message about a score that is unreadable.
    """

    def __init__(self, directory: Path, keep: int, report: Callable[[str], None]):
        self._directory, self._keep, self._report = directory, keep, report
        self._scores: dict[int, float] = {}

    def load(self, steps: Sequence[int]) -> None:
        """Reads the scores of the checkpoints that there are; all processes then have the main one's."""
        found = np.array([self._read(step) for step in steps], np.float64)
        if steps and jax.process_count() > 1:  # on a network's file system not all may see the same
            bits = found.view(np.uint32)  # as JAX would round them
            found = np.asarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
        self._scores = {step: float(score) for step, score in zip(steps, found, strict=True) if not math.isnan(score)}

    def _read(self, step: int) -> float:
        """Returns NaN where there is none."""
        path = self._directory / str(step) / "data" / SCORE
        try:
            return float(unsealed(path, "score")) if path.exists() else math.nan
        except (CheckpointError, OSError, ValueError, KeyError, TypeError):
            if jax.process_index() == 0:
                self._report(f"The score of step {step} is unreadable: it counts as not evaluated.")
            return math.nan

    def note(self, step: int, score: float) -> None:
        """Notes the score of a checkpoint that is being written with it."""
        self._scores[step] = score

    def add(self, step: int, score: float) -> None:
        """Adds a score to a checkpoint that exists.

        Raises:
            CheckpointError: it cannot be written.
        """
        if jax.process_index() == 0:
            with staging(self._directory / str(step) / "data") as folder:
                (folder / SCORE).write_text(sealed(score))
        self.note(step, score)

    def of(self, steps: Iterable[int]) -> list[tuple[float, int]]:
        """Returns score and step of those that have a score."""
        return [(self._scores[step], step) for step in steps if step in self._scores]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Says which checkpoints to keep; Orbax asks."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = max(self.of(steps), default=(0.0, None))[1]
        return [step in steps[-self._keep :] or step == best for step in steps]
