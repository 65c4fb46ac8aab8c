"""`natjax bench op`: how fast the op is on a problem of any shape, beside what this device could do at best and dense attention.

The floor is the time for the bytes of all tokens at the rate of copies, or for the products with neighbours at the rate of large
matrix products, whichever is longer; both rates are measured in the same run. `--dry-run` lists how the problem would be cut.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import (
    add_dtype_argument,
    capability,
    flag_per_axis,
    int_per_axis,
    positive_int,
    positive_seconds,
    token_shape,
)
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress, print_json, print_table
from natjax.text import counted, did_you_mean

if TYPE_CHECKING:
    from natjax.benchmarking import Program
    from natjax_kernels.problem import Problem
    from natjax_kernels.triton.support import GPU

HELP = "measure how fast neighborhood attention is on a problem of any shape"
_DENSE = "dense attention"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "--shape",
        type=token_shape,
        required=True,
        metavar="B,[[Z,]Y,]X,N,D",
        help="of the queries: batch, 1 to 3 sides of the map, heads, channels of a head",
    )
    parser.add_argument(
        "--key-heads",
        type=positive_int,
        metavar="N",
        help="heads of keys and values, where heads of queries share them",
    )
    per_axis = "; one number, or one per axis as in 3,7"
    parser.add_argument(
        "--kernel", type=int_per_axis, default=7, metavar="K", help=f"kernel size (default: 7){per_axis}"
    )
    parser.add_argument("--dilation", type=int_per_axis, default=1, metavar="D", help="default: 1")
    parser.add_argument("--stride", type=int_per_axis, default=1, metavar="S", help="default: 1")
    flags: dict[str, Any] = {"type": flag_per_axis, "nargs": "?", "const": True, "default": False, "metavar": "0|1,..."}
    parser.add_argument("--causal", **flags, help="along all axes, or as in 1,0 along the first of two")
    parser.add_argument("--periodic", **flags, help="likewise: axes that are rings")
    bias = "with a relative positional bias (default: with one)"
    parser.add_argument("--bias", action=argparse.BooleanOptionalAction, default=True, help=bias)
    parser.add_argument("--backward", action="store_true", help="measure the gradients of all inputs, too")
    add_dtype_argument(parser)
    parser.add_argument(
        "--implementation",
        nargs="+",
        default=[],
        metavar="NAME",
        help="triton, xla, xla_autodiff or reference, or several (default: the one that the op takes here)",
    )
    parser.add_argument(
        "--seconds",
        type=positive_seconds,
        default=10.0,
        metavar="S",
        help="of running, without compiling (default: 10)",
    )
    parser.add_argument("--dry-run", action="store_true", help="compute nothing: list tiles and configurations")
    parser.add_argument(
        "--capability",
        type=capability,
        metavar="X.Y",
        help="compute capability of the GPU that --dry-run is for (default: this device's, or 9.0)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Measures, or lists, and prints."""
    from natjax_kernels.api import IMPLEMENTATIONS

    for name in args.implementation:
        if name not in IMPLEMENTATIONS:
            known = ", ".join(IMPLEMENTATIONS)
            raise ValueError(f"--implementation must be of {known}; got {name!r}.{did_you_mean(name, IMPLEMENTATIONS)}")
    if args.capability and not args.dry_run:
        raise ValueError("--capability is for --dry-run: what is measured runs on this device.")
    problem = _problem(args)
    (_dry_run if args.dry_run else _measure)(args, problem)
    return 0


def _problem(args: argparse.Namespace) -> Problem:
    """Returns the problem without its data."""
    import jax

    from natjax_kernels.problem import make_problem

    *others, heads, channels = args.shape
    key_heads = args.key_heads or heads
    tokens = [jax.ShapeDtypeStruct((*others, n, channels), args.dtype) for n in (heads, key_heads, key_heads)]
    window = {
        "kernel_size": args.kernel,
        "dilation": args.dilation,
        "stride": args.stride,
        "is_causal": args.causal,
        "periodic": args.periodic,
    }
    problem = make_problem(*tokens, **window)
    if not args.bias:
        return problem
    rpb = jax.ShapeDtypeStruct((problem.heads, *(2 * k - 1 for k in problem.window.kernel_size)), args.dtype)
    return make_problem(*tokens, rpb=rpb, **window)


