"""`natjax bench`: how fast a model is on this device: compile time, latency, images and FLOP per second, memory.

FLOP are floating point operations, two per multiply-accumulate; a training step counts as three forward passes.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

from natjax.cli._arguments import add_dtype_argument, image_side, positive_int, positive_seconds
from natjax.cli._config import MODEL_HELP, read_model
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress, print_json, print_table
from natjax.input_size import input_size
from natjax.text import counted, printable

if TYPE_CHECKING:
    from natjax.benchmarking import Program

HELP = "measure how fast a model is on this device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", metavar="NAME|DIR", help=MODEL_HELP)
    parser.add_argument(
        "--image-size", type=image_side, metavar="N", help="in pixels (default: that of the model's images)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=1, metavar="N", help="images per run (default: 1)")
    add_dtype_argument(parser)
    parser.add_argument("--train", action="store_true", help="measure a training step (AdamW), too")
    parser.add_argument(
        "--seconds",
        type=positive_seconds,
        default=10.0,
        metavar="S",
        help="of running, without compiling (default: 10)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    import jax

    from natjax import benchmarking
    from natjax.flops import count_flops

    config, processor = read_model(args.model)
    if args.train and not config.num_labels:
        raise ValueError("The model has no classes to train on: its num_labels is 0; leave --train out.")
    side, batch = args.image_size or max(input_size(config, processor)), args.batch_size
    flops = batch * count_flops(config, (side, side))
    shape = f"{counted(batch, 'image')} of {side} x {side} pixels"
    too_large = (
        f"{args.model} does not fit into this device's memory with {shape}; "
        "give a smaller --batch-size or --image-size."
    )
    with explain_out_of_memory(too_large):
        measured = {
            "inference": _row(benchmarking.inference(config, batch, side, args.dtype), args.seconds, batch, flops)
        }
        if args.train:
            program = benchmarking.training(config, batch, side, args.dtype)
            measured["training step"] = _row(program, args.seconds, batch, 3 * flops)
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    facts = {"model": args.model, "image_size": side, "batch_size": batch, "dtype": args.dtype}
    if args.json:
        print_json({**facts, "device": device.device_kind, "peak_device_bytes": peak, "measured": measured})
        return 0
    print(f"{printable(args.model)}, {shape}, {args.dtype}, on {device.device_kind} ({device.platform})\n")
    head = ("", "compile s", "p50 ms", "p95 ms", "images/s", "GFLOP/s", "memory MB")
    print_table(head, [(what, *map(_cell, row.values())) for what, row in measured.items()], indent="  ")
    if peak is not None:
        print(f"\n  peak of the device's memory: {peak / 1e6:,.0f} MB")
    return 0


def _row(program: Program, seconds: float, batch: int, flops: int) -> dict[str, float | None]:
    """Times a program and returns its figures."""
    from natjax.benchmarking import measure

    with Progress(0, "runs") as progress:
        times = measure(program, seconds, progress.update)
    middle = statistics.median(times)
    return {
        "compile_seconds": round(program.compile_seconds, 2),
        "p50_milliseconds": round(middle * 1e3, 3),
        "p95_milliseconds": round(statistics.quantiles(times, n=20, method="inclusive")[-1] * 1e3, 3),
        "images_per_second": round(batch / middle, 2),
        "gflops_per_second": round(flops / middle / 1e9, 1),
        "memory_megabytes": None if program.memory_bytes is None else round(program.memory_bytes / 1e6, 1),
    }


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
