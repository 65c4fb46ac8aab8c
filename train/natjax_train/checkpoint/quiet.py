"""Threads of Orbax and its storage do not print errors that the main thread raises as well."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def quiet_threads() -> Callable[[], None]:
    """Keeps every thread of Orbax and its storage from printing the traceback of an error that the main one raises as well.

    Returns a function that ends this.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook

    def of_others(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def note(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # the storage's answer comes after Orbax has given up
            hook(unraisable)

    def end() -> None:
        sys.unraisablehook = hook
        logger.removeFilter(of_others)

    logger.addFilter(of_others)
    sys.unraisablehook = note
    return end
