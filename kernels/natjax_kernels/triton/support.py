"""What the fused kernels need of a device, an installation and a problem, and what to say where it is not met."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import re

import jax
import jax.numpy as jnp

from natjax_kernels.fused.configurations import KERNELS, Case, Config
from natjax_kernels.fused.layout import furthest, sizes
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.meshes import over_devices
from natjax_kernels.problem import Problem
from natjax_kernels.sharding import shards
from natjax_kernels.triton import ptxas
from natjax_kernels.triton.choice import choose
from natjax_kernels.triton.launch import capability, device, device_kind, interpreted, multiprocessors

_MOST_CHANNELS = {"float32": 128, "bfloat16": 256, "float16": 256}  # of a head, for which registers do
_LEAST_CAPABILITY = 8.0  # Ampere
_TRITON = "3.6"  # as in the gpu extra: newer ones write PTX that is too new for JAX, and the configurations were chosen with it
_INSTALL = "pip install 'jax-triton>=0.3.1,<0.4' 'triton>=3.6,<3.7'"  # the gpu extra's
_LARGEST = 2**30  # bytes
_MOST_PROGRAMS = 65535  # along the second axis of a grid


@dataclasses.dataclass(frozen=True)
class GPU:
    """What configurations depend on of a device, which need not be here.

    Attributes:
        capability: compute capability, times ten.
        kind: its name, such as "NVIDIA H200".
        multiprocessors: how many it has.
    """

    capability: int
    kind: str
    multiprocessors: int


def here() -> GPU:
    """Returns the device that a program traced now would run on by default."""
    return GPU(capability(), device_kind(), multiprocessors())


def configured(problem: Problem, gpu: GPU) -> tuple[tuple[Case, Config], ...]:
    """Returns the case of every kernel, forward and backward, and its configuration on a GPU."""
    arrays = problem.query, problem.key, problem.value, problem.rpb, problem.key_mask
    cases = [Case.of(kernel, problem.window, problem.logits, gpu.capability, *arrays) for kernel in KERNELS]
    return tuple((case, choose(case, gpu.kind)) for case in cases)


def why_not(problem: Problem, *, named: bool) -> str | None:
    """Returns why the kernels cannot compute this problem here, or None where they can."""
    return _why_not_here(named) or why_not_on(problem, here())


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
        return f"{' and '.join(missing)} cannot be imported: {_INSTALL}"
    if not (version := _triton_version()).startswith(f"{_TRITON}."):
        return f"the fused kernels are for Triton {_TRITON} and {version} is installed: {_INSTALL}"
    return ptxas.why_not(capability())


@functools.cache
def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # as another distribution
        return "one of unknown version"


def why_not_on(problem: Problem, gpu: GPU) -> str | None:
    """Returns why the kernels cannot compute this problem on a GPU that has all they need, or None where they can."""
    problem = _of_device(problem)
    if gpu.capability < round(10 * _LEAST_CAPABILITY):
        return f"the fused kernels need compute capability {_LEAST_CAPABILITY} and this is {gpu.capability / 10}"
    channels = max(problem.head_dim, problem.value.shape[-1])
    if problem.sizes is not None:
        return "the fused kernels have one size of map for all entries, no sizes"
    for name, array in (("query", problem.query), ("rpb", problem.rpb)):
        if array is not None and array.dtype.name not in _MOST_CHANNELS:
            return f"the fused kernels compute in {', '.join(_MOST_CHANNELS)}; {name} is {array.dtype}"
    if channels > (most := _MOST_CHANNELS[problem.dtype.name]):
        return f"the fused kernels take heads of at most {most} channels in {problem.dtype}; these have {channels}"
    if problem.tokens >= 2**31:
        return f"the fused kernels take maps of fewer than 2**31 tokens; this one is {problem.spatial}"
    if not isinstance(problem.batch, int):
        return "the fused kernels need to know the number of batch entries; it is symbolic"
    if problem.batch == 0:
        return "the fused kernels need at least one batch entry; there is none"
    bias_heads = 0 if problem.rpb is None else problem.heads
    size, last, parts = _extremes(configured(problem, gpu), problem.batch, bias_heads, gpu.multiprocessors)
    if (launched := problem.heads * parts) > _MOST_PROGRAMS:
        return (
            f"the fused kernels launch at most {_MOST_PROGRAMS} programs for all heads of a tile; these need {launched}"
        )
    if last >= 2**31:  # 32-bit sums of it would wrap before the minimum that holds them to the map
        return f"the fused kernels count fewer than 2**31 tokens; those of {problem.spatial} and their halos are {last + 1}"
    if size > _LARGEST:
        what = "mask" if problem.rpb is None else "bias"
        limit = _LARGEST / 2**30
        return f"the {what} of this window would take arrays of {size / 2**30:.1f} GiB, more than {limit:.0f}"
    return None


def _of_device(problem: Problem) -> Problem:
    """Returns the problem that a device gets of one that is split along Explicit axes; else the same."""
    if all(shards(problem.query, 1 + a) == 1 for a in range(len(problem.spatial))):
        return problem
    found = []

    def attend(part: Problem):
        arrays = (None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype) for x in part.arrays)
        found.append(dataclasses.replace(part.with_arrays(*arrays), places=None))
        shape = *part.query.shape[:-1], part.value.shape[-1]
        return jnp.zeros(shape, part.dtype), jnp.zeros(shape[:-1], part.accumulator)

    jax.eval_shape(lambda arrays: over_devices(attend)(problem.with_arrays(*arrays)), problem.arrays)
    return found[0]


@functools.lru_cache(maxsize=512)
def _extremes(
    chosen: tuple[tuple[Case, Config], ...], batch: int, bias_heads: int, multiprocessors: int
) -> tuple[int, int, int]:
    """Returns the bytes of the largest array that any of the kernels makes of the bias or mask, the last token counted to, and
    the programs for a head of a tile.
    """
    largest, last, parts = 0, 0, 1
    for case, config in chosen:
        layout = case.spatial, case.window, config.tile, config.block, case.kernel == "bwd_dkv"
        schedule = Schedule(sizes(*layout), config, multiprocessors)
        largest = max(largest, schedule.largest_array(batch, bias_heads, sums=case.kernel == "bwd_dq"))
        last = max(last, furthest(*layout))
        parts = max(parts, schedule.parts if case.bias and case.kernel == "bwd_dq" else 1)
    return largest, last, parts
