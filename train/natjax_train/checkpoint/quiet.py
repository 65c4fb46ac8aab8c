"""Threads of Orbax and its storage do not print errors that the main thread raises as well."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def quiet_threads() -> Generator[None]:
    """Keeps every thread of Orbax and its storage from printing the traceback of an error that the main one raises as well."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def of_others(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def note(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # the storage's answer comes after Orbax has given up
            hook(unraisable)

    logger.addFilter(of_others)
    sys.unraisablehook = note
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.removeFilter(of_others)
