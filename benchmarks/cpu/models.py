"""Whole models beside their peers, float32, 224 px: latency, throughput and training steps, all of a case in turn.

A case first prepares its entrants, each in a process of its own ("first call" is what compiles), then runs them A B C A B C;
`ratio` is how many times faster natjax is by the medians, `ratio_per_gflop` by images per second and multiply-accumulate.
Training steps are forward, backward and AdamW, without dropped paths on any side.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cpu import peers
from benchmarks.harness import OUT_OF_TIME, Options, Report, Worker
from benchmarks.timing import interleaved, spread
from natjax import benchmarking, get_config
from natjax.flops import count_macs

SIDE = 224
EAGER, COMPILED = ("hf natten", "sdpa"), ("sdpa compiled", "swin compiled", "convnext compiled")
TINY = (*EAGER, "swin", "convnext")
# Preset, batch, training, seconds of running, peers; the most telling first. torch.compile takes minutes and comes last.
CASES = [
    ("nat_tiny", 8, False, 60, TINY),
    ("nat_tiny", 1, False, 25, TINY),
    ("nat_tiny", 8, True, 120, TINY),
    ("nat_mini", 1, False, 12, EAGER),
    ("nat_mini", 8, False, 30, EAGER),
    ("nat_mini", 8, True, 60, EAGER),
    ("nat_base", 1, False, 12, EAGER),
    ("nat_base", 8, False, 40, EAGER),
    ("nat_tiny", 8, False, 30, COMPILED),
    ("nat_tiny", 1, False, 15, COMPILED),
    ("nat_tiny", 8, True, 60, COMPILED),
]
DENSE_SIDE = 448  # of segmenters and detectors, as masked attention needs maps that are multiples of 7
# Segmenters: their peer is transformers' UPerNet over masked attention.
SEGMENTERS = [
    ("upernet_nat_tiny", 1, False, 60, ("sdpa", "sdpa compiled")),
    ("upernet_nat_tiny", 2, True, 60, ("sdpa",)),
    ("upernet_nat_tiny", 2, True, 60, ("sdpa compiled",)),
]
# Detectors: their peer is torchvision's Mask R-CNN over masked attention.
DETECTORS = [
    ("mask_rcnn_nat_mini", 1, False, 60, ("torchvision",)),
    ("mask_rcnn_nat_mini", 1, True, 120, ("torchvision",)),
]
QUICK = [("nat_tiny", 1, False, 6, TINY), ("nat_mini", 8, False, 6, EAGER)]


def measure(report: Report, options: Options) -> None:
    """Adds rows per entrant and case."""
    for i, (preset, batch, train, seconds, entrants) in enumerate(QUICK if options.small else CASES):
        measure_case(report, i, ["natjax", *entrants], preset, batch, train, seconds)


def measure_segmenters(report: Report, options: Options) -> None:
    """Adds rows per entrant and case of semantic segmentation."""
    measure_dense(report, SEGMENTERS[: 1 if options.small else None])


def measure_detectors(report: Report, options: Options) -> None:
    """Adds rows per entrant and case of detection."""
    measure_dense(report, DETECTORS[: 1 if options.small else None])


def measure_dense(report: Report, cases: Sequence[tuple[str, int, bool, float, tuple[str, ...]]]) -> None:
    """Adds rows per entrant and case of models whose images are larger."""
    for i, (preset, batch, train, seconds, entrants) in enumerate(cases):
        measure_case(report, i, ["natjax", *entrants], preset, batch, train, seconds, DENSE_SIDE)


def measure_case(
    report: Report,
    case: int,
    entrants: list[str],
    preset: str,
    batch: int,
    train: bool,
    seconds: float,
    side: int = SIDE,
) -> None:
    """Prepares the entrants, then times those that could be."""
    labels = {"case": case, "model": preset, "batch": batch, "what": "training step" if train else "inference"}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def prepared(entrant: str) -> dict[str, Any]:
            if lacking := peers.missing(entrant):
                return {"skipped": lacking}
            worker = workers[entrant] = stack.enter_context(Worker(prepare, entrant, preset, batch, train, side))
            return worker.row

        for entrant in entrants:
            report.measure(functools.partial(prepared, entrant), kind="first call", entrant=entrant, **labels)
        why, times = {"skipped": OUT_OF_TIME}, {}
        try:
            if not report.time_is_up():
                runs = {entrant: worker.run for entrant, worker in workers.items()}
                times = interleaved(runs, seconds=seconds, most=40)
        except RuntimeError as error:  # of one of them, without which the case is none
            why = {"error": str(error)}
    for entrant in workers:
        figures = row(entrant, preset, batch, times[entrant], times.get("natjax"), side) if times else why
        report.add(kind="time", entrant=entrant, **labels, **figures)


def prepare(
    entrant: str, preset: str, batch: int, train: bool, side: int = SIDE
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a run of an entrant, the seconds that its first one or its compiler took, and the peak memory of its process."""
    if entrant == "natjax":
        config = get_config(preset, drop_path_rate=0.0)
        program = (benchmarking.training if train else benchmarking.inference)(config, batch, side)
        run, seconds, figures = program.run, program.compile_seconds, {"memory_bytes": program.memory_bytes}
        run()
    else:
        (run, seconds), figures = peers.prepare(entrant, preset, batch, side, train), {}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)  # of a run and of what prepared it
    return run, {"seconds": round(seconds, 2), **figures, "peak_megabytes": peak}


def row(
    entrant: str, preset: str, batch: int, times: list[float], natjax: list[float] | None, side: int = SIDE
) -> dict[str, Any]:
    """Returns an entrant's figures."""
    middle, ours = statistics.median(times), count_macs(get_config(preset), (side, side)) / 1e9
    gflops = peers.GFLOPS.get(entrant.split()[0]) or ours
    ratio = natjax and middle / statistics.median(natjax)
    return {
        **spread(times),
        "images_per_second": round(batch / middle, 2),
        "ratio": ratio and round(ratio, 2),
        "ratio_per_gflop": ratio and round(ratio * gflops / ours, 2),
    }
