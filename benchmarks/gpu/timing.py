"""Times JAX programs on a GPU, where calls return before their work is done, and measures the machine's own ceilings.

A timed program calls the op many times on inputs of their own, so that launches from Python and the L2 cache do not hide or
flatter it; several programs are in flight at once and one wait ends a sample. What is left of overhead is the gap between
kernels, which `ceilings` measures with kernels that do next to nothing. Letters: B batch, N heads, D channels.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

ROTATED_BYTES = 256e6  # of inputs in turn: several times an H200's L2 cache of 60 MB


def seconds(
    program: Callable, arguments: Any, *, calls: int = 1, samples: int = 15, limit: float = 1.0
) -> tuple[float, float]:
    """Returns the median seconds of one of the `calls` in a compiled program, and the spread (quartiles apart) of samples."""
    jax.block_until_ready(program(*arguments))
    started = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    once = time.perf_counter() - started
    flights = max(1, min(8, round(0.01 / once)))  # some 10 ms a sample
    times = []
    begun = time.perf_counter()
    while len(times) < samples and (len(times) < 3 or time.perf_counter() - begun < limit):
        started = time.perf_counter()
        for _ in range(flights):
            out = program(*arguments)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - started) / (flights * calls))
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, high - low


def side_by_side(jobs: Mapping[Any, Callable[[], Any]], threads: int) -> dict[Any, Callable[[], Any]]:
    """Runs jobs in threads, and returns when all have ended; returns functions that return or raise what the jobs did.

    For compiling, which takes longer than measuring and must not go on beside it.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        concurrent.futures.wait(futures.values())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # where time is up, compilers are left behind
    return {name: future.result for name, future in futures.items()}


def peak_bytes(program: jax.stages.Compiled) -> int:
    """Returns the memory that a compiled program holds at once: arguments, outputs that are not in theirs, temporaries."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


def rotation(nbytes: int, most: int = 8) -> int:
    """Returns how many input sets of so many bytes to take in turn."""
    return max(2, min(most, math.ceil(ROTATED_BYTES / nbytes)))


def normal(seed: jax.Array, *shapes: tuple[int, ...], dtype: str) -> list[jax.Array]:
    """Returns arrays of normal numbers, drawn on the device."""
    return [_draw(key, shape, dtype) for key, shape in zip(jax.random.split(seed, len(shapes)), shapes, strict=True)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


def fresh_key() -> tuple[jax.Array, int]:
    """Returns a random key that no run had before, and its seed, to be recorded."""
    seed = int.from_bytes(os.urandom(4), "little") >> 1
    return jax.random.key(seed), seed


def ceilings(rehearse: bool) -> dict[str, float]:
    """Measures copy bandwidth (bytes read and written a second), bf16 matrix products and the gap between kernels.

    Copies add a number that the compiler does not know, as a plain copy could be left out.
    """
    size = 1 << 20 if rehearse else 1 << 30  # elements
    side = 256 if rehearse else 8192
    key = jax.random.key(0)
    (x,) = normal(key, (size,), dtype="bfloat16")
    copy, _ = seconds(jax.jit(lambda x, y: x + y), (x, jnp.bfloat16(1)))
    del x
    a, b = normal(key, (side, side), (side, side), dtype="bfloat16")
    product, _ = seconds(jax.jit(jnp.matmul), (a, b))
    links = 16

    @jax.jit
    def chain(x):
        for _ in range(links):
            x = jax.lax.optimization_barrier(x + 1)
        return x

    gap, _ = seconds(chain, (jnp.zeros(64),), calls=links)
    found = {
        "copy_gigabytes_per_second": 2 * 2 * size / copy / 1e9,
        "matmul_teraflops": 2 * side**3 / product / 1e12,
        "kernel_gap_microseconds": gap * 1e6,
    }
    return {name: float(f"{value:.4g}") for name, value in found.items()}  # never 0, as others are divided by them
