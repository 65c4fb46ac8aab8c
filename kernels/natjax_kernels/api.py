"""Neighborhood attention: the public functions, validation and choice of implementation.

Source: NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001); stride, causality and constraints as in NATTEN (arXiv 2504.16922).

Letters: B batch, X Y Z spatial axes, N heads, D channels of a head, K kernel size.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import numbers
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natjax_kernels import reference, triton, weights, xla
from natjax_kernels.plan import Window

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_log = logging.getLogger("natjax")

# Modules with `attend` and, where they cannot always run, `why_not`; the first that can is the default.
IMPLEMENTATIONS = {"triton": triton, "xla": xla, "reference": reference}

_default: contextvars.ContextVar[str | None] = contextvars.ContextVar("default", default=None)


@contextlib.contextmanager
def default_implementation(name: str | None) -> Generator[None]:
    """Has the ops that this thread traces meanwhile, and that name no implementation, use this one.

    For `jax.export`, which takes no calls of the fused kernels, and for programs that are traced for another device than JAX's
    default one: `with natjax.default_implementation("xla"): ...`. What `jax.jit` has traced before stays as it is.

    Args:
        name: as the op's `implementation`; None to have the best one again.

    Raises:
        ValueError: there is no such implementation.
    """
    _check_name(name)
    token = _default.set(name)
    try:
        yield
    finally:
        _default.reset(token)


def neighborhood_attention(
    query: Float[Array, "B *spatial N D"],
    key: Float[Array, "B *spatial N D"],
    value: Float[Array, "B *spatial N Dv"],
    *,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    rpb: Float[Array, "N *offsets"] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "B *spatial N Dv"]:
    """Attention of every token to the `kernel_size` tokens around it, along one, two or three axes.

    Windows shift inward at the borders, so every token has as many neighbours. The op works under jit, vmap, grad, remat
    and sharded batches; it has no forward-mode derivative, and second derivatives with "xla" and "reference" only. Softmax is in
    float32 (float64 for float64 inputs).

    Args:
        query: [B, X, N, D], [B, Y, X, N, D] or [B, Z, Y, X, N, D], float32, bfloat16, float16 or float64.
        key: like query.
        value: like query, with any number of channels.
        kernel_size: neighbours along every axis (or one number for all), at least 2; `kernel_size * dilation` may not
            exceed the axis. Even ones see one more to the left.
        dilation: distance between neighbours along every axis.
        stride: queries along every axis that share a window, at most `kernel_size`.
        is_causal: whether a token sees only tokens up to itself along an axis.
        rpb: relative positional bias [N, 2 * K - 1 per axis], added to the logits of each key by its offset from the query.
            For odd kernel sizes without stride and causality.
        scale: of the logits; D ** -0.5 where None.
        implementation: "triton" (fused kernels for NVIDIA GPUs), "xla", "reference", or None for that of
            `default_implementation` or else the best one that runs here. A named one is never replaced by another.

    Returns:
        [B, *spatial, N, Dv], of the inputs' dtype.

    Raises:
        ValueError: an argument is impossible; the message names it, its value and what is expected.
        NotImplementedError: the named implementation cannot run this.
    """
    window, scale = _normalise(query, key, value, kernel_size, dilation, stride, is_causal, rpb, scale)
    name, reason = _choose(implementation, query, value, rpb, window)
    if implementation is None:
        _log.debug("neighborhood_attention %s %s: %s, %s", query.shape, window, name, reason)
    with jax.named_scope(f"neighborhood_attention_{name}"):
        return IMPLEMENTATIONS[name].attend(query, key, value, rpb, window=window, scale=scale)


def neighborhood_attention_with_weights(
    query: Float[Array, "B *spatial N D"],
    key: Float[Array, "B *spatial N D"],
    value: Float[Array, "B *spatial N Dv"],
    *,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    rpb: Float[Array, "N *offsets"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> tuple[Float[Array, "B *spatial N Dv"], Float[Array, "B N *spatial K"]]:
    """Neighborhood attention that also returns its weights, and can drop some of them.

    It holds all weights in memory; `neighborhood_attention` does not. Arguments and errors are those of
    `neighborhood_attention`, and:

    Args:
        query: see there.
        key: see there.
        value: see there.
        kernel_size: see there.
        dilation: see there.
        stride: see there.
        is_causal: see there.
        rpb: see there.
        scale: see there.
        dropout_rate: share of the weights to drop, in [0, 1); the others are rescaled by 1 / (1 - dropout_rate).
        dropout_key: a `jax.random.key`, needed where dropout_rate is above 0.

    Returns:
        The output, and the weights that made it (so after dropout) as [B, N, *spatial, product of kernel sizes]: one per
        neighbour, in the order of the axes, 0 for those that a causal window does not have.
    """
    window, scale = _normalise(query, key, value, kernel_size, dilation, stride, is_causal, rpb, scale)
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1); got {dropout_rate}.")
    if dropout_rate and dropout_key is None:
        raise ValueError(f"dropout_rate {dropout_rate} needs a dropout_key, such as jax.random.key(0); got None.")
    return weights.attend_with_weights(
        query, key, value, rpb, window=window, scale=scale, dropout_rate=dropout_rate, dropout_key=dropout_key
    )


def explain(query: Any, key: Any, value: Any, *, implementation: str | None = None, **options: Any) -> str:
    """Says which implementation `neighborhood_attention` takes for these arguments on this machine, and why.

    Args:
        query: array or `jax.ShapeDtypeStruct`; key and value likewise.
        key: see query.
        value: see query.
        implementation: as for the op.
        **options: the other arguments of the op.

    Raises:
        ValueError: the op would.
        NotImplementedError: the op would.
    """
    options = {"dilation": 1, "stride": 1, "is_causal": False, "rpb": None, "scale": None} | options
    window, _ = _normalise(query, key, value, **options)
    name, reason = _choose(implementation, query, value, options["rpb"], window)
    return f"{name}: {reason}"


def _choose(implementation: str | None, query, value, rpb, window: Window) -> tuple[str, str]:
    """Returns the implementation to run and why it is that one."""
    _check_name(implementation)
    implementation = implementation or _default.get()
    if implementation is not None:
        reason = _why_not(implementation, query, value, rpb, window, named=True)
        if reason:
            raise NotImplementedError(
                f"implementation={implementation!r} cannot run: {reason}. Use implementation='xla' or None."
            )
        return implementation, "named by the caller"
    passed_over = []
    for name in IMPLEMENTATIONS:
        reason = _why_not(name, query, value, rpb, window, named=False)
        if reason is None:
            return name, "; ".join(passed_over) or "the fastest one"
        passed_over.append(f"not {name}, as {reason}")
    raise AssertionError("xla runs everywhere")


def _check_name(implementation: str | None) -> None:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation must be None or one of {known}; got {implementation!r}.")


def _why_not(name: str, query, value, rpb, window: Window, *, named: bool) -> str | None:
    why_not = getattr(IMPLEMENTATIONS[name], "why_not", None)
    return why_not and why_not(query, value, rpb, window, named=named)


def _normalise(query, key, value, kernel_size, dilation, stride, is_causal, rpb, scale) -> tuple[Window, float]:
    """Checks all arguments against NATTEN's constraints; returns the window per axis and the scale."""
    for name, array in (("query", query), ("key", key), ("value", value), ("rpb", rpb)):
        if not hasattr(array, "shape") and not (name == "rpb" and array is None):
            raise ValueError(f"{name} must be an array; got {type(array).__name__}.")
    shape = tuple(query.shape)
    if len(shape) not in (4, 5, 6):
        raise ValueError(
            f"query must be [B, *spatial, N, D] with 1 to 3 spatial axes, so of rank 4 to 6; got shape {shape}."
        )
    if 0 in shape[1:]:
        raise ValueError(f"query must have at least one token, head and channel; got shape {shape}.")
    if tuple(key.shape) != shape:
        raise ValueError(f"key must have query's shape {shape}; got {tuple(key.shape)}.")
    if tuple(value.shape[:-1]) != shape[:-1] or 0 in value.shape[1:]:
        raise ValueError(
            f"value must be {[*shape[:-1], 'Dv']}, as query but for its last axis; got {tuple(value.shape)}."
        )
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f"query must be of a floating dtype; got {query.dtype}.")
    for name, array in (("key", key), ("value", value)):
        if array.dtype != query.dtype:
            raise ValueError(f"{name} must have query's dtype {query.dtype}; got {array.dtype}. Cast them alike.")

    spatial, heads = shape[1:-2], shape[-2]
    window = Window(
        kernel_size=_per_axis("kernel_size", kernel_size, len(spatial), minimum=2),
        dilation=_per_axis("dilation", dilation, len(spatial), minimum=1),
        stride=_per_axis("stride", stride, len(spatial), minimum=1),
        is_causal=_flags("is_causal", is_causal, len(spatial)),
    )
    for axis, (length, (k, d, s, _)) in enumerate(zip(spatial, window.axes(), strict=True)):
        if k * d > length:
            raise ValueError(
                f"kernel_size * dilation must not exceed the input: along spatial axis {axis}, {k} * {d} = {k * d} > {length}. "
                "Pad the input or use a smaller window."
            )
        if s > k:
            raise ValueError(
                f"stride must not exceed kernel_size; along spatial axis {axis} got stride {s} > kernel_size {k}."
            )
    if rpb is not None:
        _check_rpb(rpb, heads, window)
    if scale is None:
        scale = shape[-1] ** -0.5
    elif isinstance(scale, jax.core.Tracer | bool) or not isinstance(scale, numbers.Real):
        raise ValueError(f"scale must be a Python number or None; got {scale!r}. For a traced one, scale the query.")
    elif not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got {scale!r}.")
    return window, float(scale)


