"""Each fused kernel by itself at the levels of NAT-Tiny and DiNAT-Tiny, as it is configured and otherwise, beside its prediction.

Predictions are those of `tests/deviceless/costs.py`, for the configuration that the estimate chooses: a tuned one has none.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.calls import groups, nbytes
from benchmarks.gpu.alone import TENSORS, Alone, tuned
from benchmarks.gpu.op import copy_rate
from benchmarks.harness import RESULTS, Options, Report, read
from benchmarks.timing import side_by_side, spread
from natjax_kernels.cases import Case
from natjax_kernels.fused import band, configurations
from natjax_kernels.fused.configurations import Config, halo, power_of_two
from natjax_kernels.triton.choice import choose, estimate, programs
from natjax_kernels.triton.launch import capability, device_kind

DTYPE = "bfloat16"
CHOSEN, LESS = "chosen", "chosen, bias's gradient not summed"  # over programs; with the table on chip it is computed
PREDICTED = {80: "A100", 90: "H200"}  # by capability; an H100 is an H200 with less bandwidth


def alternatives(case: configurations.Case, chosen: Config) -> dict[str, Config]:
    """Returns what is to be measured beside the chosen configuration, by name.

    Each has as many programs at a time as a multiprocessor holds of it. Other stages alone keep the number that is chosen, which
    may be a measured one.
    """
    change, found = functools.partial(dataclasses.replace, chosen), {}
    if case.kernel == "fwd" and case.window.dilation == (1, 1):
        keys = power_of_two(math.prod(halo(case, (4, 4))))
        found |= {f"4 x 4 resident, {n} warps": Config((4, 4), None, keys, True, n) for n in (1, 2)}
        found["8 x 8"] = Config((8, 8), None, 64, False, 4)
    if case.kernel == "bwd_dkv":
        found["chunks of 64"] = change(chunk=64)
    if case.kernel != "bwd_dq" and chosen.resident:
        found["table streamed"] = change(resident=False)
    found = {name: dataclasses.replace(config, programs=programs(case, config)) for name, config in found.items()}
    stages = {f"{n} stages": change(num_stages=n) for n in (1, 3) if chosen.design == "tiles"}
    banded = {f"band, {config.num_stages} stages": config for config in band.configurations(case)}
    found = banded | stages | found
    return {name: config for name, config in found.items() if config != chosen and computes(case, config)}


def computes(case: configurations.Case, config: Config) -> bool:
    """Whether the design of a configuration can compute the case."""
    return config.design != "band" or not band.why_not(case, config)


def measure(report: Report, options: Options) -> None:
    """Adds rows: all of level 1, then the other levels as they are configured, then what else there is for these."""
    found = groups(options)
    cases = [*found["tiny"], *([] if options.small else found["dilated"])]
    if not cases:
        return
    rate, gpu = copy_rate(options.small), PREDICTED.get(capability())
    report.note(copy_gigabytes_per_second=round(rate, 1), predictions_are_for=gpu)
    alone = side_by_side({case: functools.partial(Alone, case, DTYPE) for case in cases}, options.threads)
    jobs: dict[tuple[Case, str, str], Callable] = {}
    predicted, before = predictions(gpu), {}
    for case, kernel in itertools.product(cases, TENSORS):
        of = tuned(case, DTYPE, kernel)
        chosen = choose(of, device_kind())
        if chosen != estimate(of):
            predicted.pop((level(case), kernel), None)
        less = {LESS: chosen} if kernel == "bwd_dq" else {}
        for name, config in {**less, CHOSEN: chosen, **alternatives(of, chosen)}.items():
            jobs[case, kernel, name] = functools.partial(compiled, alone[case], kernel, name, config)

    def step(job: tuple[Case, str, str]) -> int:
        case, _, name = job
        return 0 if case is cases[0] else 1 if name in (CHOSEN, LESS) else 1 + cases.index(case)

    for _, labels in itertools.groupby(sorted(jobs, key=step), step):
        some, late = {label: jobs[label] for label in labels}, report.time_is_up()
        for (case, kernel, name), program in (some if late else side_by_side(some, options.threads)).items():
            floor = nbytes(case, TENSORS[kernel], DTYPE) / rate / 1e9
            work = functools.partial(row, program, kernel, name, floor, before)
            more = predicted.get((level(case), kernel), {}) if name in (CHOSEN, LESS) else {}
            report.measure(work, late=late, case=case.name, kernel=kernel, config=name, dtype=DTYPE, **more)


def compiled(alone: Callable[[], Alone], kernel: str, name: str, config: Config) -> tuple[Alone, Config, Callable]:
    """Compiles a kernel in a configuration."""
    return alone(), config, alone().compile(kernel, config, bias=name != LESS)


def row(program: Callable, kernel: str, name: str, floor: float, before: dict[Case, float]) -> dict[str, Any]:
    """Times a kernel. `before` holds the seconds of `bwd_dq` as it runs before `bwd_dkv` in a program, to be subtracted."""
    alone, config, run = program()
    error, times = alone.error(kernel, run), alone.times(run)
    if name == LESS:
        before[alone.case] = statistics.median(times)
    if kernel == "bwd_dkv":
        if alone.case not in before:
            raise ValueError("there is no time of bwd_dq to subtract")
        times = [time - before[alone.case] for time in times]
    return {
        **spread(times, "microseconds"),
        "floor_microseconds": round(1e6 * floor, 2),
        "times_the_floor": round(statistics.median(times) / floor, 3),
        "largest_error": error,
        "configuration": dataclasses.asdict(config),
    }


def level(case: Case) -> str:
    """Returns the name of a case among the predictions."""
    return f"level {case.name.split()[2]} dilation {case.dilation}"


def predictions(gpu: str | None) -> dict[tuple[str, str], dict[str, float]]:
    """Returns the microseconds that were predicted of a GPU, at least and at most, by level and kernel."""
    rows = read(RESULTS / "costs.json").get("gpus", {}).get(gpu, [])
    return {
        (row["level"], row["kernel"]): {f"predicted_{end}": round(row[end], 1) for end in ("at_least", "at_most")}
        for row in rows
    }
