"""How calls are timed. Times of one run are compared as ratios of medians; those of different runs not at all.

`interleaved` times several calls on a machine that is never quiet: in turn, A B C A B C, so that what slows one slows all.
`seconds` times a JAX program on a GPU, where calls return before their work is done: several are in flight, one wait ends a
sample, and what is left of overhead is the gap between kernels.
"""

from __future__ import annotations

import concurrent.futures
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

SAMPLE = 0.004  # seconds that a sample lasts at least: what is quicker is called several times
REST = 0.002  # seconds between samples, in which the threads of the one before stop to spin


def interleaved(
    runs: Mapping[Any, Callable[[], Any]], *, seconds: float, most: int = 15, least: int = 3
) -> dict[Any, list[float]]:
    """Returns the seconds of every call's samples, taken in turn until `seconds` or `most` rounds are over.

    Before each sample the call is run once, as users run one thing many times: what runs before leaves it memory and caches.
    A training step that follows another program's takes up to a quarter longer than one that follows its own.

    Args:
        runs: calls by name; each returns when its work is done.
        seconds: for all of them together; `least` rounds are run whatever they take.
        most: rounds.
        least: rounds.
    """
    calls = {}
    for name, run in runs.items():
        run()
        calls[name] = max(1, min(1000, round(SAMPLE / max(_each(run, 1), 1e-7))))
    times: dict[Any, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            time.sleep(REST)
            run()
            times[name].append(_each(run, calls[name]))
    return times


def _each(run: Callable[[], Any], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def spread(times: list[float]) -> dict[str, float]:
    """Returns the median, the 95th percentile and the distance of the quartiles, in milliseconds."""
    middle, apart = quartiles(times)
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
    names = {"milliseconds": middle, "p95_milliseconds": p95, "spread_milliseconds": apart}
    return {name: round(value * 1e3, 4) for name, value in names.items()} | {"samples": len(times)}


def quartiles(times: list[float]) -> tuple[float, float]:
    """Returns the median and the distance of the quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, high - low


def seconds(
    program: Callable, arguments: Any, *, calls: int = 1, samples: int = 15, limit: float = 1.0
) -> tuple[float, float]:
    """Returns the median seconds of one of the `calls` in a compiled program, and the distance of the quartiles."""
    import jax

    def sample(flights: int) -> float:
        started = time.perf_counter()
        for _ in range(flights):
            out = program(*arguments)
        jax.block_until_ready(out)
        return (time.perf_counter() - started) / (flights * calls)

    sample(1)
    flights = max(1, min(8, round(0.01 / (calls * sample(1)))))  # some 10 ms a sample
    return quartiles(repeated(lambda: sample(flights), most=samples, limit=limit))


def repeated(sample: Callable[[], float], *, most: int, limit: float) -> list[float]:
    """Returns `most` samples, or as many as `limit` seconds allow: three at least."""
    begun, found = time.perf_counter(), []
    while len(found) < most and (len(found) < 3 or time.perf_counter() - begun < limit):
        found.append(sample())
    return found


def side_by_side(jobs: Mapping[Any, Callable[[], Any]], threads: int) -> dict[Any, Callable[[], Any]]:
    """Runs jobs in threads until all have ended; returns functions that return or raise what the jobs did.

    For compiling, which takes longer than measuring and must not go on beside it.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        concurrent.futures.wait(futures.values())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # where time is up, compilers are left behind
    return {name: future.result for name, future in futures.items()}
