"""Runs an entrant in a process of its own, so that what it is measured beside leaves it neither threads nor memory.

XLA takes a step's memory from the system and gives it back; beside PyTorch in one process that took it twice as long as alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """A process that prepares a run and then runs it when it is told to.

    Attributes:
        row: what preparing it found.
    """

    def __init__(self, prepare: Callable[..., tuple[Callable[[], Any], dict[str, Any]]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, arguments))
        self._process.start()
        theirs.close()  # so that reading from a process that died ends
        try:
            self.row = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        """Runs it once; returns when that is done."""
        self._pipe.send("run")
        self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with exit code {self._process.exitcode}") from None
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
