"""What a pass takes on every device: bytes, FLOPs and seconds of all layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from benchmarks.scaling.machines import Machine
from benchmarks.scaling.work import BYTES, CONVOLUTION, Work, exchange

GRADIENT = 4  # bytes, float32


@dataclasses.dataclass
class Cost:
    """Of a pass, on a device.

    Attributes:
        received: bytes of halos and of gathered maps.
        flops: floating point operations.
        computing: seconds.
        exchanging: seconds.
        overlapped: seconds of all where every layer takes the longer of both.
    """

    received: float = 0.0
    flops: float = 0.0
    computing: float = 0.0
    exchanging: float = 0.0
    overlapped: float = 0.0

    @property
    def apart(self) -> float:
        """Seconds of all where computing waits for exchanges."""
        return self.computing + self.exchanging


def cost(works: Sequence[Work], parts: Sequence[int], machine: Machine, *, train: bool = False) -> Cost:
    """Returns what one pass takes on each of `prod(parts)` devices, which the map is split over.

    A map with fewer tokens along an axis than parts is gathered, and computed on every device from there on.

    Args:
        works: the layers.
        parts: of every axis of their maps.
        machine: the device and its links.
        train: a pass forward and backward, with the sum of all gradients of parameters, instead of one forward.
    """
    devices, gathered, total = math.prod(parts), False, Cost()
    for work in works:
        received = exchanging = added = 0.0
        split = not gathered and all(n >= p for n, p in zip(work.sides, parts, strict=True))
        if split and devices > 1:
            received, fuller, messages = exchange(work, parts)
            exchanging = machine.send(messages, fuller, devices)
            if work.windows[0] != CONVOLUTION:
                added = 2 * work.tokens * work.halo  # gradients of halos that come back, to those of keys and values
        elif not split and not gathered:
            gathered = True
            received = work.tokens * work.halo / 2 * (1 - 1 / devices)
            exchanging = machine.send(1, received / 2, devices)  # along a ring in both directions
        share = devices if split else 1
        flops = 2 * work.macs / share
        moved = work.traffic / share + work.parameters * BYTES
        computing = max(flops / machine.flops, moved / machine.memory)
        if train:  # gradients of inputs and of weights are two more such products; gradients of halos travel back
            received, exchanging, flops, computing = 2 * received, 2 * exchanging, 3 * flops, 3 * computing
            computing += added / share / machine.memory
        total.received += received
        total.flops += flops
        total.computing += computing
        total.exchanging += exchanging
        total.overlapped += max(computing, exchanging)
    if train and devices > 1:
        seconds = machine.sum(GRADIENT * sum(work.parameters for work in works), devices)
        total.exchanging += seconds
        total.overlapped += seconds
    return total
