"""The layers of a model, what each computes and moves, and what neighbours need to send for it, by how its map is split."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

from natjax.configuration import NatConfig
from natjax_kernels.split import Split, split_axis
from natjax_kernels.window import AxisWindow

BYTES = 2  # of an activation or a weight, bfloat16
CONVOLUTION = AxisWindow(kernel=3, stride=2)  # its output i is of inputs from 2i - 1 to 2i + 1


@dataclasses.dataclass(frozen=True)
class Work:
    """A layer, or a convolution, on the whole map.

    Attributes:
        name: of its level.
        sides: of the map that it reads.
        windows: per axis, which tokens a result needs.
        halo: bytes of a token that neighbours send.
        macs: multiply-accumulates.
        traffic: bytes of activations that are read and written.
        parameters: number of its parameters, which every device reads.
    """

    name: str
    sides: tuple[int, ...]
    windows: tuple[AxisWindow, ...]
    halo: float
    macs: float
    traffic: float
    parameters: float

    @property
    def tokens(self) -> int:
        """Tokens of the map."""
        return math.prod(self.sides)


def layer(name: str, sides: Sequence[int], axes: Sequence[AxisWindow], channels: int, heads: int, ratio: float) -> Work:
    """Returns a layer of NAT: attention and MLP, each after a norm. What is beside a product is fused with it."""
    seen = math.prod(axis.kernel for axis in axes)
    matrices = (4 + 2 * ratio) * channels**2
    tokens = math.prod(sides)
    return Work(
        name=name,
        sides=tuple(sides),
        windows=tuple(axes),
        halo=2 * channels * BYTES,  # k and v
        macs=tokens * (matrices + seen * (2 * channels + heads) + 10 * channels),
        traffic=tokens * channels * BYTES * (14 + 2 * ratio),
        parameters=matrices,
    )


def convolution(name: str, sides: Sequence[int], inputs: int, outputs: int, *, norm: bool) -> Work:
    """Returns a 3 x 3 convolution of stride 2, with the norm behind it."""
    tokens = math.prod(sides)
    return Work(
        name=name,
        sides=tuple(sides),
        windows=(CONVOLUTION,) * 2,
        halo=inputs * BYTES,
        macs=tokens / 4 * outputs * (9 * inputs + 5 * norm),
        traffic=tokens * BYTES * (inputs + outputs / 4),
        parameters=9 * inputs * outputs,
    )


def nat(config: NatConfig, image: Sequence[int]) -> Iterator[Work]:
    """Yields the work of a NAT without its head. Sides of the image in pixels are multiples of 32."""
    half, sides = config.embed_dim // 2, list(image)
    yield convolution("stem", sides, config.num_channels, half, norm=False)
    sides = [side // 2 for side in sides]
    yield convolution("stem", sides, half, config.embed_dim, norm=True)
    for level, (channels, heads) in enumerate(zip(config.level_dims, config.num_heads, strict=True)):
        sides = [side // 2 for side in sides]
        for dilation in config.layer_dilations(level):
            axes = (AxisWindow(config.kernel_size, dilation, 1, False, False),) * 2
            yield layer(f"level{level + 1}", sides, axes, channels, heads, config.mlp_ratio)
        if level + 1 < config.num_levels:
            yield convolution(f"level{level + 1}", sides, channels, 2 * channels, norm=True)


def weather() -> Iterator[Work]:
    """Yields the work of 16 layers on a grid of 13 pressures, 721 latitudes and a ring of 1440 longitudes."""
    axes = tuple(AxisWindow(k, 1, 1, False, periodic) for k, periodic in ((5, False), (7, False), (7, True)))
    for _ in range(16):
        yield layer("weather", (13, 721, 1440), axes, channels=128, heads=4, ratio=3)


@functools.cache
def split(length: int, parts: int, axis: AxisWindow) -> Split:
    """Returns how the op splits an axis; one that does not divide is padded, and the op told its size."""
    if axis == CONVOLUTION:
        return Split(parts, before=1)  # as parts are even
    padded = -(-length // parts) * parts
    return split_axis(padded, parts, axis if padded == length else dataclasses.replace(axis, sized=True))


def exchange(work: Work, parts: Sequence[int]) -> tuple[float, float, int]:
    """Returns the bytes that a device receives, those of the fuller direction of every axis, and messages one after another.

    Axes follow one another: the halo of the second is of the first one's halo too.
    """
    sides, received, fuller, messages = [-(-n // p) for n, p in zip(work.sides, parts, strict=True)], 0.0, 0.0, 0
    for a, count in enumerate(parts):
        if count > 1:
            part, found = sides[a], split(work.sides[a], count, work.windows[a])
            token = math.prod(sides) / part * work.halo
            halo = (part * found.passed, 0) if found.ring else (found.before, found.after)
            received += sum(halo) * token
            fuller += max(halo) * token
            messages += -(-max(halo) // part)  # to several neighbours where halos are longer than a part
            sides[a] += 0 if found.ring else sum(halo)
    return received, fuller, messages
