"""Runs the sections of a benchmark, each in a process of its own, so that one that fails or hangs is recorded and the rest go on.

A section writes its rows to a partial file after every measurement (`Report`). `run_section` ends it at its time limit and
returns what it has; results of before are replaced only then (`keep`).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import ROOT
from natjax.atomic import replacing

RESULTS = ROOT / "benchmarks" / "results"
TAIL = 3000  # characters of a failed section's output that are kept
ERROR = 500  # characters of an error that are kept: the last, which say what went wrong
OUT_OF_TIME = "the section's time is up"  # why a row was skipped
GRACE = 10.0  # seconds that a section has to end by itself after its budget


class TimeUp(BaseException):
    """Time is up. Not an Exception, so that code that catches those does not catch it."""


@contextlib.contextmanager
def interrupted(seconds: float) -> Generator[None]:
    """Raises TimeUp in the main thread after so many seconds."""

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
    """The JSON file of a section: {"section", "status", "provenance", "rows", ...}, complete after every change."""

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

    def add(self, **row: Any) -> dict[str, Any]:
        """Adds a row whatever the time, and returns it."""
        with self._lock:
            self.content["rows"].append(row)
            write(self._path, self.content)
        return row

    def time_is_up(self) -> bool:
        """Whether the budget is spent."""
        return time.monotonic() > self._deadline

    def measure(self, work: Callable[[], dict[str, Any]], **labels: Any) -> dict[str, Any]:
        """Adds and returns a row: the labels and what `work` returns, or the error it raised, or that time is up."""
        started = time.monotonic()
        try:
            found = {"skipped": OUT_OF_TIME} if self.time_is_up() else work()
        except TimeUp:
            found = {"skipped": OUT_OF_TIME}
        except Exception as error:  # one measurement that fails must not cost the others
            found = {"error": describe(error)}
        row = self.add(**labels, **found, took_seconds=round(time.monotonic() - started, 2))
        print(json.dumps(row), flush=True)
        return row


def describe(error: BaseException) -> str:
    """Returns an error's type and the end of its message."""
    return f"{type(error).__name__}: {str(error)[-ERROR:]}"


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns results written before: none where there is no file, or none that can be read."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        print(f"{path} is empty or damaged ({error}) and is written anew.", file=sys.stderr)
        return {}


def write(path: pathlib.Path, content: Any) -> None:
    """Writes JSON so that a reader finds all of the old or all of the new."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def keep(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns which results of a section to keep: the new ones, unless they have no figures and the old ones do."""
    figures = [
        any("error" not in row and "skipped" not in row for row in found.get("rows", [])) for found in (old, new)
    ]
    return old if figures == [True, False] else new


def run_section(
    path: pathlib.Path, section: str, command: list[str], limit: float, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Runs a section's command, which writes `path`; takes that file away and returns its content.

    Its `status` is "complete", or "failed" or "timed out" with the end of the output beside it.
    """
    path.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        # In a session of its own, so that at the limit the compilers it started end with it.
        options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True, "cwd": ROOT}
        process = subprocess.Popen(command, env=dict(environment), **options)
        try:
            code = process.wait(limit)
            status = "failed" if code else "complete"
        except subprocess.TimeoutExpired:
            code, status = None, "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
        tail = log.read().decode(errors="replace")
    content = {"section": section, "rows": []} | (json.loads(path.read_text()) if path.exists() else {})
    for file in (path, *path.parent.glob(f".{path.name}.*")):  # the others are of a write that was cut off
        file.unlink(missing_ok=True)
    content |= {"status": status, "seconds": round(time.monotonic() - started, 1)}
    return content | ({} if status == "complete" else {"exit_code": code, "output": tail})


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a section's process: this one's, without what would change what is measured."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "TRITON_INTERPRET")}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


class Worker(contextlib.AbstractContextManager):
    """A process that prepares a run and then runs it when told to, with threads and memory of its own.

    XLA takes a step's memory from the system and gives it back; beside PyTorch in one process that took longer than alone.

    Args:
        prepare: returns the run, and what preparing it found; of a module that the process can import.
        *arguments: of `prepare`; the first names the process.

    Attributes:
        row: what preparing it found.

    Raises:
        RuntimeError: `prepare` or a run failed, or the process died; here and from `run`.
    """

    def __init__(self, prepare: Callable[..., tuple[Callable[[], Any], dict[str, Any]]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, arguments), name=str(arguments[0]))
        self._process.start()
        theirs.close()  # so that reading from a process that died ends
        try:
            self.row = self._ask()
        except BaseException:
            self.__exit__()
            raise

    def run(self) -> None:
        """Runs it once; returns when that is done."""
        self._ask("run")

    def __exit__(self, *_: Any) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ask(self, what: str | None = None) -> Any:
        try:
            if what:
                self._pipe.send(what)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            message = f"the process of {self._process.name} ended with exit code {self._process.exitcode}"
            raise RuntimeError(message) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, prepare: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        run, row = prepare(*arguments)
        pipe.send(row)
        while pipe.recv():
            run()
            pipe.send(None)
    except EOFError:  # whoever measures is gone
        pass
    except Exception as error:  # as words, because not every exception can be sent
        pipe.send(RuntimeError(describe(error)))
