"""The text of a config file of OpenMMLab's libraries: Python that is parsed and never run.

Of it counts `model = dict(...)`, written in literals.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

_MAX_CHARACTERS = 2**20  # the authors' configs have 2**13
_MAX_DEPTH = 50  # of calls, lists and mappings in one another


def model_of(text: Any) -> dict[str, Any] | None:
    """Returns the mapping that a config's text assigns to `model`, None where there is no such text.

    Raises:
        ValueError: it is not Python, or its model is not written in literals.
    """
    if not isinstance(text, str):
        return None
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"it has more than {_MAX_CHARACTERS} characters")
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python ({type(error).__name__})") from error
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "model" for target in targets):
            model = _literal(statement.value)
            if not isinstance(model, dict):
                raise ValueError(f"its model is no mapping but {type(model).__name__}")
            return model
    return None


def _literal(node: ast.expr, depth: int = 0) -> Any:
    """Returns the value of a constant, list, tuple or mapping, or of `dict(name=value)`.

    Raises:
        ValueError: it is anything else.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")

    def inner(node: ast.expr) -> Any:
        return _literal(node, depth + 1)

    match node:
        case ast.Constant():
            return node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List() | ast.Tuple():
            return [inner(item) for item in node.elts]
        case ast.Dict() if all(isinstance(key, ast.Constant) for key in node.keys):
            return {key.value: inner(value) for key, value in zip(node.keys, node.values, strict=True)}  # ty: ignore
        case ast.Call(func=ast.Name(id="dict"), args=[]) if all(keyword.arg for keyword in node.keywords):
            return {keyword.arg: inner(keyword.value) for keyword in node.keywords}
    raise ValueError(f"its model has a {type(node).__name__} in it (line {node.lineno}), which is no literal")


def source(value: Any, indent: str = "") -> str:
    """Returns the literal of a value as mmcv writes it: mappings are calls of dict, over several lines."""
    inner = indent + "    "
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return "[\n" + ",\n".join(f"{inner}{source(item, inner)}" for item in value) + "]"
    if not isinstance(value, Mapping):
        return repr(value)
    lines = (f"{inner}{key}={source(item, inner)}" for key, item in value.items())
    return "dict(\n" + ",\n".join(lines) + ")" if value else "dict()"
