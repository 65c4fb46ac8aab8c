"""From the start of a process to its first logits, and peak memory: each in fresh processes, as a script of a user would be.

NAT-Tiny with random weights, batch 1: without a persistent compilation cache, and with one that a run before has filled. Peak
memory (resident set, read from Linux) is that of the process after some runs of a model, Python and libraries included.

`python -m benchmarks.cpu.start ENTRANT PRESET BATCH TRAIN` is such a process; it prints the time of its first result (seconds
since the epoch) and its peak memory in bytes.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import ROOT
from benchmarks.cpu import peers
from benchmarks.harness import Report

PRESET, SIDE = "nat_tiny", 224
START = ("natjax", "natjax cached", "hf natten", "sdpa", "swin", "convnext")
# Preset, batch, whether training.
MEMORY = [("nat_tiny", 1, False), ("nat_tiny", 8, False), ("nat_tiny", 8, True), ("nat_base", 8, False)]


def measure(report: Report, quick: bool) -> None:
    """Adds rows for starting, rounds in turn, and for memory."""
    with tempfile.TemporaryDirectory() as cache:
        child("natjax cached", PRESET, 1, False, cache)  # fills the cache, and the system's of files
        for repeat in range(1 if quick else 2):
            for entrant in START[:2] if quick else START:
                work = functools.partial(child, entrant, PRESET, 1, False, cache)
                report.measure(work, kind="start", entrant=entrant, repeat=repeat)
        for preset, batch, train in MEMORY[:1] if quick else MEMORY:
            labels = {"model": preset, "batch": batch, "what": "training step" if train else "inference"}
            for entrant in ("natjax", "hf natten") if quick else ("natjax", "hf natten", "sdpa"):
                work = functools.partial(child, entrant, preset, batch, train, cache)
                report.measure(work, kind="memory", entrant=entrant, **labels)


def child(entrant: str, preset: str, batch: int, train: bool, cache: str) -> dict[str, Any]:
    """Runs a process; returns the seconds to its first result and its peak memory."""
    if entrant.split()[0] != "natjax" and (lacking := peers.missing(entrant)):
        return {"skipped": lacking}
    environment = dict(os.environ)
    if entrant == "natjax cached":
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks.cpu.start", entrant, preset, str(batch), str(int(train))]
    started = time.time()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(found["first"] - started, 2), "peak_megabytes": round(found["peak"] / 1e6)}


def main(entrant: str, preset: str, batch: str, train: str) -> None:
    """Is the process that is measured."""
    if entrant.split()[0] == "natjax":
        run = natjax_run(preset, int(batch), train == "1")
    else:
        run, _ = peers.prepare(entrant, preset, int(batch), SIDE, train == "1")
    run()
    first = time.time()
    for _ in range(2):
        run()
    print(json.dumps({"first": first, "peak": peak()}))


def natjax_run(preset: str, batch: int, train: bool) -> Any:
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


def peak() -> int:
    """Returns the most bytes of memory that this process had at a time; unlike `getrusage`'s, not its parent's."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
