"""What users pass to the op and to layers, checked: arrays and numbers of any library, shapes and dtypes that fit each other.

Every message says what was got, what is expected and, where that helps, what to do.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natjax_kernels.window import Window

_SMALLEST, _LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
_ADVICE = {"list": "Pass jnp.asarray(x).", "torch.Tensor": "Pass x.detach().cpu().numpy()."}


def as_array(name: str, x: Any, advice: Mapping[str, str] = _ADVICE) -> Any:
    """Returns the JAX array of what a user passed as an array: one of JAX or NumPy, or what holds one, as `nnx.Param` does.

    A `jax.ShapeDtypeStruct` remains one.

    Args:
        name: of the argument, for the message.
        x: what was passed.
        advice: what to do about other types, by their name ("torch.Tensor"); that of "" is for all that it does not name.

    Raises:
        TypeError: x is none of these.
    """
    if isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        return x
    if hasattr(x, "__jax_array__"):
        return as_array(name, x.__jax_array__(), advice)
    if isinstance(x, np.ndarray | np.generic):
        if x.dtype.kind in "OSUMm":
            raise TypeError(f"{name} must be an array of numbers; got one of dtype {x.dtype}.")
        return jnp.asarray(x)
    kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    how = advice.get(kind) or advice.get("", "")
    raise TypeError(f"{name} must be an array of JAX or NumPy; got {kind}. {how}".rstrip())


def check_known(name: str, shape: tuple) -> None:
    """Checks that an array has no symbolic size (`jax.export`) but its batch.

    Raises:
        ValueError: it has.
    """
    if not all(isinstance(side, int) for side in shape[1:]):
        raise ValueError(
            f"{name} must have a known size along every axis but the batch, as windows are laid out when they are traced; "
            f"got shape {shape}. With jax.export, make the batch alone symbolic, and one program for every size of the map."
        )


def as_number(name: str, x: Any) -> float | None:
    """Returns a Python number of what a user passed as such, a number of Python or NumPy; None for None.

    Args:
        name: of the argument, for the message.
        x: what was passed.

    Raises:
        ValueError: x is none of these, or not finite in float32.
    """
    if x is None:
        return None
    number = x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x
    if isinstance(number, jax.core.Tracer | bool) or not isinstance(number, numbers.Real):
        advice = "For a traced one, scale the query." if name == "scale" else "Programs are compiled for one."
        raise ValueError(f"{name} must be a Python number or None; got {x!r}. {advice}")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{name} must be finite, in float32, too; got {x!r}.")
    return value


def as_soft_cap(x: Any) -> float | None:
    """Returns a Python number above 0 of what a user passed as `logits_soft_cap`; None for None.

    Raises:
        ValueError: x is neither, or less than float32's smallest normal number, 1.2e-38.
    """
    number = as_number("logits_soft_cap", x)
    if number is not None and number < _SMALLEST:
        raise ValueError(f"logits_soft_cap must be at least {_SMALLEST:.2g}, or None for no cap; got {x!r}.")
    return number


def check_tokens(query, key, value) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns queries per key and keys per query along every axis.

    Raises:
        ValueError: shapes or dtypes are impossible or do not fit each other.
    """
    shape, keys = tuple(query.shape), tuple(key.shape)
    if len(shape) not in (4, 5, 6):
        raise ValueError(
            f"query must be [B, *spatial, N, D] with 1 to 3 spatial axes, so of rank 4 to 6; got shape {shape}."
        )
    check_known("query", shape)
    if 0 in shape[1:]:
        raise ValueError(f"query must have at least one token, head and channel; got shape {shape}.")
    if len(keys) != len(shape) or keys[0] != shape[0] or keys[-1] != shape[-1]:
        raise ValueError(f"key must have query's rank, batch and channels, of shape {shape}; got {keys}.")
    check_known("key", keys)
    if 0 in keys[1:] or shape[-2] % keys[-2]:
        raise ValueError(f"key must have tokens, and heads that divide the {shape[-2]} of query; got shape {keys}.")
    grids = check_grids(shape[1:-2], keys[1:-2])
    if tuple(value.shape[:-1]) != keys[:-1] or 0 in value.shape[1:]:
        raise ValueError(f"value must be {[*keys[:-1], 'Dv']}, as key but for its last axis; got {tuple(value.shape)}.")
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f"query must be of a floating dtype; got {query.dtype}.")
    for name, array in (("key", key), ("value", value)):
        _check_dtype(name, array, query)
    return grids


