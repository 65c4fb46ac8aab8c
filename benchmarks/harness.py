"""What the benchmarks share: rows that are on disk as soon as they are measured, time limits, and workers."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import multiprocessing
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks import ROOT
from natjax.atomic import replacing

RESULTS = ROOT / "benchmarks" / "results"
ERROR = 500  # characters of an error that are kept: the last, which say what went wrong
OUT_OF_TIME = "the section's time is up"  # why a row was skipped
CASES = (
    "names or patterns: 'tiny level 1' is one case, '* level 1*' all levels 1, dilated or not (default: all)"  # help
)


class Options(NamedTuple):
    """Of a run: whether it is a small one, threads that compile side by side, names or patterns of what to measure (all)."""

    small: bool = False
    threads: int = 1
    cases: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        """Whether what is called so is to be measured."""
        return not self.cases or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.cases)


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

    def measure(self, work: Callable[[], dict[str, Any]], *, late: bool | None = None, **labels: Any) -> dict[str, Any]:
        """Adds and returns a row: the labels and what `work` returns, or the error it raised, or that it is too late.

        `late` says whether it is (default: whether time is up): what was compiled in time is worth its measurement.
        """
        started = time.monotonic()
        late = self.time_is_up() if late is None else late
        try:
            found = {"skipped": OUT_OF_TIME} if late else work()
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


def memory(field: str) -> int:
    """Returns bytes of this process by a field of Linux: RssAnon is what it holds, VmHWM the most it had at a time."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


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
            self.row = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def run(self) -> None:
        """Runs it once; returns when that is done."""
        with contextlib.suppress(OSError):  # of a process that died; the answer says how
            self._pipe.send("run")
        self._answer()

    def __exit__(self, *_: Any) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            name, code = self._process.name, self._process.exitcode
            answer = RuntimeError(f"the process of {name} ended with exit code {code}")
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
