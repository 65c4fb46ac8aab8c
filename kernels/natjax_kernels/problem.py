"""What an implementation is asked to compute: one validated call of the op.

`make_problem` checks every argument of a public function once. An implementation is a module with

- `attend(problem) -> (out, lse)`: out [B, *spatial, N, Dv] of the query's dtype, and the natural logarithm of the sum of every
  query's exponentials, lse [B, *spatial, N], in the accumulator's dtype. Both are differentiable, or the derivative raises.
- `why_not(problem, *, named) -> str | None`, where it cannot always run: the reason, or None where it can. `named` says that the
  caller asked for this implementation.

A new argument of the op is a new field of `Problem`, which `make_problem` validates and every `why_not` refuses until its
implementation has it. Implementations know one grid: where queries are finer than keys, `make_problem` folds those that share a
window into heads (`natjax_kernels.grids`); where they are coarser, `Window.spacing` says so.

Letters: B batch, N heads (Nk of keys), D channels of a head, S additional keys.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from natjax_kernels.checks import (
    as_array,
    as_number,
    as_soft_cap,
    check_additional,
    check_mask,
    check_rpb,
    check_sizes,
    check_tokens,
)
from natjax_kernels.grids import fold, fold_bias
from natjax_kernels.logits import Logits
from natjax_kernels.sharding import check_split
from natjax_kernels.window import Window, make_map_window


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One call of the op; `make_problem` makes valid ones. Arrays may be `jax.ShapeDtypeStruct` where nothing is computed.

    Attributes:
        query: [B, *window.queries(spatial), N, D].
        key: [B, *spatial, Nk, D]; query head n attends with key head n // (N // Nk).
        value: [B, *spatial, Nk, Dv].
        rpb: relative positional bias [N, 2 * K - 1 per axis], or None.
        additional_keys: [B, S, Nk, D] that every query sees, or None.
        additional_values: [B, S, Nk, Dv], or None.
        key_mask: [B, *spatial] bool, False where no query may see the key, or None.
        sizes: [B, rank] of the entries' own maps, or None; the window is `sized`, then.
        places: [rank] int32, of which device (and step) this is the part, or None; the window is `split`, then
            (`natjax_kernels.split`). Keys are all that the device has at hand.
        window: the window of every axis.
        logits: how they come from products of queries and keys.
        folded: queries per key along every axis that were folded into heads.
    """

    query: Any
    key: Any
    value: Any
    rpb: Any
    additional_keys: Any
    additional_values: Any
    key_mask: Any
    sizes: Any
    window: Window
    logits: Logits
    folded: tuple[int, ...]
    places: Any = None

    ARRAYS = "query", "key", "value", "rpb", "additional_keys", "additional_values", "key_mask", "sizes"

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays, as `ARRAYS` names them."""
        return tuple(getattr(self, name) for name in self.ARRAYS)

    def with_arrays(self, *arrays: Any) -> Problem:
        """Returns this problem with other arrays of these shapes."""
        return dataclasses.replace(self, **dict(zip(self.ARRAYS, arrays, strict=True)))

    @property
    def batch(self) -> int:
        """Batch entries, B."""
        return self.query.shape[0]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sides of the map of keys."""
        return tuple(self.key.shape[1:-2])

    @property
    def tokens(self) -> int:
        """Tokens of the map of keys."""
        return math.prod(self.spatial)

    @property
    def heads(self) -> int:
        """Heads of queries, N."""
        return self.query.shape[-2]

    @property
    def key_heads(self) -> int:
        """Heads of keys and values, Nk."""
        return self.key.shape[-2]

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
    query,
    key,
    value,
    *,
    kernel_size,
    dilation=1,
    stride=1,
    is_causal=False,
    periodic=False,
    rpb=None,
    scale=None,
    logits_soft_cap=None,
    additional_keys=None,
    additional_values=None,
    key_mask=None,
    sizes=None,
) -> Problem:
    """Checks the arguments of `natjax_kernels.neighborhood_attention` against the constraints of NATTEN and of this op.

    Raises:
        TypeError: what should be an array is not one.
        ValueError: an argument is impossible; the message names it, its value and what is expected.
    """
    query, key, value = (as_array(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
    optional = {
        "rpb": rpb,
        "additional_keys": additional_keys,
        "additional_values": additional_values,
        "key_mask": key_mask,
        "sizes": sizes,
    }
    optional = {name: None if x is None else as_array(name, x) for name, x in optional.items()}
    folded, spacing = check_tokens(query, key, value)
    window = make_map_window(tuple(key.shape[1:-2]), kernel_size, dilation, stride, is_causal, periodic)
    window = dataclasses.replace(window, spacing=spacing)
    if optional["rpb"] is not None:
        check_rpb(optional["rpb"], query.shape[-2], window)
    check_additional(optional, key, value)
    check_mask(optional["key_mask"], key)
    if optional["sizes"] is not None:
        check_sizes(optional["sizes"], key, window)
        window = dataclasses.replace(window, sized=(True,) * len(spacing))
    check_split(query, key.shape[1:-2])
    number = as_number("scale", scale)
    logits = Logits(query.shape[-1] ** -0.5 if number is None else number, as_soft_cap(logits_soft_cap))
    query, optional["rpb"] = fold(query, folded), fold_bias(optional["rpb"], folded)
    return Problem(query, key, value, **optional, window=window, logits=logits, folded=folded)
