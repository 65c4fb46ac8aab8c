"""NAT-Tiny and DiNAT-Tiny end to end at 224 px: inference and a training step (AdamW), computed in bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.cases import Options
from benchmarks.harness import Report
from benchmarks.timing import seconds, side_by_side
from natjax import benchmarking, default_implementation, get_config

BATCH, SIDE = 128, 224


def measure(report: Report, options: Options) -> None:
    """Adds a row per model, direction and implementation."""
    batch, side = (2, 32) if options.rehearse else (BATCH, SIDE)
    report.note(batch=batch, side=side, parameters="float32; bfloat16 in inference")
    changes = {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16, "kernel_size": 3} if options.rehearse else {}
    ours = [("nat_tiny", "triton"), ("dinat_tiny", "triton")]
    theirs = [("nat_tiny", "xla")]

    def program(make: Callable, name: str, implementation: str) -> benchmarking.Program:
        with default_implementation(implementation):
            return make(get_config(name, drop_path_rate=0.0, **changes), batch, side, "bfloat16")

    # Training steps take minutes to compile on few cores: what is sooner ready is measured before.
    groups = [
        (benchmarking.inference, ours),
        (benchmarking.training, ours),
        (benchmarking.inference, theirs),
        (benchmarking.training, theirs),
    ]
    for make, runs in groups[2:] if options.rehearse else groups:
        if report.time_is_up():
            return
        jobs = {run: functools.partial(program, make, *run) for run in runs if options.wants(run[0])}
        what = "inference" if make is benchmarking.inference else "training step"
        for (name, implementation), prepared in side_by_side(jobs, options.threads).items():
            work = functools.partial(row, prepared, batch)
            report.measure(work, model=name, what=what, implementation=implementation)


def row(prepared: Callable[[], benchmarking.Program], batch: int) -> dict[str, Any]:
    """Times runs of a program, and sees that what comes out are numbers."""
    program = prepared()
    middle, spread = seconds(program.run, (), samples=10, limit=2.0)
    if not all(jnp.isfinite(x).all() for x in jax.tree.leaves(program.run())):
        raise FloatingPointError("the logits or the loss are not finite")
    return {
        "milliseconds": round(middle * 1e3, 3),
        "spread_milliseconds": round(spread * 1e3, 3),
        "images_per_second": round(batch / middle, 1),
        "peak_bytes": program.memory_bytes,
    }
