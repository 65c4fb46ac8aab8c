"""Predicts what the fused kernels take on GPUs that are not here: `python tests/deviceless/costs.py` (a minute).

A static model, so that a measurement has something to be held against. Every kernel is compiled and its machine code cut into
loops (over chunks of keys, entries of the batch, tiles). Times the trips of the loops, that gives the instructions that are
issued; shapes alone give bytes and FLOPs. A level takes at least the longest of

- memory: every tensor once to or from HBM, at 90 % of the data sheet's rate (the floor of any kernel is this alone),
- cache: halos from L2 (tables are the same in every entry of the batch and are taken to stay in L1),
- issue: instructions at four a clock of a multiprocessor,
- exponentials: 16 a clock of a multiprocessor,
- products: FLOPs at the data sheet's rate,

where all of them overlap perfectly, and at most their sum. Both are printed, with batch 128 in bfloat16 at 224 pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
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


def loops(code: str) -> list[tuple[int, dict[str, int]]]:
    """Cuts machine code into loops; returns depth and instructions by kind (outside of inner loops) of each, outermost first."""
    lines = [(int(a, 16), text) for a, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.MULTILINE)]
    spans = [
        (int(target[1], 16), address)
        for address, text in lines
        if (target := re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)) and int(target[1], 16) < address
    ]
    found = []
    for low, high in sorted(spans, key=lambda span: span[0] - span[1]):
        inside = [(a, b) for a, b in spans if low <= a and b <= high and (a, b) != (low, high)]
        body = [t for a, t in lines if low <= a <= high and not any(x <= a <= y for x, y in inside)]
        depth = sum(a <= low and high <= b for a, b in spans)
        kinds = {"instructions": len(body), "exponentials": sum("MUFU.EX2" in t for t in body)}
        found.append((depth, kinds))
    return found


def issued(code: str, trips: list[int]) -> dict[str, float]:
    """Returns the instructions of one warp, given how often the bodies of loops run by depth, outermost first."""
    total = {"instructions": 0.0, "exponentials": 0.0}
    for depth, kinds in loops(code):
        for kind, count in kinds.items():
            total[kind] += count * trips[min(depth, len(trips)) - 1]
    return total


def predict(gpu: Gpu, shape_name: str) -> list[dict]:
    """Returns the prediction for every kernel of one training step at one level."""
    shape = resources.SHAPES[shape_name]
    case, _ = shape
    heads, channels = case.heads, case.channels
    rows = []
    for name, launch, flags in resources.launches(shape, gpu.architecture):
        _, code = resources.compile_kernel(name, launch, flags, shape, gpu.architecture)
        plan, config = launch.layout, launch.config
        runs, share = launch.shares(BATCH, heads)
        chunks = launch.schedule.chunks * math.prod(plan.blocks)
        parts = chunks if flags.get("D_TABLE") and not config.resident else 1
        programs = len(runs) * heads * parts * math.ceil(BATCH / share)
        items = len(plan.tiles) * heads * BATCH * parts  # tiles of an image that are worked on
        chunk_trips = items * chunks // parts
        trips = [programs * len(plan.tiles) / len(runs), items, chunk_trips]
        warps = issued(code, trips)
        scores = chunk_trips * config.slots * config.chunk
        tokens = BATCH * plan.tokens * heads
        token_bytes, products = {
            "fwd": (4 * 2 * channels + 8, 2),
            "bwd_dq": ((3 + 2 + 1) * 2 * channels + 12, 3),
            "bwd_dkv": (6 * 2 * channels + 12, 4),
        }[name]
        halo_bytes = chunk_trips * config.chunk * 2 * 2 * channels + items * config.slots * 2 * 2 * channels
        seconds = {
            "memory": tokens * token_bytes / (gpu.hbm * HBM_SHARE),
            "cache": halo_bytes / gpu.l2,
            "issue": warps["instructions"] * config.num_warps / (4 * gpu.multiprocessors * gpu.clock),
            "exponentials": warps["exponentials"] * config.num_warps * 32 / (16 * gpu.multiprocessors * gpu.clock),
            "products": products * 2 * scores * max(16, channels) / gpu.flops,
        }
        rows.append(
            {
                "level": shape_name,
                "kernel": name,
                "microseconds": {part: 1e6 * x for part, x in seconds.items()},
                "at_least": 1e6 * max(seconds.values()),
                "at_most": 1e6 * sum(seconds.values()),
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
        print(f"\n| {name}, batch {BATCH} | kernel | floor | cache | issue | exp | products | predicted µs | x floor |")
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
        for row in results[name]:
            cells = [f"{x:.0f}" for x in row["microseconds"].values()]
            low, high = row["at_least"], row["at_most"]
            times = low / row["microseconds"]["memory"]
            print(f"| {row['level']} | {row['kernel']} | {' | '.join(cells)} | {low:.0f} to {high:.0f} | {times:.1f} |")
    sys.path.insert(0, str(resources.ROOT))
    from benchmarks.provenance import provenance

    RESULTS.write_text(json.dumps({"provenance": provenance(), "batch": BATCH, "gpus": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
