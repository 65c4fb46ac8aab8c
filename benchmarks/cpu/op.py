"""The op by itself, float32: time and temporary memory per token, forward and with its backward pass.

Groups of cases, of NAT-Tiny's shapes: "levels" (kernel 7), "kernels" 3 to 13 and "dilations" 1 to 8 on level 1, "batches" 1 to
32, "ranks" 1-D to 3-D, "sides" 56 to 448, where a token should cost the same whatever the map. The cases of a group run in turn.
Memory is what the compiled program needs besides its inputs and outputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.calls import WHAT, arguments, op
from benchmarks.cpu.floor import compiled
from benchmarks.harness import OUT_OF_TIME, Options, Report, describe
from benchmarks.timing import interleaved, spread
from natjax_kernels import explain
from natjax_kernels.cases import Case, levels

LEVEL_1 = levels(1, 2, "")[0]
like_level_1 = functools.partial(dataclasses.replace, LEVEL_1)
GROUPS = {
    "levels": [*levels(1, 2, ""), *levels(8, 2, "")],
    "kernels": [like_level_1(kernel_size=k) for k in (3, 5, 7, 9, 11, 13)],
    "dilations": [like_level_1(dilation=d) for d in (1, 2, 4, 8)],
    "batches": [like_level_1(batch=b) for b in (1, 2, 4, 8, 16, 32)],
    "ranks": [
        like_level_1(spatial=(3136,), kernel_size=49),
        LEVEL_1,
        like_level_1(spatial=(16, 14, 14), kernel_size=3),
    ],
    "sides": [like_level_1(spatial=(side, side)) for side in (56, 112, 224, 448)],
}
QUICK = {"levels": GROUPS["levels"][:4], "sides": GROUPS["sides"][:3]}


def measure(report: Report, options: Options) -> None:
    """Adds a row per case, and how much the time of a token differs between maps of 112 and more."""
    tokens = jax.ShapeDtypeStruct(LEVEL_1.shape, "float32")
    report.note(implementation=explain(tokens, tokens, tokens, kernel_size=7), dtype="float32")
    for group, cases in (QUICK if options.small else GROUPS).items():
        measure_group(report, group, cases, 3.0 if options.small else 12.0)
    large = [row for row in report.content["rows"] if row["group"] == "sides" and row["shape"][1] > 56]
    times = {what: [row[what]["nanoseconds_per_token"] for row in large if what in row] for what in WHAT}
    ratios = {what: round(max(found) / min(found), 2) for what, found in times.items() if len(found) > 1}
    report.note(slowest_over_fastest=ratios)


def measure_group(report: Report, group: str, cases: list[Case], seconds: float) -> None:
    """Compiles the cases of a group and times those that compile in turn."""

    def add(case: Case, **found: Any) -> None:
        labels = {name: getattr(case, name) for name in ("shape", "kernel_size", "dilation")}
        report.add(group=group, **labels, **found)

    prepared: dict[Case, dict[str, tuple[Callable, int]]] = {}
    for case in cases:
        try:
            prepared[case] = {} if report.time_is_up() else programs(case)
        except Exception as error:
            add(case, error=describe(error))
    if report.time_is_up():
        for case in prepared:
            add(case, skipped=OUT_OF_TIME)
        return
    times = interleaved(
        {(case, what): run for case, found in prepared.items() for what, (run, _) in found.items()}, seconds=seconds
    )
    for case, found in prepared.items():
        tokens, row = case.batch * math.prod(case.spatial), {}
        for what, (_, memory) in found.items():
            row[what] = spread(times[case, what]) | {
                "nanoseconds_per_token": round(statistics.median(times[case, what]) * 1e9 / tokens),
                "temporary_bytes_per_token": round(memory / tokens),
            }
        add(case, **row)


def programs(case: Case) -> dict[str, tuple[Callable, int]]:
    """Returns calls of forward and of forward with backward, compiled, and the bytes of their temporaries."""
    (inputs,) = arguments(case, jax.random.key(0), 1, "float32")
    found = {}
    for what in WHAT:
        run, program = compiled(op(case, what), *inputs)
        found[what] = run, program.memory_analysis().temp_size_in_bytes
    return found
