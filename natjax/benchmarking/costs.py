"""What a problem of the op asks for at least, and how implementations cut it: counted, without computing anything.

Letters: T queries of a tile, S keys of a tile.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np

from natjax_kernels import neighborhood_attention
from natjax_kernels.axis import AxisPlan
from natjax_kernels.fused.configurations import Case, Config, halo, power_of_two
from natjax_kernels.fused.layout import sizes
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.plan import plan
from natjax_kernels.problem import Problem
from natjax_kernels.triton import support
from natjax_kernels.triton.band_launch import BandLaunch
from natjax_kernels.triton.launch import fenced
from natjax_kernels.xla.tiles import row_steps
from natjax_kernels.xla.tiling import tile_shape


def options(problem: Problem) -> dict[str, Any]:
    """Returns the keyword arguments of the op that describe the problem's window and logits."""
    names = inspect.signature(neighborhood_attention).parameters
    window = {name: x for name, x in dataclasses.asdict(problem.window).items() if name in names}
    return window | {"scale": problem.logits.scale, "logits_soft_cap": problem.logits.soft_cap}


def gpu(capability: int | None = None) -> support.GPU:
    """Returns the GPU that is here, or another one of a compute capability (times ten): of an H100's where there is neither."""
    try:
        here = support.here()
    except (AttributeError, TypeError, ValueError):  # of CPUs, TPUs and AMD's GPUs
        here = None
    if here and capability in (None, here.capability):
        return here
    return support.GPU(capability or 90, "", 132)


def least_bytes(problem: Problem, *, backward: bool = False) -> int:
    """Returns the bytes of all tokens, each read or written once.

    Forward reads query, key and value and writes the output. The backward pass reads these four and the output's gradient, and
    writes three gradients. Bias and log-sum-exp, which are small, do not count.
    """
    tokens = sum(math.prod(x.shape) for x in (problem.query, problem.key, problem.value))
    tokens += math.prod(problem.query.shape[:-1]) * problem.value.shape[-1]
    return (3 if backward else 1) * tokens * problem.dtype.itemsize


def least_flops(problem: Problem, *, backward: bool = False) -> int:
    """Returns the floating point operations of the products with neighbours: two forward, five more backward."""
    channels, values = problem.head_dim, problem.value.shape[-1]
    a_score = channels + values + (3 * channels + 2 * values if backward else 0)
    return 2 * problem.batch * problem.heads * window_scores(problem) * a_score


def window_scores(problem: Problem) -> int:
    """Returns how many pairs of a query and a neighbour a head of a map has."""
    return math.prod(map(_neighbours, _xla_plan(problem)))


def useful_share(problem: Problem, implementation: str) -> float | None:
    """Returns which part of the scores that an implementation computes are of windows; None of one that is not known here.

    The fused kernels' is that of the forward kernel on this device.
    """
    if implementation.startswith("xla"):
        return xla_tiles(problem)["useful_share"]
    if implementation == "reference":
        return window_scores(problem) / problem.tokens**2
    if implementation == "triton":
        return fused_kernels(problem, support.here())[0]["useful_share"]
    return None


def xla_tiles(problem: Problem) -> dict[str, Any]:
    """Returns how `xla` cuts the problem: sides of a tile and of its halo, tiles, steps, and the useful share of scores.

    Steps are those of the forward pass on this device, one after another; padding of the last one is not counted.
    """
    axes = _xla_plan(problem)
    tile, keys = [axis.queries.shape[1] for axis in axes], [axis.span for axis in axes]
    tiles = math.prod(axis.tiles for axis in axes)
    return {
        "tile": tile,
        "halo": keys,
        "tiles": tiles,
        "steps": len(row_steps(problem.query, axes, 1)["queries"]),
        "useful_share": window_scores(problem) / (tiles * math.prod(tile) * math.prod(keys)),
    }


def fused_kernels(problem: Problem, gpu: support.GPU, *, backward: bool = False) -> list[dict[str, Any]]:
    """Returns the configuration of every kernel that a call launches on a GPU, and what follows from it.

    `launched` programs are those of the whole launch, `programs` those that a multiprocessor holds at a time. Shared memory is
    what operands of products take at least; a compiler adds what it moves between threads.

    Raises:
        NotImplementedError: the fused kernels cannot compute the problem there.
    """
    if reason := support.why_not_on(problem, gpu):
        raise NotImplementedError(reason)
    found = []
    for case, config in support.configured(problem, gpu):
        if case.kernel != "fwd" and not backward:
            continue
        found.append(_kernel(problem, case, config, gpu))
        if case.kernel == "bwd_dq" and case.bias and not config.resident:  # the bias's gradient is a launch of its own
            found.append(_kernel(problem, case, config, gpu, of_bias=True))
    return found


def _kernel(problem: Problem, case: Case, config: Config, gpu: support.GPU, *, of_bias: bool = False) -> dict[str, Any]:
    transposed = case.kernel == "bwd_dkv"
    if config.design == "band":
        runs, share = BandLaunch(case.spatial, case.window, problem.logits, config, gpu.multiprocessors).shares(
            problem.batch, problem.heads
        )
        tiles, launched, computed = len(runs), len(runs), len(runs) * config.slots * config.chunk
        keys: list[int] = [config.chunk // 16 + 6, 16]
    else:
        cut = sizes(case.spatial, case.window, config.tile, config.block, transposed)
        schedule = Schedule(cut, config, gpu.multiprocessors)
        parts = schedule.parts if of_bias else 1
        longest, share = schedule.shares(problem.batch, problem.heads * parts)
        launched = parts * sum(math.ceil(tiles / longest) for tiles in cut.class_tiles)
        tiles, computed = cut.tiles, cut.tiles * config.slots * schedule.steps * config.chunk
        keys = halo(case, config.tile)
    return {
        "kernel": f"{case.kernel}, bias" if of_bias else case.kernel,
        **dataclasses.asdict(config),
        "halo": keys,
        "tiles": tiles,
        "launched": launched * problem.heads * math.ceil(problem.batch / share),
        "useful_share": window_scores(problem) / computed,
        "least_shared_bytes": least_shared_bytes(case, config),
    }


def least_shared_bytes(case: Case, config: Config) -> int:
    """Returns the bytes of shared memory that a kernel takes at least: a chunk of two operands for every load that is under way.

    Where loads run ahead (`num_stages`), one more where products read shared memory by themselves (`launch.fenced`). Queries, the
    table and what threads exchange come on top, or do not, as the compiler likes: what it made is in
    benchmarks/results/resources.json, in the median three times as much.
    """
    size = 4 if case.dtype == "float32" else 2
    channels, values = power_of_two(case.head_dim), power_of_two(case.values)
    if config.design == "band":  # boxes of keys and values, and the queries
        return config.num_stages * size * ((channels + values) * (config.chunk + 3 * 32) + channels * config.slots)
    loads = 1 if config.resident else max(1, config.num_stages - 1) + fenced(config, case.capability)
    return loads * config.chunk * (channels + values) * size


def _neighbours(axis: AxisPlan) -> int:
    """Returns how many pairs of a query and a neighbour an axis has."""
    seen = (axis.pairs.end - axis.pairs.first)[axis.classes]  # [tiles, T]; padded queries see everything
    return int(np.sum(seen, where=axis.queries >= 0))


def _xla_plan(problem: Problem) -> tuple[AxisPlan, ...]:
    return plan(problem.spatial, problem.window, tile_shape(problem.spatial, problem.window, 1))
