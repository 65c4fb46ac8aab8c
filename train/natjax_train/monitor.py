"""Watches the steps: metrics are logged, and what is not finite skips the step or ends the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from natjax.errors import CheckpointError, NatjaxError
from natjax.text import first_few
from natjax_train.checkpoint import Checkpoints
from natjax_train.data import Batches
from natjax_train.log import Log
from natjax_train.recipe import Recipe

_MOST_SKIPPED_IN_A_ROW = 100  # steps that are not finite: beyond that nothing is learnt any more


class NonFiniteError(NatjaxError, ValueError):
    """The loss or a gradient is NaN or infinite."""


class StepMonitor:
    """Fetches the metrics of steps, one step late so that the devices never wait; logs them, and stops at NaNs.

    Args:
        recipe: the run's.
        params: its parameters, whose names messages give.
        batches: of which unreadable images are counted.
        checkpoints: whose newest good one messages name.
        log: None in all processes but the main one.
        report: called with messages for people.
    """

    def __init__(
        self,
        recipe: Recipe,
        params: Any,
        batches: Batches,
        checkpoints: Checkpoints,
        log: Log | None,
        report: Callable[[str], None],
    ):
        self._recipe, self._batches, self._checkpoints = recipe, batches, checkpoints
        self._log, self._report = log, report
        self._skipped_in_a_row = 0
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        self._names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._clock, self._waited = time.perf_counter(), 0.0  # since the last step was done

    def restart_clock(self) -> None:
        """Leaves what was done since the last step, such as an evaluation, out of the next one's time."""
        self._clock, self._waited = time.perf_counter(), 0.0
        if self._log:
            self._log.restart_clock()

    def add(self, step: int, found: dict[str, Any], waited: float) -> None:
        """Takes a step's metrics, which may not be computed yet, and `waited` seconds for its data; looks at the one before.

        Raises:
            NonFiniteError: the step before is not finite, and may not be skipped.
        """
        self._waited += waited
        self.flush()
        self._pending = (step, found)

    def flush(self) -> None:
        """Looks at the last step.

        Raises:
            NonFiniteError: it is not finite, and may not be skipped.
        """
        if self._pending is None:
            return
        (step, found), self._pending = self._pending, None
        host = jax.device_get(found)  # waits for the step
        now = time.perf_counter()
        seconds, waited = max(now - self._clock, 1e-9), self._waited
        self._clock, self._waited = now, 0.0
        loss, rate, norm = (float(host[name]) for name in ("loss", "lr", "grad_norm"))
        if not host["finite"]:
            self._skipped_in_a_row += 1
            self._stop_or_skip(step, loss, norm, host["grad_norms"])
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
                skipped=int(host["skipped"]),
                unreadable=len(self._batches.unreadable),
                **{name: float(part) for name, part in host["parts"].items()},
            )

    def _stop_or_skip(self, step: int, loss: float, norm: float, norms: np.ndarray) -> None:
        bad = [name for name, one in zip(self._names, norms, strict=True) if not np.isfinite(one)]
        if bad:
            where = f"{len(bad)} of {len(norms)} parameters have such gradients: {first_few(bad)}"
        else:
            where = "no gradient" if not np.isfinite(loss + norm) else "statistics of batch normalisation are not"
        what = f"Step {step} is not finite: loss {loss}, norm of the gradients {norm}; {where}."
        if self._recipe.skip_nonfinite and self._skipped_in_a_row < _MOST_SKIPPED_IN_A_ROW:
            self._report(f"{what} It is left out.")
            return
        with contextlib.suppress(CheckpointError):
            self._checkpoints.wait()  # one that is being written counts only once it is there
        good = self._checkpoints.steps
        last = f"The last good checkpoint is of step {good[-1]}." if good else "There is no checkpoint yet."
        raise NonFiniteError(f"{what} {last} A lower learning_rate, clip_norm or --skip-nonfinite may help.")
