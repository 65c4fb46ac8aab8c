"""Where a training step of NAT-Tiny goes: the whole step, and steps that lack a part, in turn; batch 8, float32, AdamW.

What a part takes is what its absence saves: XLA works on several things at a time and fuses them, so that the times of functions
by themselves do not sum to the whole's. What stands in for a part is as cheap as can be and depends on all that the part does,
so that gradients still reach every parameter.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax.numpy as jnp
import optax

from benchmarks.cpu.floor import BATCH, MODEL, SIDE
from benchmarks.cpu.timing import interleaved, record, spread
from benchmarks.harness import Report
from natjax.cli import bench
from natjax.presets import get_config


def no_attention(query, key, value, *, rpb, **_):
    return query + key * jnp.mean(rpb) + value


def no_norm(norm, x, **_):
    return x * norm.scale[...] + norm.bias[...]


def no_gelu(x):
    return x


def no_convolution(x, kernel, *_, **__):
    return x[:, ::2, ::2] @ jnp.mean(kernel, (0, 1))


WITHOUT: dict[str, Callable[[], Any]] = {
    "attention": lambda: mock.patch("natjax.layers.neighborhood_attention", no_attention),
    "norms": lambda: mock.patch("flax.nnx.LayerNorm.__call__", no_norm),
    "GELU": lambda: mock.patch.dict("natjax.layers._ACTIVATIONS", gelu=no_gelu),
    "convolutions": lambda: mock.patch("natjax.layers.halving_convolution", no_convolution),
    "AdamW": lambda: mock.patch("optax.adamw", optax.sgd),
}


def measure(report: Report, quick: bool) -> None:
    """Adds a row for the whole step, and one per part that is left out."""
    programs: dict[str, bench.Program] = {}

    def compiled(name: str) -> dict[str, Any]:
        config = get_config(MODEL, drop_path_rate=0.0)
        if name == "whole":
            programs[name] = bench.training(config, BATCH, SIDE)
        else:
            with WITHOUT[name]():
                programs[name] = bench.training(config, BATCH, SIDE)
        return {
            "compile_seconds": round(programs[name].compile_seconds, 2),
            "memory_bytes": programs[name].memory_bytes,
        }

    for name in ("whole", "attention") if quick else ("whole", *WITHOUT):
        report.measure(functools.partial(compiled, name), kind="compile", name=name)
    if report.time_is_up() or "whole" not in programs:
        return
    times = interleaved({name: program.run for name, program in programs.items()}, seconds=10 if quick else 110, most=8)
    whole = statistics.median(times["whole"])
    for name, seconds in times.items():
        share = {} if name == "whole" else {"share": round(1 - statistics.median(seconds) / whole, 3)}
        record(report, kind="step", name=name, batch=BATCH, **spread(seconds), **share)
