"""What an implementation is asked to compute: one validated call of the op.

`make_problem` checks every argument of a public function once. An implementation is a module with

- `attend(problem) -> (out, lse)`: out [B, *spatial, N, Dv] of the query's dtype, and the natural logarithm of the sum of every
  query's exponentials, lse [B, *spatial, N], in the accumulator's dtype. Both are differentiable, or the derivative raises.
- `why_not(problem, *, named) -> str | None`, where it cannot always run: the reason, or None where it can. `named` says that the
  caller asked for this implementation.

A new argument of the op (a mask, say, or fewer heads of keys than of queries) is a new field of `Problem`, which `make_problem`
validates and every `why_not` refuses until its implementation has it.

Letters: B batch, N heads, D channels of a head.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natjax_kernels.plan import Window


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One call of the op; `make_problem` makes valid ones. Arrays may be `jax.ShapeDtypeStruct` where nothing is computed.

    Attributes:
        query: [B, *spatial, N, D].
        key: [B, *spatial, N, D].
        value: [B, *spatial, N, Dv].
        rpb: relative positional bias [N, 2 * K - 1 per axis], or None.
        window: the window of every axis.
        scale: of the logits.
    """

    query: Any
    key: Any
    value: Any
    rpb: Any
    window: Window
    scale: float

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """Query, key, value and rpb."""
        return self.query, self.key, self.value, self.rpb

    @property
    def batch(self) -> int:
        """Batch entries, B."""
        return self.query.shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sides of the map."""
        return tuple(self.query.shape[1:-2])

    @property
    def tokens(self) -> int:
        """Tokens of the map."""
        return math.prod(self.spatial)

    @property
    def heads(self) -> int:
        """Heads, N."""
        return self.query.shape[-2]

    @property
    def head_dim(self) -> int:
        """Channels of a head, D."""
        return self.query.shape[-1]

    @property
    def dtype(self) -> Any:
        """Dtype of query, key, value and output."""
        return self.query.dtype

    @property
    def accumulator(self) -> Any:
        """Dtype of logits, softmax and lse: float32, or float64 for float64."""
        return accumulator(self.query)


def accumulator(x) -> Any:
    """Returns the dtype in which an array's softmax and matrix products are computed: float32, or float64 for float64."""
    return jnp.dtype("float64" if x.dtype == "float64" else "float32")


def make_problem(
    query, key, value, *, kernel_size, dilation=1, stride=1, is_causal=False, rpb=None, scale=None
) -> Problem:
    """Checks the arguments of `natjax_kernels.neighborhood_attention` against NATTEN's constraints.

    Raises:
        TypeError: query, key, value or rpb is no array.
        ValueError: an argument is impossible; the message names it, its value and what is expected.
    """
    query, key, value = (as_array(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
    rpb = None if rpb is None else as_array("rpb", rpb)
    _check_tokens(query, key, value)
    spatial, heads = tuple(query.shape[1:-2]), query.shape[-2]
    window = make_window(len(spatial), kernel_size, dilation, stride, is_causal)
    for axis, (length, (k, d, *_)) in enumerate(zip(spatial, window.axes(), strict=True)):
        if k * d > length:
            raise ValueError(
                f"kernel_size * dilation must not exceed the input: along spatial axis {axis}, {k} * {d} = {k * d} > {length}. "
                "Pad the input or use a smaller window."
            )
    if rpb is not None:
        _check_rpb(rpb, heads, window)
    scale = as_scale(scale)
    return Problem(query, key, value, rpb, window, query.shape[-1] ** -0.5 if scale is None else scale)


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


def as_scale(x: Any) -> float | None:
    """Returns a Python number of what a user passed as `scale`, a number of Python or NumPy; None for None.

    Raises:
        ValueError: x is none of these, or not finite.
    """
    if x is None:
        return None
    number = x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x
    if isinstance(number, jax.core.Tracer | bool) or not isinstance(number, numbers.Real):
        raise ValueError(f"scale must be a Python number or None; got {x!r}. For a traced one, scale the query.")
    if not math.isfinite(number):
        raise ValueError(f"scale must be finite; got {x!r}.")
    return float(number)


def make_window(rank: int, kernel_size: Any, dilation: Any = 1, stride: Any = 1, is_causal: Any = False) -> Window:
    """Returns the window of `rank` axes; every argument is one value per axis, or one for all.

    Raises:
        ValueError: an argument is impossible; the message names it, its value and what is expected.
    """
    window = Window(
        kernel_size=_per_axis("kernel_size", kernel_size, rank, minimum=2),
        dilation=_per_axis("dilation", dilation, rank, minimum=1),
        stride=_per_axis("stride", stride, rank, minimum=1),
        is_causal=_flags("is_causal", is_causal, rank),
    )
    for axis, (k, _, s, _) in enumerate(window.axes()):
        if s > k:
            raise ValueError(
                f"stride must not exceed kernel_size; along spatial axis {axis} got stride {s} > kernel_size {k}."
            )
    return window


def check_biased(window: Window) -> None:
    """Checks that a window can have a relative positional bias.

    Raises:
        ValueError: it cannot.
    """
    for fine, needs, got in (
        (all(k % 2 for k in window.kernel_size), "odd kernel sizes", f"kernel_size {window.kernel_size}"),
        (all(s == 1 for s in window.stride), "stride 1", f"stride {window.stride}"),
        (not any(window.is_causal), "windows that are not causal", f"is_causal {window.is_causal}"),
    ):
        if not fine:
            raise ValueError(f"rpb needs {needs}; got {got}. Leave rpb out (None; in a layer, False).")


def _check_tokens(query, key, value) -> None:
    shape = tuple(query.shape)
    if len(shape) not in (4, 5, 6):
        raise ValueError(
            f"query must be [B, *spatial, N, D] with 1 to 3 spatial axes, so of rank 4 to 6; got shape {shape}."
        )
    check_known("query", shape)
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


def _check_rpb(rpb, heads: int, window: Window) -> None:
    expected = (heads, *(2 * k - 1 for k in window.kernel_size))
    if tuple(rpb.shape) != expected:
        raise ValueError(f"rpb must be [N, 2 * kernel_size - 1 per axis], here {expected}; got {tuple(rpb.shape)}.")
    if not jnp.issubdtype(rpb.dtype, jnp.floating):
        raise ValueError(f"rpb must be of a floating dtype; got {rpb.dtype}.")
    check_biased(window)


def _per_axis(name: str, value: Any, rank: int, *, minimum: int) -> tuple[int, ...]:
    values = _entries(value, rank)
    if len(values) != rank:
        raise ValueError(f"{name} must be one integer or one per spatial axis ({rank}); got {value!r}.")
    for entry in values:
        if isinstance(entry, bool) or not isinstance(entry, numbers.Integral) or entry < minimum:
            raise ValueError(f"{name} must consist of integers of at least {minimum}; got {value!r}.")
    return tuple(int(entry) for entry in values)


def _flags(name: str, value: Any, rank: int) -> tuple[bool, ...]:
    values = _entries(value, rank)
    if len(values) != rank or not all(isinstance(entry, bool | np.bool_) for entry in values):
        raise ValueError(f"{name} must be one bool or one per spatial axis ({rank}); got {value!r}.")
    return tuple(map(bool, values))


def _entries(value: Any, rank: int) -> tuple:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(value) if isinstance(value, tuple | list) else (value,) * rank