def _measure(args: argparse.Namespace, problem: Problem) -> None:
    import jax

    from natjax.benchmarking import costs, in_turn, op

    device, backward, reasons = jax.devices()[0], args.backward, _reasons(args.implementation, problem)
    too_large = f"The problem does not fit into the memory of {device.device_kind}; give a smaller --shape"
    with explain_out_of_memory(f"{too_large}{', or leave --backward out' if backward else ''}."):
        copy, copied = op.copying()
        product, multiplied = op.multiplying(args.dtype)
        measured = {name: op.attention(problem, name, backward=backward) for name in reasons}
        no_dense = op.why_not_dense(problem, backward=backward)
        if not no_dense:
            measured[_DENSE] = op.dense(problem, backward=backward)
        with Progress(0, "turns") as progress:
            times = in_turn({"copy": copy, "product": product, **measured}, args.seconds, progress.update)
    limits = [
        _limit(costs.least_bytes(problem, backward=backward), copied / statistics.median(times["copy"])),
        _limit(costs.least_flops(problem, backward=backward), multiplied / statistics.median(times["product"])),
    ]
    floor = max(limit["milliseconds"] for limit in limits)
    rows = {name: _row(program, times[name], floor) for name, program in measured.items()}
    for name, reason in reasons.items():
        rows[name] |= {"useful_share": costs.useful_share(problem, name), "reason": reason}
    if args.json:
        floors = {"floor_milliseconds": floor, **dict(zip(("bytes", "flops"), limits, strict=True))}
        facts = {**_facts(problem, backward), "device": device.device_kind}
        print_json({**facts, **floors, "measured": rows, "no_dense": no_dense})
        return
    _print_problem(problem, backward, f"on {device.device_kind} ({device.platform})")
    head = ("", "compile s", "p50 ms", "p95 ms", "memory MB", "times the floor", "useful scores")
    cells = [[name, *(_cell(row.get(key)) for key in (*_ROW, "useful_share"))] for name, row in rows.items()]
    print_table(head, cells, indent="  ")
    print(f"\nThe floor, {_cell(floor)} ms, is the longer of both:")
    units = ("bytes of all tokens", 1e6, "MB", "GB/s"), ("products with neighbours", 1e9, "GFLOP", "GFLOP/s")
    cells = [
        (what, f"{_cell(least / scale)} {unit}", f"{_cell(rate / 1e9)} {per_second}", f"{_cell(takes)} ms")
        for (what, scale, unit, per_second), (least, rate, takes) in zip(units, map(dict.values, limits), strict=True)
    ]
    print_table(("", "least", "rate here", "takes"), cells, indent="  ")
    print()
    for name, reason in reasons.items():
        print(f"{name}: {reason}")
    if no_dense:
        print(f"{_DENSE} is not measured: {no_dense}")


def _reasons(names: Sequence[str], problem: Problem) -> dict[str, str]:
    """Returns the implementations to measure, and why they are the ones."""
    from natjax.benchmarking.costs import options
    from natjax_kernels import explain

    call = functools.partial(explain, problem.query, problem.key, problem.value, rpb=problem.rpb, **options(problem))
    said = [call(implementation=name) for name in names or [None]]
    return {name: reason for name, _, reason in (text.partition(": ") for text in said)}


def _limit(least: int, rate: float) -> dict[str, float]:
    """Returns the least amount, what is moved or computed of it a second, and the milliseconds that takes."""
    return {"least": least, "per_second": rate, "milliseconds": least / rate * 1e3}


_ROW = ("compile_seconds", "p50_milliseconds", "p95_milliseconds", "memory_megabytes", "times_the_floor")


def _row(program: Program, times: list[float], floor: float) -> dict[str, Any]:
    """Returns the figures of a program, beside a floor in milliseconds."""
    middle, nbytes = statistics.median(times), program.memory_bytes
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
    figures = (
        program.compile_seconds,
        middle * 1e3,
        p95 * 1e3,
        None if nbytes is None else nbytes / 1e6,
        middle * 1e3 / floor,
    )
    return dict(zip(_ROW, figures, strict=True))


