"""What a run reports: metrics.jsonl, a live line on a terminal, plain lines elsewhere, TensorBoard if installed.

Every line of metrics.jsonl is one JSON object with a "step": of a step of training `loss`, `lr`, `images_per_second`, ...; of
an evaluation the task's numbers, such as `val_loss` and `top1`, and no `lr`. What is not finite is null.
"""

from __future__ import annotations

import collections
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from natjax import run_files
from natjax.atomic import replacing

if TYPE_CHECKING:
    from natjax_train.tasks.base import Result

_SECONDS_BETWEEN_UPDATES = 0.1


class Log:
    """The metrics of one run; used by its leading process alone.

    Args:
        run_dir: the run's folder. Lines of its metrics.jsonl beyond `first_step` are dropped, as those steps come again; so
            are half-written ones.
        total_steps: of the whole run.
        first_step: steps that an earlier part of the run did.
        log_every: steps between plain lines, and steps that what is shown is the mean of.
        stream: where people look; stderr by default.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        total_steps: int,
        first_step: int = 0,
        *,
        log_every: int = 50,
        stream: TextIO | None = None,
    ):
        self._total, self._log_every = total_steps, log_every
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._recent = collections.deque(maxlen=log_every)
        # The steps after the first, which is compiled for, and their time, without what was done between them.
        self._timed, self._seconds = 0, 0.0
        self._before: float | None = None  # when the last step was done, or what came after it
        self._shown, self._width = 0.0, 0
        path = Path(run_dir) / run_files.METRICS
        self._evaluated = _rewind(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(Path(run_dir) / run_files.TENSORBOARD, first_step)

    def step(
        self, step: int, *, loss: float, lr: float, images_per_second: float, data_wait: float, **others: float
    ) -> None:
        """Logs a step of training.

        Args:
            step: steps done, this one included.
            loss: of the batch.
            lr: learning rate.
            images_per_second: speed.
            data_wait: part of the time that was spent waiting for data.
            others: more numbers for metrics.jsonl.
        """
        found = {"loss": loss, "lr": lr, "images_per_second": images_per_second, "data_wait": data_wait, **others}
        self._write(step, found)
        now = time.monotonic()
        counts = self._before is not None
        self._recent.append((loss, counts / images_per_second, counts * data_wait / images_per_second, counts))
        if self._before is not None:
            self._timed += 1
            self._seconds += now - self._before
        self._before = now
        if self._live:
            if now - self._shown >= _SECONDS_BETWEEN_UPDATES or step == self._total:
                self._shown = now
                text = _fitting(self._line(step, lr), shutil.get_terminal_size().columns - 1)
                print(f"\r{text:<{self._width}}", end="", file=self._stream, flush=True)
                self._width = len(text)
        elif step % self._log_every == 0 or step == self._total:
            print(self._line(step, lr), file=self._stream, flush=True)

    def restart_clock(self) -> None:
        """Leaves what was done since the last step, such as an evaluation, out of the time that steps take."""
        if self._before is not None:
            self._before = time.monotonic()

    def evaluation(self, step: int, result: Result) -> None:
        """Logs an evaluation that was done after a step; in metrics.jsonl once, however often a kill has it done again."""
        if step != self._evaluated:
            self._write(step, result.row())
            self._evaluated = step
        self.clear()
        print(f"evaluation after step {step}: {result.text()}", file=self._stream, flush=True)

    def clear(self) -> None:
        """Removes the live line, for something else to be printed."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=self._stream, flush=True)
            self._width = 0

    def beside(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """Returns a function that reports a message without the live line in its way."""

        def clear_and_report(message: str) -> None:
            self.clear()
            report(message)

        return clear_and_report

    def close(self) -> None:
        """Ends the log, also a second time; the live line's last state stays."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0
        self._file.close()
        if self._board:
            self._board.close()
            self._board = None

    def _write(self, step: int, found: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in found.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in found.items():
                self._board.add_scalar(name, value, step)

    def _line(self, step: int, lr: float) -> str:
        losses, seconds, waits, counted = (sum(values) for values in zip(*self._recent, strict=True))
        left = _duration(self._seconds / self._timed * (self._total - step)) if self._timed else "-"
        speed, wait = (f"{counted / seconds:.0f}", f"{waits / seconds:.0%}") if counted else ("-", "-")
        return (  # the least important last; in 80 columns, also of runs of some hundred thousand steps
            f"step {step:{len(str(self._total))}}/{self._total}  loss {losses / len(self._recent):.4f}  lr {lr:.1e}  "
            f"eta {left}  {speed} img/s  wait {wait}"
        )


def _fitting(line: str, width: int) -> str:
    """Returns the line without its last fields where it is too long: a line that wraps would not be written over."""
    while len(line) > width:
        line = line.rpartition("  ")[0]
    return line


def _rewind(path: Path, step: int) -> int | None:
    """Leaves the whole lines of steps up to this one; returns which step the last evaluation among them is of."""
    kept, evaluated = [], None
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            found = json.loads(line)
            if line.endswith(b"\n") and found["step"] <= step:
                kept.append(line)
                evaluated = evaluated if "lr" in found else found["step"]
        except (ValueError, KeyError, TypeError):  # a crash can leave anything
            continue
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return evaluated


def _tensorboard(directory: Path, step: int) -> Any:
    try:
        import tensorboardX  # ty: ignore[import-not-found]
    except ImportError:
        return None
    return tensorboardX.SummaryWriter(str(directory), purge_step=step + 1)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
