"""What the fused kernels need, and why they cannot run where they cannot."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import re

from natjax_kernels.plan import Window
from natjax_kernels.triton.config import KERNELS, Case, choose
from natjax_kernels.triton.launch import Launch, capability, device, device_kind, interpreted

_DTYPES = ("float32", "bfloat16", "float16")
_MOST_CHANNELS = 128
_LEAST_CAPABILITY = 8.0  # Ampere
_TRITON = "3.6"  # as in the gpu extra: newer ones write PTX that is too new for JAX, and the configurations were chosen with it
_LARGEST = 2**30  # bytes


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
    if missing:
        return f"{' and '.join(missing)} cannot be imported: pip install 'natjax[gpu]'"
    if not (version := _triton_version()).startswith(f"{_TRITON}."):
        return f"the fused kernels are for Triton {_TRITON} and {version} is installed: pip install 'natjax[gpu]'"
    return None


@functools.cache
def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # as another distribution
        return "one of unknown version"


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
    bias_heads = query.shape[-2] if rpb is not None else 0
    of_case = (spatial, window, channels, query.dtype.name, query.shape[0], bias_heads, device_kind(), capability())
    if (size := _largest(*of_case)) > _LARGEST:
        what = "bias" if rpb is not None else "mask"
        return (
            f"the {what} of this window would take arrays of {size / 2**30:.1f} GiB, more than {_LARGEST / 2**30:.0f}"
        )
    return None


@functools.lru_cache(maxsize=512)
def _largest(
    spatial: tuple[int, ...],
    window: Window,
    channels: int,
    dtype: str,
    batch: int,
    bias_heads: int,
    kind: str,
    capability: int,
) -> int:
    """Returns the bytes of the largest array that is made of the bias or mask: a table, its gradient, or the parts of that."""
    largest = 0
    for kernel in KERNELS:
        config = choose(Case(kernel, spatial, window, channels, dtype, bias_heads > 0, capability), kind)
        launch = Launch(spatial, window, 1.0, config, "ieee", kernel == "attend_mirrored")
        entries = math.prod(launch.table_shape(max(bias_heads, 1)))
        largest = max(largest, entries * (4 if bias_heads else 2))
        if kernel == "attend_backward" and bias_heads:
            largest = max(largest, 4 * math.prod(launch.sums(batch, bias_heads).shape))
    return largest
