"""Times of the op, forward and forward with backward: the fused kernels and `xla` beside the floors of the machine itself."""

from __future__ import annotations

import itertools
from typing import Any

import jax

from benchmarks.gpu.cases import Case, op_cases
from benchmarks.gpu.harness import Report
from benchmarks.gpu.timing import ceilings, fresh_key, rotation, seconds
from natjax_kernels import neighborhood_attention

TARGETS = {"forward": 2.0, "both": 2.5}  # times the floor, levels 1 to 3


def measure(report: Report, rehearse: bool, **_: Any) -> None:
    """Adds a row per case, dtype, implementation and direction; what matters most comes first."""
    key, seed = fresh_key()
    limits = ceilings(rehearse)
    report.note(seed=seed, ceilings=limits, targets=TARGETS)
    cases = op_cases(rehearse)
    ours = ["xla"] if rehearse else ["triton", "xla"]
    for implementation, dtype, case in itertools.product(ours, ("bfloat16", "float16"), cases):
        if implementation == "xla" and not rehearse and (dtype == "float16" or not case.name.startswith("tiny")):
            continue  # a baseline, not worth its compile time everywhere
        floors = case.floors(dtype, limits)
        for what in ("forward", "both"):
            labels = {
                "case": case.name,
                "shape": case.shape,
                "kernel_size": case.kernel_size,
                "dilation": case.dilation,
            }
            labels |= {"dtype": dtype, "implementation": implementation, "what": what}
            target = TARGETS[what] if implementation == "triton" and _has_target(case) else None
            report.measure(
                lambda c=case, w=what, d=dtype, i=implementation, f=floors[what], t=target: beside_the_floor(
                    time_op(c, w, d, i, key), f, t
                ),
                **labels,
            )


def _has_target(case: Case) -> bool:
    return "level" in case.name and "level 4" not in case.name


def beside_the_floor(row: dict[str, Any], floor: dict[str, float], target: float | None) -> dict[str, Any]:
    """Adds the floor and the distance to it, and whether that is within the target."""
    row |= {f"{name}_microseconds": round(value, 2) for name, value in floor.items()}
    row["times_the_floor"] = round(row["microseconds"] / floor["floor"], 3)
    if target is not None:
        row |= {"target_times_the_floor": target, "target_met": row["times_the_floor"] <= target}
    return row


def time_op(case: Case, what: str, dtype: str, implementation: str, key: jax.Array) -> dict[str, Any]:
    """Times one direction of one case: microseconds of a call, their spread, and bytes beside inputs and outputs."""
    # XLA's own programs are many kernels each, so that two calls are enough, and compile in half the time.
    sets = rotation(case.nbytes(3, dtype), 2 if implementation == "xla" else 16)
    inputs, rpb = case.arguments(key, sets, dtype)

    def op(query, value_key, value, rpb):
        return neighborhood_attention(query, value_key, value, rpb=rpb, **case.options(), implementation=implementation)

    def call(query, key, value, d_out, rpb):
        if what == "forward":
            return op(query, key, value, rpb)
        out, pull = jax.vjp(op, query, key, value, rpb)
        return out, pull(d_out)

    program = jax.jit(lambda inputs, rpb: [call(*x, rpb) for x in inputs]).lower(inputs, rpb).compile()
    middle, spread = seconds(program, (inputs, rpb), calls=sets)
    return {
        "microseconds": round(middle * 1e6, 2),
        "spread_microseconds": round(spread * 1e6, 2),
        "calls_a_program": sets,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }
