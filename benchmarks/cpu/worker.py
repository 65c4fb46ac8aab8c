"""Runs an entrant in a process of its own, so that what it is measured beside leaves it neither threads nor memory.

XLA takes a step's memory from the system and gives it back; beside PyTorch in one process that took longer than alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """A process that prepares a run and then runs it when it is told to.

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
            self.close()
            raise

    def run(self) -> None:
        """Runs it once; returns when that is done."""
        self._ask("run")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

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
    except Exception as error:  # told as a row; as words, for not every exception can be sent
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
