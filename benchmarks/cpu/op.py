"""The op by itself, float32: time and temporary memory per token, forward and with its backward pass.

Groups of cases, of NAT-Tiny's shapes: "levels" (kernel 7), "kernels" 3 to 13 and "dilations" 1 to 8 on level 1, "batches" 1 to
32, "ranks" 1-D to 3-D, "sides" 56 to 448, where a token should cost the same whatever the map. The cases of a group run in turn.
Memory is what the compiled program needs besides its inputs and outputs. Letters: B batch, N heads, D channels of a head.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness import OUT_OF_TIME, Report, describe
from benchmarks.timing import interleaved, spread
from natjax import compiler_options
from natjax_kernels import explain, neighborhood_attention


class Case(NamedTuple):
    """A call: [B, *spatial, N, D], window and dilation of every axis."""

    shape: tuple[int, ...]
    kernel_size: int = 7
    dilation: int = 1


LEVELS = [(56, 2), (28, 4), (14, 8), (7, 16)]  # side and heads
GROUPS = {
    "levels": [Case((batch, side, side, heads, 32)) for batch in (1, 8) for side, heads in LEVELS],
    "kernels": [Case((1, 56, 56, 2, 32), k) for k in (3, 5, 7, 9, 11, 13)],
    "dilations": [Case((1, 56, 56, 2, 32), 7, d) for d in (1, 2, 4, 8)],
    "batches": [Case((batch, 56, 56, 2, 32)) for batch in (1, 2, 4, 8, 16, 32)],
    "ranks": [Case((1, 3136, 2, 32), 49), Case((1, 56, 56, 2, 32), 7), Case((1, 16, 14, 14, 2, 32), 3)],
    "sides": [Case((1, side, side, 2, 32)) for side in (56, 112, 224, 448)],
}
QUICK = {"levels": GROUPS["levels"][:4], "sides": GROUPS["sides"][:3]}
WHAT = ("forward", "both")


def measure(report: Report, quick: bool) -> None:
    """Adds a row per case, and how much the time of a token differs between maps of 112 and more."""
    tokens = jax.ShapeDtypeStruct((1, 56, 56, 2, 32), jnp.float32)
    report.note(implementation=explain(tokens, tokens, tokens, kernel_size=7), dtype="float32")
    for group, cases in (QUICK if quick else GROUPS).items():
        measure_group(report, group, cases, 3.0 if quick else 12.0)
    large = [row for row in report.content["rows"] if row["group"] == "sides" and row["shape"][1] > 56]
    times = {what: [row[what]["nanoseconds_per_token"] for row in large if what in row] for what in WHAT}
    ratios = {what: round(max(found) / min(found), 2) for what, found in times.items() if len(found) > 1}
    report.note(slowest_over_fastest=ratios)


def measure_group(report: Report, group: str, cases: list[Case], seconds: float) -> None:
    """Compiles the cases of a group and times those that compile in turn."""
    compiled: dict[Case, dict[str, tuple[Callable, int]]] = {}
    for case in cases:
        if report.time_is_up():
            break
        try:
            compiled[case] = programs(case)
        except Exception as error:
            report.add(group=group, **case._asdict(), error=describe(error))
    if report.time_is_up():
        failed = [row["shape"] for row in report.content["rows"] if row["group"] == group]
        for case in cases:
            if case.shape not in failed:
                report.add(group=group, **case._asdict(), skipped=OUT_OF_TIME)
        return
    runs = {(case, what): run for case, found in compiled.items() for what, (run, _) in found.items()}
    times = interleaved(runs, seconds=seconds)
    for case, found in compiled.items():
        tokens, row = math.prod(case.shape[:-2]), {}
        for what, (_, memory) in found.items():
            row[what] = spread(times[case, what]) | {
                "nanoseconds_per_token": round(statistics.median(times[case, what]) * 1e9 / tokens),
                "temporary_bytes_per_token": round(memory / tokens),
            }
        report.add(group=group, **case._asdict(), **row)


def programs(case: Case) -> dict[str, tuple[Callable, int]]:
    """Returns forward and forward with backward, compiled, and the bytes of their temporaries."""
    rank = len(case.shape) - 3
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value, d_out = (jax.random.normal(k, case.shape) for k in keys[:4])
    rpb = 0.1 * jax.random.normal(keys[4], (case.shape[-2], *[2 * case.kernel_size - 1] * rank))

    def forward(query, key, value, rpb, d_out):
        return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=case.kernel_size, dilation=case.dilation)

    def both(query, key, value, rpb, d_out):
        out, pull = jax.vjp(lambda *arguments: forward(*arguments, d_out), query, key, value, rpb)
        return out, pull(d_out)

    arguments = (query, key, value, rpb, d_out)
    found = {}
    for what, function in zip(WHAT, (forward, both), strict=True):
        program = jax.jit(function, compiler_options=compiler_options()).lower(*arguments).compile()
        found[what] = functools.partial(_wait, program, arguments), program.memory_analysis().temp_size_in_bytes
    return found


def _wait(program: Callable, arguments: tuple) -> Any:
    return jax.block_until_ready(program(*arguments))
