"""NAT-Tiny and DiNAT-Tiny end to end at 224 px: inference and a training step (AdamW), computed in bfloat16."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Options, Report
from benchmarks.timing import interleaved, side_by_side, spread
from natjax import benchmarking, default_implementation, get_config

BATCH, SIDE = 128, 224


def measure(report: Report, options: Options) -> None:
    """Adds a row per model, direction and implementation."""
    batch, side = (2, 32) if options.small else (BATCH, SIDE)
    report.note(batch=batch, side=side, parameters="float32; bfloat16 in inference")
    changes = {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16, "kernel_size": 3} if options.small else {}

    def program(make: Callable, name: str, implementation: str) -> benchmarking.Program:
        with default_implementation(implementation):
            return make(get_config(name, drop_path_rate=0.0, **changes), batch, side, "bfloat16")

    makes = {"inference": benchmarking.inference, "training step": benchmarking.training}
    # Training steps take minutes to compile on few cores: what is sooner ready is measured before.
    for names, implementation in ((("nat_tiny", "dinat_tiny"), "triton"), (("nat_tiny",), "xla"))[options.small :]:
        for what, make in makes.items():
            wanted, late = [name for name in names if options.wants(name)], report.time_is_up()
            jobs = {name: functools.partial(program, make, name, implementation) for name in wanted}
            for name, prepared in (jobs if late else side_by_side(jobs, options.threads)).items():
                work = functools.partial(row, prepared, batch)
                report.measure(work, late=late, model=name, what=what, implementation=implementation)


def row(prepared: Callable[[], benchmarking.Program], batch: int) -> dict[str, Any]:
    """Times runs of a program, and sees that what comes out are numbers."""
    program = prepared()
    (times,) = interleaved({"": program.run}, seconds=2.0, most=10).values()
    if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(program.run())):
        raise FloatingPointError("the logits or the loss are not finite")
    speed = round(batch / statistics.median(times), 1)
    more = {"peak_bytes": program.memory_bytes, "compile_seconds": round(program.compile_seconds, 1)}
    return spread(times) | {"images_per_second": speed} | more
