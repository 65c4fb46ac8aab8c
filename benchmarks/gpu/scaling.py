"""Time and memory of a token as maps grow from 56^2 to 1024^2: both should stay the same (heads of 32 channels, kernel 7)."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax

from benchmarks.gpu.cases import Case
from benchmarks.gpu.op import TARGETS, compile_op, time_op
from benchmarks.gpu.timing import fresh_key, peak_bytes, side_by_side
from benchmarks.harness import Report

SIDES = (56, 112, 224, 448, 1024)
FLAT_FROM, FLAT_WITHIN = 112, 0.10


def measure(report: Report, rehearse: bool, threads: int) -> None:
    """Adds a row per side and direction, and how flat the time of a token is."""
    key, seed = fresh_key()
    report.note(seed=seed, target={"flat_from": FLAT_FROM, "within": FLAT_WITHIN})
    sides, tokens = ((14, 28), 28 * 28) if rehearse else (SIDES, 1 << 20)
    # As many tokens for all, so that every map fills the GPU.
    cases = {side: Case(f"side {side}", max(1, tokens // side**2), (side, side), 2, 32, (7, 7)) for side in sides}
    implementation = "xla" if rehearse else "triton"
    for what in TARGETS:
        if report.time_is_up():
            return
        compiled = side_by_side(
            {
                (side, sets): functools.partial(compile_op, cases[side], what, "bfloat16", implementation, sets)
                for side in sides
                for sets in (None, 1)  # several calls are timed, but share temporaries: memory is that of one
            },
            threads,
        )
        times = {}
        for side, case in cases.items():
            timed, single = compiled[side, None], compiled[side, 1]
            row = report.measure(
                lambda c=case, t=timed, s=single: per_token(c, t(), s()[0], key),
                side=side,
                batch=case.batch,
                what=what,
            )
            if "nanoseconds_per_token" in row:
                times[side] = row["nanoseconds_per_token"]
        kept = [t for side, t in times.items() if side >= FLAT_FROM]
        if len(kept) > 1:
            ratio = max(kept) / min(kept)
            report.note(**{f"{what}_slowest_over_fastest": round(ratio, 3), f"{what}_flat": ratio <= 1 + FLAT_WITHIN})


def per_token(
    case: Case, timed: tuple[jax.stages.Compiled, int], single: jax.stages.Compiled, key: jax.Array
) -> dict[str, Any]:
    """Times a case, and takes its memory from a program of a single call: inputs and results included, temporaries alone."""
    row = time_op(case, "bfloat16", timed, key)
    tokens = case.batch * math.prod(case.spatial)
    return row | {
        "nanoseconds_per_token": round(row["microseconds"] * 1e3 / tokens, 4),
        "peak_bytes_per_token": round(peak_bytes(single) / tokens, 1),
        "temporary_bytes_per_token": round(single.memory_analysis().temp_size_in_bytes / tokens, 1),
    }
