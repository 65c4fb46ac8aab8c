"""Fields of settings: their help text and the values they may have are metadata of a dataclass's fields.

A class of settings is a frozen dataclass whose fields are made by `setting` and whose `__post_init__` calls `check`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "not negative": (lambda value: value >= 0, "at least 0"),
    "positive": (lambda value: value > 0, "more than 0"),
    "fraction": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "part": (lambda value: 0 < value < 1, "more than 0 and less than 1"),
    "all positive": (lambda value: all(entry > 0 for entry in value), "numbers more than 0"),
    "range": (lambda value: len(value) == 2 and 0 < value[0] <= value[1], "two numbers, 0 < least <= greatest"),
}
_MEANING: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    tuple[float, ...]: "numbers with commas between",
    Mapping[str, Any]: "a JSON object or the name of its file",
}
_METAVARS = {
    str: "TEXT",
    bool: "true|false",
    int: "N",
    float: "X",
    tuple[float, ...]: "X,...",
    Mapping[str, Any]: "JSON",
}


def setting(text: str, default: Any = dataclasses.MISSING, *rules: str, choices: tuple[str, ...] = ()) -> Any:
    """Returns a field of a class of settings.

    Args:
        text: what the field means; the help of its flag.
        default: its default; a field without one must be given.
        rules: names of `_RULES`; plain numbers without any must not be negative. None is allowed where the type says so.
        choices: the only values allowed.
    """
    metadata = {"help": text, "rules": rules, "choices": choices}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def field_types(cls: Any) -> dict[str, Any]:
    """Returns the type of every field, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def metavar(kind: Any) -> str:
    """Returns what the help calls the value of a field of this type."""
    plain = (
        next(arg for arg in typing.get_args(kind) if arg is not types.NoneType)
        if isinstance(kind, types.UnionType)
        else kind
    )
    return _METAVARS[plain]


def help_texts(cls: Any) -> dict[str, str]:
    """Returns what every field means, by name, with the values it may have."""
    return {
        field.name: ": ".join((field.metadata["help"], " or ".join(field.metadata["choices"]))).removesuffix(": ")
        for field in dataclasses.fields(cls)
    }


def check(settings: Any) -> None:
    """Checks all fields; whole numbers become floats, and lists tuples, where those are meant.

    Raises:
        ValueError: a field is impossible; the message names field, value and expectation.
    """
    kinds = field_types(type(settings))
    for name, kind in kinds.items():
        object.__setattr__(settings, name, _as_type(name, kind, getattr(settings, name)))
    for field in dataclasses.fields(settings):
        kind, value = kinds[field.name], getattr(settings, field.name)
        rules = field.metadata["rules"] or (("not negative",) if kind in (int, float) else ())
        for fine, expected in (_RULES[rule] for rule in rules):
            if value is not None and not fine(value):
                optional = "none or " if _is_optional(kind) else ""
                raise ValueError(f"{field.name} must be {optional}{expected}; got {value!r}.")
        choices = field.metadata["choices"]
        if choices and value not in choices and not (value is None and _is_optional(kind)):
            raise ValueError(f"{field.name} must be {' or '.join(map(repr, choices))}; got {value!r}.")


def _is_optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def _without_none(kind: Any) -> Any:
    """Returns the type that a field has where it is not None: `int` of `int | None`."""
    return next(part for part in typing.get_args(kind) if part is not type(None)) if _is_optional(kind) else kind


def _as_type(name: str, kind: Any, value: Any) -> Any:
    if value is None and _is_optional(kind):
        return None
    plain = _without_none(kind)
    if plain is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if plain in (int, bool, str) and type(value) is plain:
        return value
    if typing.get_origin(plain) is tuple and isinstance(value, (list, tuple)) and value:
        return tuple(_as_type(name, float, entry) for entry in value)
    if typing.get_origin(plain) is Mapping and isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"{name} must be {_meaning(kind)}; got {value!r}.")


def _meaning(kind: Any) -> str:
    return ("none or " if _is_optional(kind) else "") + _MEANING[_without_none(kind)]


def parse(name: str, kind: Any, text: str) -> Any:
    """Returns the value that a text stands for: "none", "true", "0.1", "0.08,1", '{"kernel_size": 5}'; or what JSON has for it.

    Raises:
        ValueError: the text is nothing of this type.
    """
    if _is_optional(kind) and text.strip().lower() in ("none", "null"):
        return None
    plain = _without_none(kind)
    try:
        if plain is str:
            return json.loads(text) if len(text) > 1 and text[0] == text[-1] == '"' else text
        if plain is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if plain in (int, float):
            return plain(text)
        if typing.get_origin(plain) is tuple:
            brackets = text.strip().startswith("[")
            return tuple(float(entry) for entry in (json.loads(text) if brackets else text.split(",")))
        if not text.lstrip().startswith("{") and os.path.isfile(text):
            with open(text, encoding="utf-8") as file:
                return json.load(file)
        return json.loads(text)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} must be {_meaning(kind)}; got {text!r}.") from None
