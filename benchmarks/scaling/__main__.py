"""Prints the tables of docs/scaling.md, which states the assumptions; a second, no device.

Nothing is measured: times are what FLOPs, bytes of memory and bytes of links take at the published rates of a machine.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.scaling.costs import cost
from benchmarks.scaling.machines import DEVICES, MACHINES, Machine
from benchmarks.scaling.work import CONVOLUTION, Work, exchange, nat, split, weather
from benchmarks.tables import table
from natjax.presets import get_config

IMAGE = 8192  # pixels
SIDES = (2048, 4096, 8192, 16384, 32768)
# (latitude, longitude) parts: those of longitude, whose ring must divide, as long as they do.
WEATHER_PARTS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (2, 32), (4, 32), (8, 32), (16, 32))
PASSES = {"inference": False, "training": True}
Layouts = Mapping[str, Callable[[int], tuple[int, ...]]]  # parts of every axis, by the number of devices
OF_IMAGES: Layouts = {
    "rows": lambda devices: (devices, 1),
    "squares": lambda devices: (devices // _columns(devices), _columns(devices)),
}
OF_WEATHER: Layouts = {"parts": lambda devices: (1, *WEATHER_PARTS[DEVICES.index(devices)])}


def _columns(devices: int) -> int:
    return 2 ** (int(math.log2(devices)) // 2)


def levels(works: Sequence[Work], parts: Sequence[int]) -> list[dict[str, Any]]:
    """Returns a row for the layers of every level, whose maps are split along one axis: halo, bytes and FLOPs of a layer."""
    rows = {}
    for work in works:
        if work.windows[0] == CONVOLUTION:
            continue
        axes = zip(work.sides, parts, work.windows, strict=True)
        found = next(split(n, p, axis) for n, p, axis in axes if p > 1)
        part, received = [n // p for n, p in zip(work.sides, parts, strict=True)], exchange(work, parts)[0]
        rows[work.name] = {
            "layers of": work.name,
            "map": list(work.sides),
            "part": part,
            "halo": f"{found.before} + {found.after}",
            "halo's tokens %": round(100 * received / work.halo / math.prod(part), 1),
            "MB received": round(received / 1e6, 2),
            "GFLOP": round(2 * work.macs / math.prod(parts) / 1e9, 1),
        }
    return list(rows.values())


def efficiencies(works: Sequence[Work], layouts: Layouts) -> list[dict[str, Any]]:
    """Returns a row for every number of devices: bytes and FLOPs of a device's forward pass, and how well devices are used.

    An efficiency is the time of one device over that of n devices, times n: where exchanges and computing follow one another,
    and where every layer hides the shorter of both.
    """
    rows = []
    for devices in DEVICES:
        row: dict[str, Any] = {"devices": devices}
        for shape, layout in layouts.items():
            found = cost(works, layout(devices), MACHINES[0])
            row[shape] = list(layout(devices))
            row[f"{shape}: MB"] = round(found.received / 1e6, 1)
            row[f"{shape}: GFLOP"] = round(found.flops / 1e9, 1)
        for machine in MACHINES:
            for what, train in PASSES.items():
                for shape, layout in layouts.items():
                    row[f"{machine.name} {what}, {shape}: %"] = "-"
                    if devices in machine.counts:
                        alone, found = (cost(works, layout(n), machine, train=train) for n in (1, devices))
                        percent = (100 * alone.apart / devices / t for t in (found.apart, found.overlapped))
                        row[f"{machine.name} {what}, {shape}: %"] = " to ".join(f"{p:.0f}" for p in percent)
        rows.append(row)
    return rows


def most_devices(side: int, machine: Machine, layout: Callable[[int], tuple[int, ...]], *, train: bool) -> int:
    """Returns the most devices at which a pass over a square image is half as efficient as on one, nothing overlapped."""
    works = list(nat(get_config("nat_tiny"), (side, side)))
    alone = cost(works, layout(1), machine, train=train).apart
    return max(n for n in machine.counts if n * cost(works, layout(n), machine, train=train).apart <= 2 * alone)


def halves(side: int) -> dict[str, Any]:
    """Returns the row of a square image: the most devices at which half of the efficiency is left."""
    row: dict[str, Any] = {"image": [side, side]}
    for machine in MACHINES:
        for what, train in PASSES.items():
            for shape, layout in OF_IMAGES.items():
                row[f"{machine.name} {what}, {shape}"] = most_devices(side, machine, layout, train=train)
    return row


def results() -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of all tables."""
    tiny, earth = list(nat(get_config("nat_tiny"), (IMAGE, IMAGE))), list(weather())
    return {
        "A layer on 8 devices": levels(tiny, (8, 1)) + levels(earth, (1, 1, 8)),
        "NAT-Tiny": efficiencies(tiny, OF_IMAGES),
        "Weather": efficiencies(earth, OF_WEATHER),
        "Devices at which half of the efficiency is left": [halves(side) for side in SIDES],
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table of rows."""
    return table(list(rows[0]), rows)


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__).parse_args()
    for name, rows in results().items():
        print(f"## {name}\n\n{markdown(rows)}\n")


if __name__ == "__main__":
    main()
