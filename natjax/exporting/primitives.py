"""A traced model in plain primitives of JAX, for converters that know these alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Primitives that call another program, and which parameter it is. What makes them more than a call, derivatives, batching and
# what is kept in memory, means nothing where a program is only run.
_CALLS = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def evaluate(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Returns what a traced program returns; traced itself, it is of primitives of `jax.lax` alone."""
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    values.update(zip(jaxpr.constvars, constants, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name == "split_residual":  # of natjax.nn.xla
        return inputs * 2
    if name == "pad":  # jax2onnx's has no symbolic sizes
        return [_padded(*inputs, parameters["padding_config"])]
    if name in _CALLS:
        called = parameters[_CALLS[name]]
        return evaluate(*((called.jaxpr, called.consts) if isinstance(called, ClosedJaxpr) else (called, ())), inputs)
    outputs = equation.primitive.bind(*inputs, **parameters)
    return outputs if equation.primitive.multiple_results else [outputs]


def _padded(x: Any, value: Any, padding: Sequence[tuple[int, int, int]]) -> Any:
    """Returns `jax.lax.pad` as concatenations.

    Raises:
        NotImplementedError: elements are taken away or pulled apart.
    """
    for axis, (before, after, between) in enumerate(padding):
        if min(before, after, between) < 0 or between:
            raise NotImplementedError(
                f"ONNX export has no padding of {padding}; StableHLO (format='stablehlo') has it."
            )
        sides = [
            jax.lax.broadcast_in_dim(value, (*x.shape[:axis], count, *x.shape[axis + 1 :]), ()) if count else None
            for count in (before, after)
        ]
        parts = [part for part in (sides[0], x, sides[1]) if part is not None]
        x = jax.lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x
