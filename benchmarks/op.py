"""Times the op and its memory: `python -m benchmarks.op` prints a table and writes benchmarks/results/op_<platform>.json.

Two questions: how long do NAT's levels take (224 px, heads of 32 channels, kernel 7, float32), and does the cost of a token
stay the same as maps grow. Median times of interleaved repeats; memory is what the compiled program needs besides its inputs
and outputs.
"""

import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks.provenance import provenance
from natjax_kernels import explain, neighborhood_attention

RESULTS = pathlib.Path(__file__).parent / "results"
REPEATS, SECONDS = 15, 3.0  # at most, of one case

# [B, Y, X, N, D] and dilation
LEVELS = [
    ((batch, side, side, heads, 32), dilation)
    for batch in (1, 8)
    for side, heads, dilations in ((56, 2, (1, 8)), (28, 4, (1, 4)), (14, 8, (1, 2)), (7, 16, (1,)))
    for dilation in dilations
]
SIDES = [((1, side, side, 2, 32), 1) for side in (56, 112, 224, 448)]


def programs(shape, dilation):
    """Returns the compiled forward and forward+backward programs, and arguments for them."""
    keys = jax.random.split(jax.random.key(0), 5)
    query, key, value, d_out = (jax.random.normal(k, shape) for k in keys[:4])
    rpb = 0.1 * jax.random.normal(keys[4], (shape[-2], 13, 13))

    def forward(query, key, value, rpb, d_out):
        return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=7, dilation=dilation)

    def both(query, key, value, rpb, d_out):
        out, pull = jax.vjp(lambda *args: forward(*args, d_out), query, key, value, rpb)
        return out, pull(d_out)

    arguments = (query, key, value, rpb, d_out)
    return {f.__name__: jax.jit(f).lower(*arguments).compile() for f in (forward, both)}, arguments


def measure(shape, dilation):
    """Returns milliseconds, nanoseconds per token (over batch, not heads) and temporary bytes per token of both programs."""
    compiled, arguments = programs(shape, dilation)
    times = {name: [] for name in compiled}
    started = time.perf_counter()
    for repeat in range(REPEATS + 1):
        for name, program in compiled.items():
            before = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - before)
        if repeat >= 3 and time.perf_counter() - started > SECONDS:
            break
    tokens = shape[0] * shape[1] * shape[2]
    row = {"shape": list(shape), "dilation": dilation, "kernel_size": 7}
    for name, program in compiled.items():
        seconds = statistics.median(times[name][1:])
        row[name] = {
            "milliseconds": round(seconds * 1e3, 3),
            "nanoseconds_per_token": round(seconds * 1e9 / tokens),
            "temporary_bytes_per_token": round(program.memory_analysis().temp_size_in_bytes / tokens),
        }
    return row


def main():
    tokens = jax.ShapeDtypeStruct((1, 56, 56, 2, 32), jnp.float32)
    implementation = explain(tokens, tokens, tokens, kernel_size=7)
    report = {"provenance": provenance(dtype="float32", implementation=implementation), "levels": [], "sides": []}
    print(f"{'[B, Y, X, N, D]':>22} {'d':>2} | {'forward ms':>10} {'ns/token':>8} {'B/token':>8} | {'both ms':>10} ...")
    for group, cases in (("levels", LEVELS), ("sides", SIDES)):
        for case in cases:
            row = measure(*case)
            report[group].append(row)
            cells = [
                f"{r['milliseconds']:10.2f} {r['nanoseconds_per_token']:8} {r['temporary_bytes_per_token']:8}"
                for r in (row["forward"], row["both"])
            ]
            print(f"{row['shape']!s:>22} {row['dilation']:2} | {' | '.join(cells)}", flush=True)
    path = RESULTS / f"op_{jax.default_backend()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
