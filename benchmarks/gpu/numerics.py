"""Numerics of the fused kernels: errors beside float64 arithmetic on the same inputs, unwritten outputs, determinism.

Inputs are drawn anew in every run. Before each of the runs that have to agree bitwise, freed memory is filled with NaN, so
that an output that nobody wrote shows. The suite is the op's: rank, dilation, stride, causality, even kernels, partial tiles.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.timing import fresh_key, normal
from benchmarks.harness import Report
from natjax_kernels import neighborhood_attention

# Largest error, relative to the largest entry of a result (at least 1): as in the tests of the op.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
RESULTS = ("out", "dquery", "dkey", "dvalue", "drpb")
POISON = 1 << 28  # bytes

# name: [B, *spatial, N, D], options, bias
CALLS = {
    "level 1": ((4, 56, 56, 2, 32), {"kernel_size": 7}, True),
    "level 1 dilated": ((4, 56, 56, 2, 32), {"kernel_size": 7, "dilation": 8}, True),
    "level 4": ((8, 7, 7, 16, 32), {"kernel_size": 7}, True),
    "1-D": ((3, 1031, 2, 64), {"kernel_size": 63}, True),
    "1-D dilated": ((1, 97, 3, 16), {"kernel_size": 5, "dilation": 7}, True),
    "2-D uneven": ((2, 45, 30, 2, 16), {"kernel_size": (3, 9), "dilation": (2, 3)}, True),
    "2-D even": ((1, 19, 22, 2, 32), {"kernel_size": (4, 6), "dilation": (1, 3)}, False),
    "2-D causal": ((1, 20, 21, 2, 16), {"kernel_size": (3, 4), "is_causal": (True, False)}, False),
    "2-D strided": ((1, 21, 23, 1, 8), {"kernel_size": (5, 4), "stride": (2, 4), "is_causal": (False, True)}, False),
    "2-D large window": ((1, 64, 64, 1, 128), {"kernel_size": 41}, False),
    "3-D": ((1, 9, 10, 11, 2, 24), {"kernel_size": 3, "dilation": (1, 2, 3)}, True),
    "level 2": ((4, 28, 28, 4, 32), {"kernel_size": 7, "dilation": 4}, True),
    "level 3": ((4, 14, 14, 8, 32), {"kernel_size": 7}, True),
}
SMALL = {
    "1-D": ((2, 19, 1, 8), {"kernel_size": 5}, True),
    "2-D dilated": ((1, 9, 10, 1, 4), {"kernel_size": 3, "dilation": (2, 3)}, True),
}


def measure(report: Report, rehearse: bool, threads: int) -> None:
    """Adds a row per call and dtype; in a rehearsal the kernels run in Triton's interpreter."""
    key, seed = fresh_key()
    runs = 2 if rehearse else 10
    report.note(seed=seed, tolerance=TOLERANCE, runs=runs)
    calls = SMALL if rehearse else CALLS
    jobs = [(dtype, name, jax.random.fold_in(key, i)) for dtype in TOLERANCE for i, name in enumerate(calls)]
    # Compiling is most of the time, and the compilers run side by side.
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        done = [
            pool.submit(report.measure, lambda j=job: check(*calls[j[1]], j[0], j[2], runs), call=job[1], dtype=job[0])
            for job in sorted(jobs, key=lambda job: job[0] == "float32")
        ]
    rows = [future.result() for future in done]
    report.note(passed=all(row.get("passed") for row in rows), count=len(rows))


def check(shape, options, bias: bool, dtype: str, key: jax.Array, runs: int) -> dict[str, Any]:
    """Compares one call with float64 and with itself."""
    rank = len(shape) - 3
    kernel = options["kernel_size"]
    kernel = (kernel,) * rank if isinstance(kernel, int) else kernel
    query, key_, value, d_out, rpb = normal(key, *[shape] * 4, (shape[-2], *(2 * k - 1 for k in kernel)), dtype=dtype)
    arguments = (query, key_, value, rpb if bias else None)
    program = _program("triton", options).lower(arguments, d_out).compile()
    first = _after_poison(program, arguments, d_out)
    same = True
    for _ in range(runs - 1):
        again = _after_poison(program, arguments, d_out)
        same &= all(np.array_equal(a, b, equal_nan=False) for a, b in zip(first, again, strict=True))
    with jax.enable_x64(True):
        exact, exact_d_out = jax.tree.map(lambda x: x.astype("float64"), (arguments, d_out))
        expected = [np.asarray(x) for x in _program("reference", options)(exact, exact_d_out) if x is not None]
    errors, worst = {}, 0.0
    for name, got, right in zip(RESULTS, first, expected, strict=False):
        difference = got.astype(np.float64) - right
        largest = np.abs(difference).max() / max(1.0, np.abs(right).max())
        worst = max(worst, largest if np.isfinite(largest) else np.inf)
        errors[name] = {"largest": float(largest), "norm": float(np.linalg.norm(difference) / np.linalg.norm(right))}
    finite = all(np.isfinite(x.astype(np.float32)).all() for x in first)
    return {
        "passed": bool(same and finite and worst <= TOLERANCE[dtype]),
        "same_in_all_runs": bool(same),
        "finite": bool(finite),
        "errors": errors if finite else {name: str(e) for name, e in errors.items()},  # JSON has no NaN
    }


def _program(implementation: str, options):
    @jax.jit
    def run(arguments, d_out):
        def op(q, k, v, rpb):
            return neighborhood_attention(q, k, v, rpb=rpb, **options, implementation=implementation)

        out, pull = jax.vjp(op, *arguments)
        return out, *pull(d_out)

    return run


def _after_poison(program, arguments, d_out) -> list[np.ndarray]:
    """Runs a compiled program on memory that held NaN; the allocator hands out again what was freed last."""
    poison = [jnp.full(size // 4, jnp.nan, jnp.float32) for size in (POISON >> 3, POISON >> 6, POISON >> 9)]
    jax.block_until_ready(poison)
    for x in poison:
        x.delete()
    return [np.asarray(x) for x in program(arguments, d_out) if x is not None]
