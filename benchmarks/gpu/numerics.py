"""Numerics of the fused kernels: errors beside float64 arithmetic on the same inputs, unwritten outputs, determinism.

Inputs are drawn anew in every run. Each of the runs that have to agree bitwise is given arrays of NaN to write its results into
(donated buffers), so that an entry that nobody wrote shows; a call passes only where XLA took all of them (`poisoned`). The suite
is the op's: rank, dilation, stride, causality, even kernels, partial tiles, halos of many blocks, with and without a bias; and
first what only large calls do: programs that go through many images of a batch, and through several tiles.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.calls import arguments, fresh_key, op
from benchmarks.harness import Options, Report
from benchmarks.rows import passed
from benchmarks.timing import side_by_side
from natjax_kernels.cases import Case

# Largest error, relative to the largest entry of a result (at least 1): as in the tests of the op.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
RESULTS = ("out", "dquery", "dkey", "dvalue", "drpb")
MOST_SCORES = 2**28  # of queries and all keys, which the reference holds several times in float64

LARGE = [
    Case("level 1, batch 128", 128, (56, 56), 2, 32, 7),  # as it is timed: many images a program
    Case("512 heads", 3, (28, 28), 512, 32, 7),  # several tiles a program, and all images
]
CALLS = [
    *LARGE,
    Case("level 1", 4, (56, 56), 2, 32, 7),
    Case("level 1 dilated", 4, (56, 56), 2, 32, 7, 8),
    Case("level 4", 8, (7, 7), 16, 32, 7),
    Case("1-D", 3, (1031,), 2, 64, 63),
    Case("1-D dilated", 1, (97,), 3, 16, 5, 7),
    Case("2-D uneven", 2, (45, 30), 2, 16, (3, 9), (2, 3)),
    Case("2-D even", 1, (19, 22), 2, 32, (4, 6), (1, 3), bias=False),
    Case("2-D causal", 1, (20, 21), 2, 16, (3, 4), is_causal=(True, False), bias=False),
    Case("2-D strided", 1, (21, 23), 1, 8, (5, 4), stride=(2, 4), is_causal=(False, True), bias=False),
    Case("2-D large window", 1, (64, 64), 1, 128, 41, bias=False),
    Case("2-D large window, bias", 2, (48, 40), 2, 32, 31),
    Case("3-D", 1, (9, 10, 11), 2, 24, 3, (1, 2, 3)),
    Case("level 2", 4, (28, 28), 4, 32, 7, 4),
    Case("level 3", 4, (14, 14), 8, 32, 7),
]
SMALL = [Case("1-D", 2, (19,), 1, 8, 5), Case("2-D dilated", 1, (9, 10), 1, 4, 3, (2, 3))]


def measure(report: Report, options: Options) -> None:
    """Adds a row per call and dtype; in a rehearsal the kernels run in Triton's interpreter."""
    key, seed = fresh_key()
    runs = 2 if options.small else 10
    report.note(seed=seed, tolerance=TOLERANCE, runs=runs)
    calls = SMALL if options.small else CALLS
    keys = [(case, jax.random.fold_in(key, i)) for i, case in enumerate(calls) if options.wants(case.name)]
    jobs = [(dtype, *one) for dtype in TOLERANCE for one in keys]
    jobs.sort(key=lambda job: job[0] == "float32")

    def row(dtype, case, key):
        return report.measure(lambda: check(case, dtype, key, runs), call=case.name, dtype=dtype)

    # Compiling is most of the time, and the compilers run side by side.
    rows = side_by_side({job[:2]: functools.partial(row, *job) for job in jobs}, options.threads)
    found = [row() for row in rows.values()]
    if any("passed" in row or "error" in row for row in found):
        report.note(passed=passed(found), count=len(found))


def check(case: Case, dtype: str, key: jax.Array, runs: int) -> dict[str, Any]:
    """Compares one call with float64 and with itself.

    Where the reference, which is of all tokens and all others, is too large, `xla` stands for it: the op's tests compare them.
    """
    beside = "reference" if case.batch * case.heads * math.prod(case.spatial) ** 2 <= MOST_SCORES else "xla"
    (inputs,) = arguments(case, key, 1, dtype)
    fused = op(case, "both", "triton")
    call = jax.jit(lambda inputs, results: jax.tree.leaves(fused(*inputs)), donate_argnums=1, keep_unused=True)
    results = poison(inputs)
    program = call.lower(inputs, results).compile()
    first = run(program, inputs)
    same = all(identical(first, run(program, inputs)) for _ in range(runs - 1))
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype("float64"), inputs)
        expected = [np.asarray(x) for x in jax.tree.leaves(jax.jit(op(case, "both", beside))(*exact))]
    errors = {}
    for name, got, right in zip(RESULTS, first, expected, strict=False):
        difference = got.astype(np.float64) - right
        largest = np.abs(difference).max() / max(1.0, np.abs(right).max())
        errors[name] = {"largest": float(largest), "norm": float(np.linalg.norm(difference) / np.linalg.norm(right))}
    finite = all(np.isfinite(x.astype(np.float32)).all() for x in first)
    poisoned = program.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in results)
    return {
        "passed": bool(same and finite and poisoned and all(e["largest"] <= TOLERANCE[dtype] for e in errors.values())),
        "same_in_all_runs": same,
        "finite": bool(finite),
        "poisoned": poisoned,
        "beside": beside,
        "errors": errors if finite else {name: str(e) for name, e in errors.items()},  # JSON has no NaN
    }


def identical(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether results agree bitwise."""
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in zip(some, others, strict=True))


def poison(inputs: list[jax.Array | None]) -> list[jax.Array]:
    """Returns NaN for the results of a call: the output, which is like the query, and a gradient for each argument."""
    *primals, _ = inputs
    return [jnp.full_like(x, jnp.nan) for x in (primals[0], *primals) if x is not None]


def run(program: jax.stages.Compiled, inputs: list[jax.Array | None]) -> list[np.ndarray]:
    """Runs a program that writes over NaN; its scratch memory most likely held NaN too: what was freed last is taken first."""
    results = poison(inputs)
    scratch = jnp.full(program.memory_analysis().temp_size_in_bytes // 4, jnp.nan)
    jax.block_until_ready((results, scratch))
    scratch.delete()
    return [np.asarray(x) for x in program(inputs, results)]
