"""Times of the op, forward and forward with backward: the fused kernels and `xla` beside the floors of the machine itself."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax

from benchmarks.gpu.cases import Case, groups
from benchmarks.gpu.timing import ceilings, fresh_key, rotation, seconds, side_by_side
from benchmarks.harness import Report
from natjax_kernels import neighborhood_attention

TARGETS = {"forward": 2.0, "both": 2.5}  # times the floor, levels 1 to 3
RUNS = (("triton", "bfloat16"), ("triton", "float16"), ("xla", "bfloat16"), ("xla", "float16"))


def measure(report: Report, rehearse: bool, threads: int) -> None:
    """Adds a row per case, dtype, implementation and direction; what matters most is compiled and timed before the rest is."""
    key, seed = fresh_key()
    limits = ceilings(rehearse)
    report.note(seed=seed, ceilings=limits, targets=TARGETS)
    steps = list(itertools.product(groups(rehearse).values(), RUNS[2:3] if rehearse else RUNS))
    for cases, (implementation, dtype) in sorted(steps, key=lambda step: step[1] == RUNS[-1]):
        jobs = {
            (case, what): functools.partial(compile_op, case, what, dtype, implementation)
            for case, what in itertools.product(cases, TARGETS)
        }
        compiled = jobs if report.time_is_up() else side_by_side(jobs, threads)
        for (case, what), program in compiled.items():
            floor = case.floors(dtype, limits)[what]
            target = TARGETS[what] if implementation == "triton" and _has_target(case) else None
            report.measure(
                lambda c=case, p=program, d=dtype, f=floor, t=target: beside_the_floor(time_op(c, d, p(), key), f, t),
                case=case.name,
                shape=case.shape,
                kernel_size=case.kernel_size,
                dilation=case.dilation,
                dtype=dtype,
                implementation=implementation,
                what=what,
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


def compile_op(
    case: Case, what: str, dtype: str, implementation: str, sets: int | None = None
) -> tuple[jax.stages.Compiled, int]:
    """Compiles a program of calls on inputs of their own, as many as timing wants; returns it and how many calls it makes."""
    # XLA's own programs are many kernels each: two calls are enough, and compile sooner.
    sets = sets or rotation(case.nbytes(3, dtype), 2 if implementation == "xla" else 8)

    def op(query, key, value, rpb):
        return neighborhood_attention(query, key, value, rpb=rpb, **case.options(), implementation=implementation)

    def call(query, key, value, rpb, d_out):
        if what == "forward":
            return op(query, key, value, rpb)
        out, pull = jax.vjp(op, query, key, value, rpb)
        return out, pull(d_out)

    shapes = jax.eval_shape(lambda: case.arguments(jax.random.key(0), sets, dtype))
    return jax.jit(lambda inputs: [call(*x) for x in inputs]).lower(shapes).compile(), sets


def time_op(case: Case, dtype: str, compiled: tuple[jax.stages.Compiled, int], key: jax.Array) -> dict[str, Any]:
    """Times a compiled program: microseconds of a call and their spread."""
    program, sets = compiled
    middle, spread = seconds(program, (case.arguments(key, sets, dtype),), calls=sets)
    return {
        "microseconds": round(middle * 1e6, 2),
        "spread_microseconds": round(spread * 1e6, 2),
        "calls_a_program": sets,
    }
