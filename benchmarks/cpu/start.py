"""From the start of a process to its first logits, and peak memory: each in a fresh process, as a script of a user would be.

NAT-Tiny with random weights, batch 1: without a persistent compilation cache, and with one that a run before has filled. Peak
memory (resident set, read from Linux) is that of the process after some runs of a model, Python and libraries included.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cpu import peers
from benchmarks.harness import Options, Report, Worker, memory

PRESET, SIDE = "nat_tiny", 224
START = ("natjax", "natjax cached", "hf natten", "sdpa", "swin", "convnext")
# Preset, batch, whether training.
MEMORY = [("nat_tiny", 1, False), ("nat_tiny", 8, False), ("nat_tiny", 8, True), ("nat_base", 8, False)]


def measure(report: Report, options: Options) -> None:
    """Adds rows for starting, rounds in turn, and for memory."""
    with tempfile.TemporaryDirectory() as cache:
        start("natjax cached", PRESET, 1, False, cache)  # fills the cache, and the system's of files
        for repeat in range(1 if options.small else 2):
            for entrant in START[:2] if options.small else START:
                work = functools.partial(start, entrant, PRESET, 1, False, cache)
                report.measure(work, kind="start", entrant=entrant, repeat=repeat)
        for preset, batch, train in MEMORY[:1] if options.small else MEMORY:
            labels = {"model": preset, "batch": batch, "what": "training step" if train else "inference"}
            for entrant in ("natjax", "hf natten") if options.small else ("natjax", "hf natten", "sdpa"):
                work = functools.partial(start, entrant, preset, batch, train, cache)
                report.measure(work, kind="memory", entrant=entrant, **labels)


def start(entrant: str, *arguments: Any) -> dict[str, Any]:
    """Starts a process; returns the seconds to its first result and its peak memory."""
    if lacking := peers.missing(entrant):
        return {"skipped": lacking}
    started = time.time()
    with Worker(prepare, entrant, *arguments) as worker:
        first, peak = worker.row["first"], worker.row["peak"]
    return {"seconds": round(first - started, 2), "peak_megabytes": round(peak / 1e6)}


def prepare(entrant: str, preset: str, batch: int, train: bool, cache: str) -> tuple[Callable, dict[str, Any]]:
    """Returns a run after some runs; when the first ended, in seconds since the epoch; and the peak memory."""
    if not entrant.startswith("natjax"):
        run, _ = peers.prepare(entrant, preset, batch, SIDE, train)  # runs it once
    else:
        import jax

        if entrant == "natjax cached":
            jax.config.update("jax_compilation_cache_dir", cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        run = natjax_run(preset, batch, train)
        run()
    first = time.time()
    for _ in range(2):
        run()
    return run, {"first": first, "peak": memory("VmHWM")}


def natjax_run(preset: str, batch: int, train: bool) -> Callable[[], Any]:
    """Returns a run of a model made as a user makes it, or of a training step."""
    import natjax

    if train:
        from natjax import benchmarking

        return benchmarking.training(natjax.get_config(preset, drop_path_rate=0.0), batch, SIDE).run
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graphdef, params = nnx.split(natjax.create_model(preset))
    options = natjax.compiler_options()
    forward = jax.jit(lambda params, pixels: nnx.merge(graphdef, params)(pixels).logits, compiler_options=options)
    pixels = jnp.zeros((batch, SIDE, SIDE, 3))
    return lambda: jax.block_until_ready(forward(params, pixels))
