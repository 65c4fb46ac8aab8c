"""What the commands print: messages and progress on stderr, aligned tables and one JSON document on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from natjax.text import printable


def complain(message: str) -> None:
    """Prints a message of the command on stderr."""
    print("natjax:", "\n".join(map(printable, message.splitlines())), file=sys.stderr)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout."""
    print(json.dumps(document, indent=2))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]], indent: str = "") -> None:
    """Prints rows of as many cells as `head` under it; the first column is aligned left, the others right."""
    table = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print((indent + "  ".join(cells)).rstrip())


class Progress:
    """A line on stderr that says how far a long run is: items done, rate and time left. Silent where nobody watches.

    The `with` statement removes it, whatever ends the run.
    """

    def __init__(self, total: int, unit: str):
        self._total, self._unit, self._start = total, unit, time.monotonic()
        self._width = 0  # of what is shown

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def complain(self, message: str) -> None:
        """Prints a message of the command on stderr, without the line in its way."""
        self.clear()
        complain(message)

    def update(self, done: int, total: int | None = None) -> None:
        """Shows that `done` items in all are done, of another total where that is known only now."""
        self._total = self._total if total is None else total
        if not sys.stderr.isatty() or self._total < 2 or not done:
            return
        rate = done / max(time.monotonic() - self._start, 1e-6)
        minutes, seconds = divmod(round((self._total - done) / rate), 60)
        line = f"{done}/{self._total} {self._unit}, {rate:.1f}/s, {minutes}:{seconds:02d} left"
        line = line[: max(1, shutil.get_terminal_size().columns - 1)]  # one that wraps would not be written over
        print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(line)

    def clear(self) -> None:
        """Removes the line."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0