def _check_rpb(rpb, heads: int, window: Window) -> None:
    expected = (heads, *(2 * k - 1 for k in window.kernel_size))
    if tuple(rpb.shape) != expected:
        raise ValueError(f"rpb must be [N, 2 * kernel_size - 1 per axis], here {expected}; got {tuple(rpb.shape)}.")
    if not jnp.issubdtype(rpb.dtype, jnp.floating):
        raise ValueError(f"rpb must be of a floating dtype; got {rpb.dtype}.")
    if any(k % 2 == 0 for k in window.kernel_size):
        raise ValueError(f"rpb needs odd kernel sizes; got kernel_size {window.kernel_size}.")
    if any(s != 1 for s in window.stride):
        raise ValueError(f"rpb needs stride 1; got stride {window.stride}.")
    if any(window.is_causal):
        raise ValueError(f"rpb needs windows that are not causal; got is_causal {window.is_causal}.")


def _per_axis(name: str, value: Any, rank: int, *, minimum: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"{name} must be one integer or one per spatial axis ({rank}); got {value!r}.")
    for entry in values:
        if isinstance(entry, bool) or not isinstance(entry, numbers.Integral) or entry < minimum:
            raise ValueError(f"{name} must consist of integers of at least {minimum}; got {value!r}.")
    return tuple(int(entry) for entry in values)


def _flags(name: str, value: Any, rank: int) -> tuple[bool, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * rank
    if len(values) != rank or not all(isinstance(entry, bool | np.bool_) for entry in values):
        raise ValueError(f"{name} must be one bool or one per spatial axis ({rank}); got {value!r}.")
    return tuple(map(bool, values))
