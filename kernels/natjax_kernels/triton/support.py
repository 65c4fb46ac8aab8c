"""What the fused kernels need, and why they cannot run where they cannot."""

from __future__ import annotations

import functools
import importlib.util
import math
import re

from natjax_kernels.bias import table_shape
from natjax_kernels.plan import Window
from natjax_kernels.triton.config import Case, choose
from natjax_kernels.triton.launch import capability, device, device_kind, interpreted
from natjax_kernels.triton.layout import layout

_DTYPES = ("float32", "bfloat16", "float16")
_MOST_CHANNELS = 128
_LEAST_CAPABILITY = 8.0  # Ampere
_LARGEST_TABLE = 2**28  # entries of bias-or-minus-infinity


def why_not(query, value, rpb, window: Window, *, named: bool = False) -> str | None:
    """Returns why the kernels cannot compute the op for these arguments here, or None where they can."""
    return _why_not_here(named) or _why_not_these(query, value, rpb, window)


def _why_not_here(named: bool) -> str | None:
    if interpreted():
        return None if named else "Triton's interpreter is for tests, and slow"
    here = device()
    if not re.fullmatch(r"\d+\.\d+", str(getattr(here, "compute_capability", None))):  # AMD's read "gfx942"
        return f"the fused kernels run on NVIDIA GPUs and this is {here.device_kind}"
    if float(here.compute_capability) < _LEAST_CAPABILITY:
        has = f"{here.device_kind} has {here.compute_capability}"
        return f"the fused kernels need compute capability {_LEAST_CAPABILITY} and {has}"
    missing = [name for name in ("triton", "jax_triton") if not importlib.util.find_spec(name)]
    return f"{' and '.join(missing)} cannot be imported: pip install 'natjax[gpu]'" if missing else None


def _why_not_these(query, value, rpb, window: Window) -> str | None:
    channels, spatial = query.shape[-1], query.shape[1:-2]
    for name, array in (("query", query), ("rpb", rpb)):
        if array is not None and array.dtype.name not in _DTYPES:
            return f"the fused kernels compute in {', '.join(_DTYPES)}; {name} is {array.dtype}"
    if value.shape[-1] != channels:
        return f"the fused kernels need values of as many channels as keys; they have {value.shape[-1]} and {channels}"
    if channels > _MOST_CHANNELS:
        return f"the fused kernels take heads of at most {_MOST_CHANNELS} channels; these have {channels}"
    if math.prod(spatial) >= 2**31:
        return f"the fused kernels take maps of fewer than 2**31 tokens; this one is {spatial}"
    if query.shape[0] == 0:
        return "the fused kernels need at least one batch entry; there is none"
    entries = _table_entries(spatial, window, channels, query.dtype.name, query.shape[-2] if rpb is not None else 0)
    if entries > _LARGEST_TABLE:
        return f"the bias of so large a window on so small a map would take a table of {entries:.1e} entries"
    return None


@functools.lru_cache(maxsize=512)
def _table_entries(spatial: tuple[int, ...], window: Window, channels: int, dtype: str, bias_heads: int) -> int:
    case = Case("attend", spatial, window, channels, dtype, bias_heads > 0, capability())
    config = choose(case, device_kind())
    return math.prod(table_shape(layout(spatial, window, config.tile, config.block).relative)) * max(bias_heads, 1)
