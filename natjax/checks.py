"""Checks of arguments that several parts of natjax take."""

from __future__ import annotations

import operator
from typing import Any


def check_count(name: str, value: Any, otherwise: str = "") -> int:
    """Returns a number of things as Python has it.

    Raises:
        ValueError: it is no integer, or less than 1.
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be at least 1{otherwise}; got {value!r}.")
    return count
