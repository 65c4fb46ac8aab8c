"""Executes the band kernel as it was compiled for GPUs that are not here: `python tests/deviceless/band_on_cpu.py` (a minute).

Prints how far it is from the kernel's source run in float64 on the same inputs and table: the output in units of its largest
entry, the log-sum-exp in base 2. And how many barriers there are without which warps would meet in shared memory.
"""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import ptx
from resources import ARCHITECTURES

from natjax_kernels.fused.band import configurations
from natjax_kernels.fused.configurations import Case
from natjax_kernels.logits import Logits
from natjax_kernels.triton import band
from natjax_kernels.triton.band_launch import BandLaunch, _compile
from natjax_kernels.triton.interpret_gluon import run
from natjax_kernels.window import Window

# Sides of the map, kernel size, channels, dtype, whether there is a bias, stages, and whether offsets are of 64 bits.
CASES = {
    "level 1": ((16, 24), (7, 7), 32, "bfloat16", True, 2, False),
    "one stage": ((8, 16), (7, 7), 32, "float16", True, 1, False),
    "16 channels, no bias": ((24, 16), (7, 6), 16, "float16", False, 2, False),
    "64 channels, wide": ((16, 16), (5, 3), 64, "bfloat16", True, 1, True),
}
BATCH, HEADS = 3, 2


def inputs(case):
    """Returns a launch, its tokens [3, B, L, N, D] and its table."""
    spatial, kernel_size, channels, dtype, bias, num_stages, _ = case
    window = Window(kernel_size, (1, 1), (1, 1), (False, False))
    described = Case("fwd", spatial, window, channels, dtype, bias, 90)
    config = next(c for c in configurations(described) if c.num_stages == num_stages)
    launch = BandLaunch(spatial, window, Logits(channels**-0.5), config, 132)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, BATCH, math.prod(spatial), HEADS, channels))
    tokens = tokens.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rpb = jnp.asarray(rng.normal(size=(HEADS, *(2 * k - 1 for k in kernel_size))), dtype) if bias else None
    return launch, tokens, np.array(launch.table(rpb))


def execute(launch, tokens, table, text, shared):
    """Returns output, maxima and logs of a PTX text."""
    out, (batch, count, heads, _) = np.full_like(tokens[0], np.nan), tokens.shape[1:]
    maxima, logs = (np.full((batch, heads, count), np.nan, np.float32) for _ in range(2))
    plan = launch.layout
    arguments = [*tokens, table, plan.tiles.copy(), plan.box_rows.copy(), batch, batch, out, maxima, logs]
    ptx.run(text, (len(plan.tiles), heads, 1), arguments, shared)
    return out, maxima, logs


def check(case, architecture):
    """Returns the errors of one case on one architecture and, for Hopper, how many of its barriers are needed."""
    launch, tokens, table = inputs(case)
    static = launch.static(HEADS, table.shape[1], tokens.shape[-1]) | {"WIDE": case[-1]}
    _, shared, text = _compile(tuple(static.items()), case[3], architecture)
    got = execute(launch, tokens, table, text, shared)
    shapes = [jax.ShapeDtypeStruct(x.shape, np.float64) for x in got]
    exact = [*tokens.astype(np.float64), table.astype(np.float64), launch.layout.tiles, launch.layout.box_rows]
    right = run(band.band, (len(launch.layout.tiles), HEADS, 1), (BATCH, BATCH), static, shapes, *exact)
    errors = {
        "out": float(np.abs(got[0].astype(float) - right[0]).max() / np.abs(right[0]).max()),
        "lse": float(np.abs(got[1].astype(float) + got[2] - right[1] - right[2]).max()),
    }
    if architecture != 90:
        return errors
    return errors | {"barriers": sum(races(launch, tokens, table, less, shared) for less in without_one_barrier(text))}


def without_one_barrier(text):
    """Returns the text without its first barrier of a block, without its second, ..."""
    pieces = text.split("bar.sync")
    for i in range(1, len(pieces)):
        rest = pieces[i].partition(";")[2]
        yield "bar.sync".join(pieces[:i]) + rest + "".join(f"bar.sync{piece}" for piece in pieces[i + 1 :])


def races(launch, tokens, table, text, shared):
    """Returns whether warps meet in shared memory."""
    try:
        execute(launch, tokens, table, text, shared)
    except ptx.Race:
        return True
    return False


def main():
    results = {
        f"{name}, sm_{architecture}": check(case, architecture)
        for (name, case), architecture in itertools.product(CASES.items(), ARCHITECTURES)
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
