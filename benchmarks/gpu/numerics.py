"""Numerics of the fused kernels: errors beside float64 arithmetic on the same inputs, unwritten outputs, determinism.

Inputs are drawn anew in every run. Each of the runs that have to agree bitwise is given arrays of NaN to write its results into
(donated buffers), so that an entry that nobody wrote shows; a call passes only where XLA took all of them (`poisoned`). The suite
is the op's: rank, dilation, stride, causality, even kernels, partial tiles, halos of many blocks, with and without a bias; and
first what only large calls do: programs that go through many images of a batch, and through several tiles; and last, in float32,
one small call per feature.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.calls import draw, fresh_key
from benchmarks.harness import Options, Report
from benchmarks.rows import passed
from benchmarks.timing import side_by_side
from natjax_kernels import cases, neighborhood_attention
from natjax_kernels.cases import Case

# Largest error, relative to the largest entry of a result (at least 1): as in the tests of the op.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
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
# Without sizes, which the fused kernels do not have, and what is among the calls above.
FEATURES = [case for case in cases.FEATURES if not case.sized and case.name not in {call.name for call in CALLS}]
SMALL_FEATURES = [case for case in FEATURES if case.name in ("1-D of one key head", "2-D of capped logits")]
SMALL = [Case("1-D", 2, (19,), 1, 8, 5), Case("2-D dilated", 1, (9, 10), 1, 4, 3, (2, 3))]


def measure(report: Report, options: Options) -> None:
    """Adds a row per call and dtype; in a rehearsal the kernels run in Triton's interpreter."""
    key, seed = fresh_key()
    runs = 2 if options.small else 10
    report.note(seed=seed, tolerance=TOLERANCE, runs=runs)
    calls, features = (SMALL, SMALL_FEATURES) if options.small else (CALLS, FEATURES)
    jobs = [(dtype, case) for dtype in TOLERANCE for case in calls]
    jobs.sort(key=lambda job: job[0] == "float32")
    jobs += [("float32", case) for case in features]
    jobs = [(*job, jax.random.fold_in(key, i)) for i, job in enumerate(jobs) if options.wants(job[1].name)]

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
    arrays, fused = drawn(case, key, dtype), op(case, "triton")
    call = jax.jit(lambda arrays, results: fused(arrays), donate_argnums=1, keep_unused=True)
    results = jax.eval_shape(fused, arrays)
    program = call.lower(arrays, results).compile()
    first = run(program, arrays, results)
    same = all(identical(first, run(program, arrays, results)) for _ in range(runs - 1))
    with jax.enable_x64(True):
        exact = {name: x if x.dtype == bool else x.astype("float64") for name, x in arrays.items()}
        expected = jax.tree.map(np.asarray, jax.jit(op(case, beside))(exact))
    errors = {}
    for name, right in expected.items():
        difference = first[name].astype(np.float64) - right
        largest = np.abs(difference).max() / max(1.0, np.abs(right).max())
        errors[name] = {"largest": float(largest), "norm": float(np.linalg.norm(difference) / np.linalg.norm(right))}
    finite = all(np.isfinite(x.astype(np.float32)).all() for x in first.values())
    poisoned = program.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in first.values())
    return {
        "passed": bool(same and finite and poisoned and all(e["largest"] <= TOLERANCE[dtype] for e in errors.values())),
        "same_in_all_runs": same,
        "finite": bool(finite),
        "poisoned": poisoned,
        "beside": beside,
        "errors": errors if finite else {name: str(e) for name, e in errors.items()},  # JSON has no NaN
    }


def op(case: Case, implementation: str) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """Returns a function of what `drawn` returns: the output, and the gradients of all that have one, by name."""

    def run(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        static = {name: x for name, x in arrays.items() if name == "key_mask"}
        d_out = arrays["d_out"]

        def forward(arrays):
            return neighborhood_attention(**arrays, **static, **case.options(), implementation=implementation)

        primals = {name: x for name, x in arrays.items() if name not in ("key_mask", "d_out")}
        out, pull = jax.vjp(forward, primals)
        return {"out": out} | {f"d{name}": x for name, x in pull(d_out)[0].items()}

    return run


def drawn(case: Case, key: jax.Array, dtype: str) -> dict[str, jax.Array]:
    """Returns the arrays of a call, by the names of its arguments, and the gradient of its output, "d_out"."""
    shapes = case.arrays() | {"d_out": case.out_shape}
    arrays = {name: draw(key, i, shape, dtype) for i, (name, shape) in enumerate(shapes.items())}
    return arrays | ({"key_mask": arrays["key_mask"] > 0.5} if case.masked else {})  # a third of the keys remain


def identical(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Whether results agree bitwise."""
    return all(np.array_equal(x.view(np.uint8), others[name].view(np.uint8)) for name, x in some.items())


def run(program: jax.stages.Compiled, arrays: dict[str, jax.Array], results: dict[str, Any]) -> dict[str, np.ndarray]:
    """Runs a program that writes over NaN; its scratch memory most likely held NaN too: what was freed last is taken first.

    Of the results only shapes and dtypes matter.
    """
    results = {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in results.items()}
    scratch = jnp.full(program.memory_analysis().temp_size_in_bytes // 4, jnp.nan)
    jax.block_until_ready((results, scratch))
    scratch.delete()
    return {name: np.asarray(x) for name, x in program(arrays, results).items()}