def _sides(sides: Sequence[int] | None) -> str:
    return " x ".join(map(str, sides)) if sides else "-"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"


_LISTED: dict[str, tuple[str, Callable[[Any], object]]] = {  # what is printed of a configuration, and how
    "design": ("design", str),
    "tile": ("tile", _sides),
    "halo": ("halo", _sides),
    "block": ("block of a halo", _sides),
    "chunk": ("chunk", str),
    "resident": ("table", lambda resident: "on chip" if resident else "streamed"),
    "num_warps": ("warps", str),
    "num_stages": ("stages", str),
    "tiles": ("tiles", "{:,}".format),
    "steps": ("steps on this device", str),
    "launched": ("programs", "{:,}".format),
    "programs": ("at a time on a multiprocessor", str),
    "least_shared_bytes": ("shared memory, at least, kB", lambda nbytes: f"{nbytes / 1e3:.1f}"),
    "useful_share": ("useful scores", _cell),
}


def _dry_run(args: argparse.Namespace, problem: Problem) -> None:
    from natjax.benchmarking import costs

    found: dict[str, Any] = {}
    gpu = costs.gpu(args.capability)
    for name in args.implementation or ("triton", "xla"):
        if name == "triton":
            try:
                found[name] = costs.fused_kernels(problem, gpu, backward=args.backward)
            except NotImplementedError as error:
                found[name] = str(error)
        elif name == "reference":
            found[name] = "reference: dense attention under a mask, nothing to configure"
        else:
            found[name] = costs.xla_tiles(problem)
    if args.json:
        print_json({**_facts(problem, args.backward), "capability": gpu.capability / 10, "configurations": found})
        return
    _print_problem(problem, args.backward, "nothing computed")
    for name, listed in found.items():
        _print_configurations(name, listed, gpu)


def _print_configurations(name: str, listed: Any, gpu: GPU) -> None:
    """Prints the configurations of an implementation, a column each, or what is said in their place."""
    if name == "triton":
        print(f"triton, compute capability {gpu.capability / 10}, {gpu.multiprocessors} multiprocessors:")
    if isinstance(listed, str):
        print(f"{listed}\n")
        return
    kernels = listed if isinstance(listed, list) else [{"kernel": name, **listed}]
    shown = [(key, label, show) for key, (label, show) in _LISTED.items() if key in kernels[0]]
    rows = [(label, *(show(kernel[key]) for kernel in kernels)) for key, label, show in shown]
    print_table(("", *(kernel["kernel"] for kernel in kernels)), rows, indent="  ")
    print()


def _facts(problem: Problem, backward: bool) -> dict[str, Any]:
    from natjax.benchmarking.costs import options

    facts = {
        "shape": problem.query.shape,
        "key_heads": problem.key_heads,
        **options(problem),
        "bias": problem.rpb is not None,
    }
    return {**facts, "dtype": problem.dtype.name, "backward": backward}


def _print_problem(problem: Problem, backward: bool, where: str) -> None:
    window, passes = problem.window, "forward and backward" if backward else "forward"
    heads = f"{counted(problem.heads, 'head')} of {counted(problem.head_dim, 'channel')}"
    if problem.key_heads != problem.heads:
        heads += f" ({problem.key_heads} of keys)"
    print(
        f"{counted(problem.batch, 'map')} of {_sides(problem.spatial)} tokens, {heads}, {problem.dtype.name}, {passes}, {where}"
    )
    said = [f"kernel {_sides(window.kernel_size)}"]
    said += [
        f"{name} {_sides(x)}" for name, x in (("dilation", window.dilation), ("stride", window.stride)) if set(x) != {1}
    ]
    for name, flags in (("causal", window.is_causal), ("periodic", window.periodic)):
        if any(flags):
            said.append(f"{name} along axis {' and '.join(str(axis) for axis, flag in enumerate(flags) if flag)}")
    print(f"{', '.join(said)}, {'without' if problem.rpb is None else 'with'} bias\n")
