"""Where a training step of NAT-Tiny goes: steps that lack a part, each in turn with the whole one; batch 8, float32, AdamW.

What a part takes is what its absence saves: XLA works on several things at a time and fuses them, so that the times of functions
by themselves do not sum to the whole's. What stands in for a part is as cheap as can be and depends on all that the part does,
so that gradients still reach every parameter.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax.numpy as jnp
import optax

from benchmarks.cpu.floor import BATCH, MODEL, SIDE
from benchmarks.cpu.timing import interleaved, spread
from benchmarks.cpu.worker import Worker
from benchmarks.harness import Report
from natjax.cli import bench
from natjax.presets import get_config

WHOLE = "whole"


def no_attention(query, key, value, *, rpb, **_):
    return query + key * jnp.mean(rpb) + value


def no_norm(norm, x, **_):
    return x * norm.scale[...] + norm.bias[...]


def no_gelu(x):
    return x


def no_convolution(x, kernel, *_, **__):
    return x[:, ::2, ::2] @ jnp.mean(kernel, (0, 1))


WITHOUT: dict[str, Callable[[], Any]] = {
    "attention": lambda: mock.patch("natjax.nn.attention.neighborhood_attention", no_attention),
    "norms": lambda: mock.patch("flax.nnx.LayerNorm.__call__", no_norm),
    "GELU": lambda: mock.patch.dict("natjax.nn.blocks._ACTIVATIONS", gelu=no_gelu),
    "convolutions": lambda: mock.patch("natjax.nn.layers.conv3x3_s2", no_convolution),
    "AdamW": lambda: mock.patch("optax.adamw", optax.sgd),
}


def measure(report: Report, quick: bool) -> None:
    """Adds a row for the compilation of the whole step, and one per part that is left out."""
    with contextlib.ExitStack() as stack:
        steps: list[Worker] = []

        def compiled() -> dict[str, Any]:
            steps.append(stack.enter_context(Worker(prepare, WHOLE)))
            return steps[0].row

        report.measure(compiled, kind="compile", name=WHOLE)
        for part in [*WITHOUT][: 1 if quick else None] if steps else []:
            report.measure(functools.partial(compare, steps[0], part), kind="step", name=part)


def compare(whole: Worker, part: str) -> dict[str, Any]:
    """Times a step without a part in turn with the whole one."""
    with Worker(prepare, part) as lacking:
        times = interleaved({"whole": whole.run, "without": lacking.run}, seconds=50, most=5)
    share = 1 - statistics.median(times["without"]) / statistics.median(times["whole"])
    return {**lacking.row, "share": round(share, 3), **{name: spread(found) for name, found in times.items()}}


def prepare(lacks: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a run of a step, and what its compiler says of it."""
    with WITHOUT[lacks]() if lacks in WITHOUT else contextlib.nullcontext():
        program = bench.training(get_config(MODEL, drop_path_rate=0.0), BATCH, SIDE)
    return program.run, {
        "compile_seconds": round(program.compile_seconds, 2),
        "memory_bytes": program.memory_bytes,
    }
