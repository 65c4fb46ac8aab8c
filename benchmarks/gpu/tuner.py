"""Times configurations of one fused kernel for one case, inside the op on inputs of its own: what `benchmarks.tune` runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.calls import arguments, fresh_key, op, rotation
from benchmarks.harness import describe, read, write
from benchmarks.timing import in_flight, side_by_side
from natjax_kernels.cases import Case
from natjax_kernels.fused import configurations
from natjax_kernels.fused.configurations import KERNELS, Config, override
from natjax_kernels.triton.choice import candidates, clocks, estimate
from natjax_kernels.triton.launch import capability

__all__ = ["KERNELS", "Tuner", "merge"]


class Tuner:
    """Finds the fastest configuration of a kernel for a case.

    Attributes:
        key: the name in configs.json.
    """

    def __init__(self, case: Case, dtype: str, kernel: str, threads: int, deadline: float):
        described = (kernel, case.spatial, case.window, case.channels, dtype, case.bias, capability())
        self._tuned = configurations.Case(*described)
        self._case, self._threads, self._deadline = case, threads, deadline
        sets = 1 if case.batch == 1 else rotation(case, dtype, 4)
        self._arguments = arguments(case, fresh_key()[0], sets, dtype)
        self._expected = jax.jit(functools.partial(self._call, "xla"))(self._arguments[0])
        self._tolerance = 1e-4 if dtype == "float32" else 3e-2
        self.key = self._tuned.key

    def run(self, most: int) -> Config | None:
        """Returns the fastest configuration, or None where none could be timed."""
        ranked = sorted(candidates(self._tuned), key=functools.partial(clocks, self._tuned))[:most]
        times = self._times(ranked)
        if not times:
            return None
        best = min(times, key=times.__getitem__)
        times |= self._times([config for config in _variants(best)[:most] if config not in times])
        best, estimated = min(times, key=times.__getitem__), times.get(estimate(self._tuned), math.nan)
        print(f"    {times[best] * 1e6:.1f} us ({estimated * 1e6:.1f} us as estimated) {best}", flush=True)
        return best

    def _times(self, configs: list[Config]) -> dict[Config, float]:
        """Compiles configurations side by side, then times them one by one; leaves out what fails and what time ends."""
        times = {}
        for i in range(0, len(configs), 2 * self._threads):
            if time.monotonic() > self._deadline:
                break
            some = configs[i : i + 2 * self._threads]
            compiled = side_by_side({c: functools.partial(self._compile, c) for c in some}, self._threads)
            for config, program in compiled.items():
                try:
                    start = functools.partial(program(), self._arguments)
                    self._check(start()[0])
                    calls = len(self._arguments)
                    found = in_flight(start, jax.block_until_ready, calls=calls, seconds=0.3, most=9)
                    times[config] = statistics.median(found)
                except Exception as error:  # too much shared memory, say: the others may do
                    print(f"    {config}: {describe(error)}", flush=True)
        return times

    def _compile(self, config: Config) -> Callable:
        call = functools.partial(self._call, "triton")
        with override(self._tuned, config):
            program = jax.jit(lambda inputs: [call(one) for one in inputs])
            return program.lower(self._arguments).compile()

    def _call(self, implementation: str, inputs):
        """What needs the kernel: the output, or the gradients that it makes; XLA leaves out what nobody asks for."""
        if self._tuned.kernel == "fwd":
            return [op(self._case, "forward", implementation)(*inputs)]
        _, d_query, d_key, d_value, d_rpb = op(self._case, "both", implementation)(*inputs)
        return [d_query, d_rpb] if self._tuned.kernel == "bwd_dq" else [d_key, d_value]

    def _check(self, results) -> None:
        for got, right in zip(results, self._expected, strict=True):
            if right is None:
                continue
            right = right.astype("float32")
            error = float(jnp.abs(got.astype("float32") - right).max() / jnp.maximum(1, jnp.abs(right).max()))
            if not error <= self._tolerance:  # NaN is no number to compare
                raise ArithmeticError(f"its results are off by {error:.1e}")


def _variants(config: Config) -> list[Config]:
    """Returns a configuration with other warps, stages and chunks."""
    warps = [w for w in (config.num_warps // 2, config.num_warps, config.num_warps * 2) if 1 <= w <= 8]
    found = [dataclasses.replace(config, num_warps=w, num_stages=s) for w in warps for s in (1, 2, 3, 4)]
    chunks = () if config.resident else (config.chunk // 2, config.chunk * 2)
    return found + [dataclasses.replace(config, chunk=c) for c in chunks if 16 <= c <= 128]


def merge(path: pathlib.Path, kind: str, key: str, config: Config) -> None:
    """Sets one entry of the file and leaves the others; the file is sorted, and whole at any time."""
    content = read(path)
    content.setdefault(kind, {})[key] = dataclasses.asdict(config)
    write(path, {device: dict(sorted(entries.items())) for device, entries in sorted(content.items())})
