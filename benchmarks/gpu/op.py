"""Times of the op, forward and forward with backward: the fused kernels and `xla` beside the floors of the machine itself.

Two sections: `op`, and `scaling`: time and memory of a token as maps grow from 56^2 to 1024^2, which should stay the same (heads
of 32 channels, kernel 7). A timed program of `op` calls the op many times on inputs of their own, so that launches from Python
and the L2 cache neither hide nor flatter it; one of `scaling` calls it once, on inputs larger than that cache. What is left of
overhead is that of launches within a program, which `ceilings` measures.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.calls import WHAT, arguments, draw, floors, fresh_key, groups, op, rotation
from benchmarks.harness import Options, Report, describe
from benchmarks.timing import in_flight, side_by_side, spread
from natjax_kernels.cases import Case

RUNS = (("triton", "bfloat16"), ("triton", "float16"), ("xla", "bfloat16"), ("xla", "float16"))
SIDES, FLAT_FROM = (56, 112, 224, 448, 1024), 112


def measure(report: Report, options: Options) -> None:
    """Adds a row per case, dtype, implementation and direction; what matters most is compiled and timed before the rest is."""
    steps = itertools.product(groups(options).values(), RUNS[2:3] if options.small else RUNS)
    time_cases(report, options, sorted(steps, key=lambda step: step[1] == RUNS[-1]))


def measure_scaling(report: Report, options: Options) -> None:
    """Adds a row per side and direction, and how flat the time of a token is."""
    sides, tokens = ((14, 28), 28 * 28) if options.small else (SIDES, 1 << 20)
    # As many tokens for all, so that every map fills the GPU; one call's inputs are more than the L2 cache holds.
    cases = [Case(f"side {side}", max(1, tokens // side**2), (side, side), 2, 32, 7) for side in sides]
    wanted = [case for case in cases if options.wants(case.name)]
    time_cases(report, options, [(wanted, RUNS[2 if options.small else 0])], most=1)
    for what in WHAT:
        rows = [row for row in report.content["rows"] if row["what"] == what and row["shape"][1] >= FLAT_FROM]
        times = [row["nanoseconds_per_token"] for row in rows if "nanoseconds_per_token" in row]
        if len(times) > 1:
            report.note(**{f"{what}_slowest_over_fastest": round(max(times) / min(times), 3)})


def time_cases(
    report: Report, options: Options, steps: Sequence[tuple[Sequence[Case], tuple[str, str]]], most: int = 8
) -> None:
    """Adds rows of cases by implementation and dtype, of programs of `most` calls; each step is compiled before it is timed."""
    if not any(cases for cases, _ in steps):
        return
    key, seed = fresh_key()
    limits = ceilings(options.small)
    report.note(seed=seed, ceilings=limits)
    for cases, (implementation, dtype) in steps:
        late = report.time_is_up()
        # XLA's own programs are many kernels each: two calls are enough, and compile sooner.
        sets = {case: rotation(case, dtype, min(most, 2) if implementation == "xla" else most) for case in cases}
        jobs = {
            (case, what): functools.partial(compile_op, case, what, dtype, implementation, sets[case], key)
            for case, what in itertools.product(cases, WHAT)
        }
        for (case, what), program in (jobs if late else side_by_side(jobs, options.threads)).items():
            labels = {name: getattr(case, name) for name in ("shape", "kernel_size", "dilation")}
            labels |= {"dtype": dtype, "implementation": implementation, "what": what}
            floor = floors(case, dtype, limits)[what]
            work = functools.partial(row, case, dtype, program, sets[case], key, floor)
            report.measure(work, late=late, case=case.name, **labels)


def row(
    case: Case, dtype: str, compiled: Callable, sets: int, key: jax.Array, floor: dict[str, float]
) -> dict[str, Any]:
    """Times a case, beside its floor and by token; memory is that of a program of one call."""
    program, tokens = compiled(), case.batch * math.prod(case.spatial)
    times = time_program(program, arguments(case, key, sets, dtype), calls=sets)
    memory, middle = program.memory_analysis(), statistics.median(times)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    by_token = {
        "peak_bytes_per_token": round((held + memory.temp_size_in_bytes) / tokens, 1),
        "temporary_bytes_per_token": round(memory.temp_size_in_bytes / tokens, 1),
    }
    return {
        **spread(times, "microseconds"),
        "calls_a_program": sets,
        **{f"{name}_microseconds": round(value, 2) for name, value in floor.items()},
        "times_the_floor": round(middle * 1e6 / floor["floor"], 3),
        "nanoseconds_per_token": round(middle * 1e9 / tokens, 4),
        **(by_token if sets == 1 else {}),
    }


def compile_op(
    case: Case, what: str, dtype: str, implementation: str, sets: int, key: jax.Array
) -> jax.stages.Compiled:
    """Compiles a program of so many calls on inputs of their own, and those that draw them."""
    call = op(case, what, implementation)
    arguments(case, key, 1, dtype)
    shapes = jax.eval_shape(lambda: arguments(case, key, sets, dtype))
    program = jax.jit(lambda inputs: [call(*x) for x in inputs]).lower(shapes).compile()
    if implementation == "triton":  # whose kernels are assembled at their first launch
        jax.block_until_ready(program(arguments(case, key, sets, dtype)))
    return program


def time_program(program: Callable, *inputs: Any, calls: int = 1) -> list[float]:
    """Returns the seconds of one of the calls in a program, sample by sample."""
    return in_flight(functools.partial(program, *inputs), jax.block_until_ready, calls=calls)


def ceilings(small: bool) -> dict[str, Any]:
    """Measures copy bandwidth, bfloat16 matrix products, and what a launch takes at least of a program's time.

    That is of XLA's own kernels, which are in a CUDA graph, and of the fused ones, which are not: jax-triton's calls are of an
    interface that XLA cannot capture, and each has a kernel to look up. A fused call of one program is timed, its work in it;
    where that fails, the error stands in its place.
    """
    side, key = 256 if small else 8192, jax.random.key(0)
    a, b = (draw(key, i, (side, side), "bfloat16") for i in range(2))
    product = statistics.median(time_program(jax.jit(jnp.matmul), a, b))
    found = {
        "copy_gigabytes_per_second": copy_rate(small),
        "matmul_teraflops": 2 * side**3 / product / 1e12,
        "kernel_gap_microseconds": 1e6 * link(lambda x: jax.lax.optimization_barrier(x + 1), jnp.zeros(64)),
    }
    try:
        fused = {"smallest_fused_call_microseconds": 1e6 * smallest_fused_call(key, "xla" if small else "triton")}
    except Exception as error:  # `xla` can be timed all the same
        return rounded(found) | {"smallest_fused_call_error": describe(error)}
    return rounded(found | fused)


def rounded(found: dict[str, float]) -> dict[str, float]:
    """Returns 4 digits of each: never 0, as others are divided by them."""
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def smallest_fused_call(key: jax.Array, implementation: str) -> float:
    """Returns the seconds of a call of one program."""
    smallest = Case("one program", 1, (16,), 1, 16, 3, bias=False)
    fused = op(smallest, "forward", implementation)
    ((query, key_, value, *_),) = arguments(smallest, key, 1, "bfloat16")
    return link(lambda x: fused(x, key_, value, None), query)


def copy_rate(small: bool) -> float:
    """Measures the gigabytes read and written a second, adding a number that the compiler does not know: no copy to leave out."""
    x = draw(jax.random.key(0), 0, (1 << 20 if small else 1 << 30,), "bfloat16")
    return 2 * x.nbytes / statistics.median(time_program(jax.jit(lambda x, y: x + y), x, jnp.bfloat16(1))) / 1e9


def link(step: Callable[[jax.Array], jax.Array], x: jax.Array, links: int = 16) -> float:
    """Returns the seconds of a step in a program that takes one after another, each of what the one before made."""
    chain = jax.jit(lambda x: functools.reduce(lambda x, _: step(x), range(links), x))
    return statistics.median(time_program(chain, x, calls=links))
