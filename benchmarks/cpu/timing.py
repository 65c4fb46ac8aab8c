"""Times several things on a machine that is never quiet: in turn, A B C A B C ..., so that whatever slows one slows all alike.

Times of one run are compared as ratios of medians; times of different runs are not compared at all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import Report

SAMPLE = 0.004  # seconds that a sample lasts at least: what is quicker is called several times
REST = 0.002  # seconds between samples, in which the threads of the one before stop to spin


def interleaved(
    runs: Mapping[str, Callable[[], Any]], *, seconds: float, most: int = 15, least: int = 3
) -> dict[str, list[float]]:
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
    times: dict[str, list[float]] = {name: [] for name in runs}
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
    low, _, high = statistics.quantiles(times, n=4)
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
    middle = statistics.median(times)
    return {
        "milliseconds": round(middle * 1e3, 4),
        "p95_milliseconds": round(p95 * 1e3, 4),
        "spread_milliseconds": round((high - low) * 1e3, 4),
        "samples": len(times),
    }


def record(report: Report, **row: Any) -> None:
    """Adds a row of what is measured already, whatever the time."""
    report.note(rows=[*report.content["rows"], row])
