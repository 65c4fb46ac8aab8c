"""Checks of a configuration's fields: each names the field, its value and what was expected."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from natjax.text import did_you_mean

MAX_SIZE = 10**7  # bounds sizes in files that nobody means to run


def check_fields(dataclass: Any, names: Iterable[str]) -> None:
    """Checks that a dataclass has fields of these names.

    Raises:
        ValueError: it lacks one; the message names the nearest, or all there are.
    """
    fields = [field.name for field in dataclasses.fields(dataclass)]
    for name in names:
        if name not in fields:
            hint = did_you_mean(name, fields) or f" There are: {', '.join(fields)}."
            raise ValueError(f"{dataclass.__name__} has no field {name!r}.{hint}")


def plain(value: Any) -> Any:
    """Returns numpy's and JAX's scalars and arrays as Python's numbers and lists."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def class_index(key: Any) -> int:
    """Returns a class index, which may be text ("0") as in JSON.

    Raises:
        ValueError: the key is no integer.
    """
    key = plain(key)
    try:
        return int(key) if isinstance(key, str) else operator.index(key)
    except (TypeError, ValueError):
        raise ValueError(f"Classes must be numbered by integers, class indices; got {key!r}.") from None


def expect_int(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> None:
    """Checks that a field is an integer within bounds.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}.")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got more.")


def expect_number(name: str, value: Any) -> None:
    """Checks that a field is a finite number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:  # inf and nan fail the last
        raise ValueError(f"{name} must be a finite number; got {value!r}.")


def int_tuple(name: str, values: Any) -> tuple[int, ...]:
    """Returns a field of positive integers as a tuple.

    Raises:
        ValueError: it is none.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be a sequence of positive integers; got {values!r}.")
    for value in values:
        expect_int(f"{name}'s entries", value, minimum=1)
    return tuple(values)


def stages_named(argument: str, names: Any, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a field of names of stages, in their order, as a tuple.

    Raises:
        ValueError: it is empty, has an unknown name or another order.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"{argument} must be a non-empty sequence; got {names!r}.")
    if unknown := [name for name in names if name not in stages]:
        raise ValueError(f"{argument} must be among {', '.join(stages)}; got {unknown}.")
    if list(names) != [stage for stage in stages if stage in names]:
        raise ValueError(f"{argument} must be in the order of {', '.join(stages)}, each once; got {list(names)}.")
    return tuple(names)
