"""Runs the sections of a benchmark, each in a process of its own, so that the failure of one is recorded and the rest go on.

A section writes its JSON file again after every measurement (`Report`); the harness ends it at its time limit and writes into the
same file how it ended. A section that was cut off keeps what it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

TAIL = 3000  # characters of a section's output that are kept where it failed
OUT_OF_TIME = "the section's time is up"  # why a row was skipped
GRACE = 10.0  # seconds that a section has to end by itself after its budget


class TimeUp(BaseException):
    """Time is up: of no kind that those who catch exceptions would catch."""


@contextlib.contextmanager
def interrupted(seconds: float) -> Generator[None]:
    """Raises TimeUp in the main thread after so many seconds, in the middle of whatever Python does there."""

    def interrupt(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Report:
    """The JSON file of a section: {"section", "status", "provenance", "rows", ...}, whole after every change.

    `measure` skips what would start when the budget of `seconds` is spent, and what `interrupted` ends.
    """

    def __init__(self, path: pathlib.Path, section: str, provenance: dict[str, Any], seconds: float):
        self._path, self._lock = path, threading.Lock()
        self._deadline = time.monotonic() + seconds
        self.content: dict[str, Any] = {"section": section, "status": "running", "provenance": provenance, "rows": []}
        write(path, self.content)

    def note(self, **values: Any) -> None:
        """Sets values beside the rows."""
        with self._lock:
            self.content.update(values)
            write(self._path, self.content)

    def time_is_up(self) -> bool:
        """Whether the budget is spent."""
        return time.monotonic() > self._deadline

    def measure(self, work: Callable[[], dict[str, Any]], **labels: Any) -> dict[str, Any]:
        """Adds and returns a row: the labels and what `work` returns, or the error it raised, or that time is up."""
        started = time.monotonic()
        if self.time_is_up():
            row = {**labels, "skipped": OUT_OF_TIME}
        else:
            try:
                row = {**labels, **work()}
            except TimeUp:
                row = {**labels, "skipped": OUT_OF_TIME}
            except Exception as error:  # one measurement that fails must not cost the others
                row = {**labels, "error": f"{type(error).__name__}: {str(error)[:500]}"}
            row["took_seconds"] = round(time.monotonic() - started, 2)
        with self._lock:
            self.content["rows"].append(row)
            write(self._path, self.content)
        print(json.dumps(row), flush=True)
        return row


def write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON so that whoever reads it, and whenever this stops, finds all of the old or all of the new."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def run_section(
    path: pathlib.Path, section: str, command: list[str], limit: float, environment: Mapping[str, str]
) -> str:
    """Runs a section's command, which writes `path`; returns its status, which then stands in `path` as well.

    The status is "complete", or "failed" or "timed out" with the end of the output beside it.
    """
    path.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        # A session of its own, so that at the limit the compilers it started end with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=dict(environment), start_new_session=True
        )
        try:
            code = process.wait(limit)
            status = "failed" if code else "complete"
        except subprocess.TimeoutExpired:
            code, status = None, "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - TAIL))
        tail = log.read().decode(errors="replace")
    for partial in path.parent.glob(f".{path.name}.*"):
        partial.unlink()  # of a write that was cut off
    content = json.loads(path.read_text()) if path.exists() else {"section": section, "rows": []}
    content |= {"status": status, "seconds": round(time.monotonic() - started, 1)}
    if status != "complete":
        content |= {"exit_code": code, "output": tail}
    write(path, content)
    return status
