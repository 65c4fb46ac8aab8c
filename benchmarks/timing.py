"""How calls are timed. Times of one run are compared as ratios of medians; those of different runs not at all.

`interleaved` times several calls on a machine that is never quiet: in turn, A B C A B C, so that what slows one slows all.
`in_flight` times a call on a GPU, which returns before its work is done: several are in flight, one wait ends a sample, and what
is left of overhead is the gap between kernels and, of programs of less than a millisecond, a part of their launches.
"""

from __future__ import annotations

import concurrent.futures
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

SAMPLE = 0.004  # seconds that a sample lasts at least: what is quicker is called several times
FLIGHT = 0.01  # seconds that runs take that are in flight together
MOST_IN_FLIGHT = 8  # runs, whose results are in memory together
LEAST = 3  # rounds
REST = 0.002  # seconds between samples, in which the threads of the one before stop to spin


def interleaved(runs: Mapping[Any, Callable[[], Any]], *, seconds: float, most: int = 15) -> dict[Any, list[float]]:
    """Returns the seconds of every call's samples, taken in turn until `seconds` or `most` rounds are over.

    Before each sample the call is run once, as users run one thing many times: what runs before leaves it memory and caches.
    A training step that follows another program's takes up to a quarter longer than one that follows its own.

    Args:
        runs: calls by name; each returns when its work is done.
        seconds: for all of them together; LEAST rounds are run whatever they take.
        most: rounds.
    """
    calls = {}
    for name, run in runs.items():
        run()
        calls[name] = max(1, min(1000, round(SAMPLE / max(_each(run, 1), 1e-7))))
    times: dict[Any, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(most):
        if done >= LEAST and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            time.sleep(REST)
            run()
            times[name].append(_each(run, calls[name]))
    return times


def in_flight(
    start: Callable[[], Any], wait: Callable[[Any], Any], *, calls: int = 1, seconds: float = 1.0, most: int = 15
) -> list[float]:
    """Returns the seconds that one of the `calls` in a run takes, sample by sample.

    Args:
        start: starts a run and returns what will come of it.
        wait: waits for that.
        calls: in a run.
        seconds: for all samples; LEAST are taken whatever they take.
        most: samples.
    """

    def sample(flights: int) -> float:
        begun = time.perf_counter()
        for _ in range(flights):
            out = start()
        wait(out)
        return (time.perf_counter() - begun) / (flights * calls)

    sample(1)
    flights = max(1, min(MOST_IN_FLIGHT, round(FLIGHT / (calls * sample(1)))))
    begun, times = time.perf_counter(), []
    while len(times) < most and (len(times) < LEAST or time.perf_counter() - begun < seconds):
        times.append(sample(flights))
    return times


def _each(run: Callable[[], Any], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - started) / calls


def spread(times: list[float], unit: str = "milliseconds") -> dict[str, float]:
    """Returns the median, the 95th percentile and the distance of the quartiles, in milliseconds or microseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
    names = {unit: middle, f"p95_{unit}": p95, f"spread_{unit}": high - low}
    scale = {"milliseconds": 1e3, "microseconds": 1e6}[unit]
    return {name: round(value * scale, 4) for name, value in names.items()} | {"samples": len(times)}


def side_by_side(jobs: Mapping[Any, Callable[[], Any]], threads: int) -> dict[Any, Callable[[], Any]]:
    """Runs jobs in threads until all have ended; returns functions that return or raise what the jobs did.

    For compiling, which takes longer than measuring and must not go on beside it.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
    return {name: future.result for name, future in futures.items()}
