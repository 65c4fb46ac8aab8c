"""Finds the fastest configuration of a kernel of one call: what `benchmarks.tune` runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import statistics
import time
from typing import Any

from benchmarks.gpu.alone import Alone, tuned
from benchmarks.gpu.kernels import alternatives, computes
from benchmarks.harness import describe, write
from benchmarks.timing import side_by_side
from natjax_kernels.fused import configurations
from natjax_kernels.fused.configurations import Config
from natjax_kernels.triton.choice import candidates, clocks, estimate, programs

__all__ = ["load", "merge", "tune"]


def tune(alone: Alone, kernel: str, most: int, deadline: float, threads: int) -> tuple[str, Config] | None:
    """Returns the name in configs.json and the fastest configuration, or None where none could be timed.

    Args:
        alone: the call.
        kernel: of it.
        most: of the estimate's configurations to try, beside the alternatives, the variants of the best, and alternatives with
            other programs at a time.
        deadline: when to start nothing new, by `time.monotonic()`.
        threads: that compile side by side.
    """
    case = tuned(alone.case, alone.dtype, kernel)
    guess = estimate(case)
    others = list(alternatives(case, guess).values())
    ranked = sorted(candidates(case), key=functools.partial(clocks, case))[:most]
    measure = functools.partial(_times, alone, kernel, deadline=deadline, threads=threads)
    times = measure(list(dict.fromkeys([guess, *others, *ranked])))
    if not times:
        return None
    best = min(times, key=times.__getitem__)
    more = [*_variants(case, best), *(config for other in others if other in times for config in _fewer_or_more(other))]
    times |= measure([config for config in dict.fromkeys(more) if config not in times and computes(case, config)])
    best, estimated = min(times, key=times.__getitem__), times.get(guess, math.nan)
    print(f"    {times[best] * 1e6:.1f} us ({estimated * 1e6:.1f} us as estimated) {best}", flush=True)
    return case.key, best


def _times(alone: Alone, kernel: str, configs: list[Config], deadline: float, threads: int) -> dict[Config, float]:
    """Compiles configurations side by side, then times them one by one; leaves out what fails and what time ends."""
    times = {}
    for i in range(0, len(configs), threads):
        if time.monotonic() > deadline:
            break
        jobs = {config: functools.partial(alone.compile, kernel, config) for config in configs[i : i + threads]}
        for config, program in side_by_side(jobs, threads).items():
            try:
                alone.error(kernel, program())
                times[config] = statistics.median(alone.times(program(), seconds=0.3, most=9))
            except Exception as error:  # too much shared memory, say: the others may do
                print(f"    {config}: {describe(error)}", flush=True)
    return times


def _variants(case: configurations.Case, config: Config) -> list[Config]:
    """Returns a configuration with other warps, programs at a time, stages and chunks, one at a time."""
    change = functools.partial(dataclasses.replace, config)
    warps = [change(num_warps=w) for w in (config.num_warps // 2, config.num_warps * 2) if 1 <= w <= 8]
    warps = [dataclasses.replace(other, programs=programs(case, other)) for other in warps]
    stages = [change(num_stages=s) for s in (1, 2, 3, 4) if s != config.num_stages]
    chunks = [change(chunk=c) for c in (config.chunk // 2, config.chunk * 2) if 16 <= c <= 128]
    return warps + _fewer_or_more(config) + stages + chunks


def _fewer_or_more(config: Config) -> list[Config]:
    """Returns a configuration with one program at a time less and more: how many there are is an estimate."""
    return [dataclasses.replace(config, programs=p) for p in (config.programs - 1, config.programs + 1) if p]


def load(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the measured configurations by kind of device: none where there is no file.

    Raises:
        ValueError: the file is there and cannot be read, so that writing it would lose what is in it.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and all(isinstance(entries, dict) for entries in content.values()):
            return content
        problem = "it has other than dicts"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    raise ValueError(
        f"{path} cannot be read: {problem}. Expected configurations by kind of device, such as {{}}; restore it or name another."
    )


def merge(path: pathlib.Path, kind: str, key: str, config: Config) -> None:
    """Sets one entry of the file and leaves the others; the file is sorted, and whole at any time."""
    content = load(path)
    content.setdefault(kind, {})[key] = dataclasses.asdict(config)
    write(path, {device: dict(sorted(entries.items())) for device, entries in sorted(content.items())})
