"""Times of the op, forward and forward with backward: the fused kernels and `xla` beside the floors of the machine itself.

Two sections: `op`, and `scaling`: time and memory of a token as maps grow from 56^2 to 1024^2, which should stay the same (heads
of 32 channels, kernel 7). A timed program calls the op many times on inputs of their own, so that launches from Python and the L2
cache neither hide nor flatter it. What is left of overhead is the gap between kernels, which `ceilings` measures.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.cases import Case, Options, arguments, floors, fresh_key, groups, normal, rotation
from benchmarks.harness import Report
from benchmarks.timing import seconds, side_by_side
from natjax_kernels import neighborhood_attention

WHAT = ("forward", "both")
RUNS = (("triton", "bfloat16"), ("triton", "float16"), ("xla", "bfloat16"), ("xla", "float16"))
SIDES, FLAT_FROM = (56, 112, 224, 448, 1024), 112
Compiled = tuple[jax.stages.Compiled, int]  # a program, and how many calls it makes


def measure(report: Report, options: Options) -> None:
    """Adds a row per case, dtype, implementation and direction; what matters most is compiled and timed before the rest is."""
    key, seed = fresh_key()
    limits = ceilings(options.rehearse)
    report.note(seed=seed, ceilings=limits)
    steps = list(itertools.product(groups(options).values(), RUNS[2:3] if options.rehearse else RUNS))
    for cases, (implementation, dtype) in sorted(steps, key=lambda step: step[1] == RUNS[-1]):
        compile_one = functools.partial(compile_op, dtype=dtype, implementation=implementation)
        jobs = {job: functools.partial(compile_one, *job) for job in itertools.product(cases, WHAT)}
        compiled = jobs if report.time_is_up() else side_by_side(jobs, options.threads)
        for (case, what), program in compiled.items():
            names = ("shape", "kernel_size", "dilation")
            labels = {name: getattr(case, name) for name in names}
            labels |= {"dtype": dtype, "implementation": implementation, "what": what}
            floor = floors(case, dtype, limits)[what]
            work = functools.partial(beside_the_floor, case, dtype, program, key, floor)
            report.measure(work, case=case.name, **labels)


def beside_the_floor(case: Case, dtype: str, program: Any, key: jax.Array, floor: dict[str, float]) -> dict[str, Any]:
    """Times a case, and adds the floor and the distance to it."""
    row = time_op(case, dtype, program(), key)
    row |= {f"{name}_microseconds": round(value, 2) for name, value in floor.items()}
    return row | {"times_the_floor": round(row["microseconds"] / floor["floor"], 3)}


def compile_op(case: Case, what: str, dtype: str, implementation: str, sets: int | None = None) -> Compiled:
    """Compiles a program of calls on inputs of their own, as many as timing wants."""
    # XLA's own programs are many kernels each: two calls are enough, and compile sooner.
    sets = sets or rotation(case, dtype, 2 if implementation == "xla" else 8)

    def op(query, key, value, rpb):
        return neighborhood_attention(query, key, value, rpb=rpb, **case.options(), implementation=implementation)

    def call(query, key, value, rpb, d_out):
        if what == "forward":
            return op(query, key, value, rpb)
        out, pull = jax.vjp(op, query, key, value, rpb)
        return out, pull(d_out)

    shapes = jax.eval_shape(lambda: arguments(case, jax.random.key(0), sets, dtype))
    return jax.jit(lambda inputs: [call(*x) for x in inputs]).lower(shapes).compile(), sets


def time_op(case: Case, dtype: str, compiled: Compiled, key: jax.Array) -> dict[str, Any]:
    """Times a compiled program: microseconds of a call and their spread."""
    program, sets = compiled
    middle, spread = seconds(program, (arguments(case, key, sets, dtype),), calls=sets)
    times = {"microseconds": round(middle * 1e6, 2), "spread_microseconds": round(spread * 1e6, 2)}
    return times | {"calls_a_program": sets}


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


def measure_scaling(report: Report, options: Options) -> None:
    """Adds a row per side and direction, and how flat the time of a token is."""
    key, seed = fresh_key()
    report.note(seed=seed, flat_from=FLAT_FROM)
    sides, tokens = ((14, 28), 28 * 28) if options.rehearse else (SIDES, 1 << 20)
    # As many tokens for all, so that every map fills the GPU.
    cases = {side: Case(f"side {side}", max(1, tokens // side**2), (side, side), 2, 32, (7, 7)) for side in sides}
    cases = {side: case for side, case in cases.items() if options.wants(case.name)}
    implementation = "xla" if options.rehearse else "triton"
    for what in WHAT:
        if report.time_is_up():
            return
        # Several calls are timed, but share temporaries: memory is that of one.
        jobs = {
            (side, sets): functools.partial(compile_op, cases[side], what, "bfloat16", implementation, sets)
            for side, sets in itertools.product(cases, (None, 1))
        }
        compiled = side_by_side(jobs, options.threads)
        times = []
        for side, case in cases.items():
            work = functools.partial(per_token, case, compiled[side, None], compiled[side, 1], key)
            row = report.measure(work, side=side, batch=case.batch, what=what)
            if side >= FLAT_FROM and "nanoseconds_per_token" in row:
                times.append(row["nanoseconds_per_token"])
        if len(times) > 1:
            report.note(**{f"{what}_slowest_over_fastest": round(max(times) / min(times), 3)})


def per_token(case: Case, timed: Any, single: Any, key: jax.Array) -> dict[str, Any]:
    """Times a case, and takes its memory from a program of a single call: inputs and results included, temporaries alone."""
    row = time_op(case, "bfloat16", timed(), key)
    tokens, memory = case.batch * math.prod(case.spatial), single()[0].memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return row | {
        "nanoseconds_per_token": round(row["microseconds"] * 1e3 / tokens, 4),
        "peak_bytes_per_token": round((held + memory.temp_size_in_bytes) / tokens, 1),
        "temporary_bytes_per_token": round(memory.temp_size_in_bytes / tokens, 1),
    }