def _check_dtype(name: str, x, query) -> None:
    if x.dtype != query.dtype:
        raise ValueError(f"{name} must have query's dtype {query.dtype}; got {x.dtype}. Cast them alike.")


def check_grids(queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns queries per key and keys per query along every axis.

    Raises:
        ValueError: neither is a multiple of the other.
    """
    for axis, (q, k) in enumerate(zip(queries, keys, strict=True)):
        if q % k and k % q:
            raise ValueError(
                f"along every axis, queries must be a multiple of keys or keys of queries; along spatial axis {axis} got "
                f"{q} queries and {k} keys."
            )
    pairs = list(zip(queries, keys, strict=True))
    return tuple(max(q // k, 1) for q, k in pairs), tuple(max(k // q, 1) for q, k in pairs)


def check_rpb(rpb, heads: int, window: Window) -> None:
    """Checks a relative positional bias.

    Raises:
        ValueError: shape or dtype is impossible.
    """
    expected = (heads, *(2 * k - 1 for k in window.kernel_size))
    if tuple(rpb.shape) != expected:
        raise ValueError(f"rpb must be [N, 2 * kernel_size - 1 per axis], here {expected}; got {tuple(rpb.shape)}.")
    if not jnp.issubdtype(rpb.dtype, jnp.floating):
        raise ValueError(f"rpb must be of a floating dtype; got {rpb.dtype}.")


def check_additional(optional: dict[str, Any], key, value) -> None:
    """Checks additional keys and values; makes both None where there are none of them.

    Raises:
        ValueError: one comes alone, or shapes or dtypes are not those of the others.
    """
    keys, values = optional["additional_keys"], optional["additional_values"]
    if (keys is None) != (values is None):
        missing, other = ("keys", "values") if keys is None else ("values", "keys")
        raise ValueError(
            f"additional_keys and additional_values come together; got additional_{other} alone. Pass additional_{missing}."
        )
    if keys is None:
        return
    for name, x, of, like in (("additional_keys", keys, "key", key), ("additional_values", values, "value", value)):
        if (
            x.ndim != 4
            or (x.shape[0], *x.shape[2:]) != (like.shape[0], *like.shape[-2:])
            or x.shape[1] != keys.shape[1]
        ):
            expected = [like.shape[0], "S" if x is keys else keys.shape[1], *like.shape[-2:]]
            raise ValueError(
                f"{name} must be [B, S, heads, channels] with those of {of}, here {expected}; got {tuple(x.shape)}."
            )
        check_known(name, tuple(x.shape))
        _check_dtype(name, x, key)
    if keys.shape[1] == 0:
        optional.update(additional_keys=None, additional_values=None)


def check_mask(mask, key) -> None:
    """Checks a mask of keys.

    Raises:
        ValueError: shape or dtype is impossible.
    """
    if mask is None:
        return
    if tuple(mask.shape) != tuple(key.shape[:-2]):
        raise ValueError(
            f"key_mask must be [B, *spatial] of key, here {tuple(key.shape[:-2])}; got {tuple(mask.shape)}."
        )
    if mask.dtype != bool:
        raise ValueError(f"key_mask must be bool, True where a key may be seen; got {mask.dtype}.")


def check_sizes(sizes, key, window: Window) -> None:
    """Checks sizes of the entries' own maps.

    Raises:
        ValueError: shape or dtype is impossible, a window does not have sizes, or a size that is known does not fit.
    """
    spatial = tuple(key.shape[1:-2])
    if tuple(sizes.shape) != (key.shape[0], len(spatial)) or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(
            f"sizes must be integers [B, spatial axes], here {(key.shape[0], len(spatial))}; "
            f"got {sizes.dtype} {tuple(sizes.shape)}."
        )
    if any(window.periodic) or max(window.spacing) > 1:
        raise ValueError(
            "sizes go with axes that are not periodic and with at least as many queries as keys; "
            f"got periodic {window.periodic} and {window.spacing} keys per query."
        )
    if not isinstance(sizes, jax.core.Tracer | jax.ShapeDtypeStruct):
        values = np.asarray(sizes)
        least = [k * d for k, d in zip(window.kernel_size, window.dilation, strict=True)]
        if (values < least).any() or (values > spatial).any():
            raise ValueError(
                f"sizes must be at least kernel_size * dilation, here {least}, and at most the map, {list(spatial)}; "
                f"got {values.tolist()}."
            )
