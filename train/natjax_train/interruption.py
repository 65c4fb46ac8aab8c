"""SIGTERM and Ctrl-C: a run is told to save and to stop, between two steps or amid an evaluation."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

import jax
from jax.experimental import multihost_utils


class InterruptedEvaluationError(Exception):
    """A signal came amid an evaluation."""

    def __init__(self, received: signal.Signals):
        super().__init__(received.name)
        self.signal = received


class Interruption:
    """Tells which signal came that says to save and stop, if one came."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def at(self, step: int) -> signal.Signals | None:
        """Returns the signal, if one came. Asked in every step; all processes of a run hear the same."""
        if jax.process_count() == 1:
            return self.received
        # The processes' coordination catches SIGTERM and settles on a step.
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    def during(self, batches: Iterable[Any]) -> Generator[Any]:
        """Returns the batches of an evaluation, which a signal ends where the run is a single process.

        Raises:
            InterruptedEvaluationError: a signal came.
        """
        for batch in batches:
            self._check()
            yield batch
        self._check()  # once more before what is found is summed up, which can take half a minute

    def _check(self) -> None:
        if self.received:
            raise InterruptedEvaluationError(self.received)


@contextlib.contextmanager
def noted_signals(report: Callable[[str], None]) -> Generator[Interruption]:
    """Notes SIGTERM and the first SIGINT (Ctrl-C) instead of ending the process."""
    interruption, before = Interruption(), {}

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
