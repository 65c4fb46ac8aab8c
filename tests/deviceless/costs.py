"""Predicts what the fused kernels take on GPUs that are not here: `python tests/deviceless/costs.py` (a minute).

A static model, so that a measurement has something to be held against. Every kernel is compiled and its machine code cut into
loops (over chunks of keys, entries of the batch, tiles). Times the trips of the loops, that gives the instructions that are
issued; shapes alone give bytes and FLOPs. A level takes at least the longest of

- memory: every tensor once to or from HBM, at 90 % of the data sheet's rate (the floor of any kernel is this alone),
- cache: halos from L2, and tables where they are not kept on chip (loads that run ahead pass by L1),
- issue: instructions at four a clock of a multiprocessor,
- exponentials: 16 a clock of a multiprocessor,
- products: FLOPs at the data sheet's rate,

where all of them overlap perfectly, and at most their sum, both divided by the share of the waves that programs fill. Both are
printed, with batch 128 in bfloat16 at 224 pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys

import resources

RESULTS = resources.RESULTS.with_name("costs.json")
BATCH = 128


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Rates of a GPU: HBM and L2 bytes/s, bfloat16 FLOPs/s, multiprocessors, clock in Hz."""

    architecture: int
    hbm: float
    l2: float
    flops: float
    multiprocessors: int
    clock: float


# Data sheets, but for L2, whose rates are those of published microbenchmarks.
GPUS = {
    "H200": Gpu(90, 4.8e12, 5.5e12, 989e12, 132, 1.83e9),
    "A100": Gpu(80, 2.039e12, 4.0e12, 312e12, 108, 1.41e9),
}
HBM_SHARE = 0.9


def issued(code: str, trips: list[int]) -> dict[str, float]:
    """Returns the instructions of one warp, given how often the bodies of loops run by depth, outermost first."""
    total = {"instructions": 0.0, "exponentials": 0.0}
    for depth, kinds in resources.loops(code):
        for kind in total:
            total[kind] += kinds[kind] * trips[min(depth, len(trips)) - 1]
    return total


def predict(gpu: Gpu, shape_name: str) -> list[dict]:
    """Returns the prediction for every kernel of one training step at one level."""
    shape = resources.SHAPES[shape_name]
    case, _ = shape
    heads, channels = case.heads, case.channels
    rows = []
    for name, launch, flags in resources.launches(shape, gpu.architecture, gpu.multiprocessors):
        _, code = resources.compile_kernel(name, launch, flags, shape, gpu.architecture)
        plan, config = launch.layout, launch.config
        runs, share = launch.shares(BATCH, heads)
        chunks = launch.schedule.steps
        parts = chunks if flags.get("D_TABLE") and not config.resident else 1
        programs = runs.shape[1] * heads * parts * math.ceil(BATCH / share)
        items = plan.tiles.shape[1] * heads * BATCH * parts  # tiles of an image that are worked on
        chunk_trips = items * chunks // parts
        trips = [programs * plan.tiles.shape[1] / runs.shape[1], items, chunk_trips]
        warps = issued(code, trips)
        scores = chunk_trips * config.slots * config.chunk
        tokens = BATCH * plan.tokens * heads
        token_bytes, products = {
            "fwd": (4 * 2 * channels + 8, 2),
            "bwd_dq": ((3 + 2 + 1) * 2 * channels + 8 + 16, 3),
            "bwd_dkv": (6 * 2 * channels + 16, 4),
        }[name]
        near = launch.schedule.sizes.block * math.prod(
            plan.blocks
        )  # the rest of a chunk is the same token again and again
        halo_bytes = (near // parts + config.slots) * items * 2 * 2 * channels
        halo_bytes += 16 * near * items * (name == "bwd_dkv")  # statistics
        table_bytes = 0 if config.resident else scores * 4
        at_a_time, longest = config.programs * gpu.multiprocessors, max(b - a for a, b in runs)
        full = items / (math.ceil(programs / at_a_time) * at_a_time * longest * share)
        seconds = {
            "memory": tokens * token_bytes / (gpu.hbm * HBM_SHARE),
            "cache": (halo_bytes + table_bytes) / gpu.l2,
            "issue": warps["instructions"] * config.num_warps / (4 * gpu.multiprocessors * gpu.clock),
            "exponentials": warps["exponentials"] * config.num_warps * 32 / (16 * gpu.multiprocessors * gpu.clock),
            "products": products * 2 * scores * max(16, channels) / gpu.flops,
        }
        rows.append(
            {
                "level": shape_name,
                "kernel": name,
                "microseconds": {part: 1e6 * x for part, x in seconds.items()},
                "full_waves": full,
                "at_least": 1e6 * max(seconds.values()) / full,
                "at_most": 1e6 * sum(seconds.values()) / full,
                "instructions_per_score": 32 * warps["instructions"] * config.num_warps / scores,
                "useful_scores": tokens * math.prod(launch.window.kernel_size) / scores,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", choices=GPUS, action="append", help="default: all")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    results = {}
    for name in args.gpu or GPUS:
        results[name] = [row for level in resources.LEVELS for row in predict(GPUS[name], level)]
        print(
            f"\n| {name}, batch {BATCH} | kernel | floor | cache | issue | exp | products | waves full | predicted µs | x floor |"
        )
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        for row in results[name]:
            cells = [*(f"{x:.0f}" for x in row["microseconds"].values()), f"{row['full_waves']:.2f}"]
            low, high = row["at_least"], row["at_most"]
            times = low / row["microseconds"]["memory"]
            print(f"| {row['level']} | {row['kernel']} | {' | '.join(cells)} | {low:.0f} to {high:.0f} | {times:.1f} |")
    sys.path.insert(0, str(resources.ROOT))
    from benchmarks.provenance import provenance

    RESULTS.write_text(json.dumps({"provenance": provenance(), "batch": BATCH, "gpus": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
