"""How the kernels cut their work: sides of tiles and blocks, warps and stages.

Measured choices are in configs.json by device kind (`python -m benchmarks.tune` refreshes it); what it lacks is chosen by the
estimate below.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from importlib import resources

from natjax_kernels.plan import Window, group_length

KERNELS = ("attend", "attend_backward", "attend_mirrored")
PROGRAMS = 1024  # that fill a GPU
_MOST_QUERIES = 64
_MOST_SCORES = {"attend": 64 * 256, "attend_backward": 32 * 256, "attend_mirrored": 64 * 256}  # that fit the registers
_BOXES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # of keys, where a halo is too large to be one block


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel works on one shape.

    Attributes:
        tile: sides of a tile, one per axis of the map.
        block: sides of the blocks of its halo; None for a halo that is one block.
        chunk: slots of a block that are worked on at a time, a power of two of at least 16.
        num_warps: warps of a program.
        num_stages: how far ahead loads run.
    """

    tile: tuple[int, ...]
    block: tuple[int, ...] | None
    chunk: int
    num_warps: int = 4
    num_stages: int = 2


def choose(kernel: str, spatial: tuple[int, ...], window: Window, head_dim: int, dtype: str, device: str) -> Config:
    """Returns the measured configuration of a kernel where there is one for the device, or an estimate."""
    found = _measured().get(device, {}).get(key(kernel, spatial, window, head_dim, dtype))
    return Config(**found) if found else estimate(kernel, spatial, window, head_dim, dtype)


def key(kernel: str, spatial: tuple[int, ...], window: Window, head_dim: int, dtype: str) -> str:
    """Returns the name of a case in configs.json."""
    axes = ",".join(f"{n}:{k}x{d}/{s}{'c' * c}" for n, (k, d, s, c) in zip(spatial, window.axes(), strict=True))
    return f"{kernel} {axes} D{head_dim} {dtype}"


@functools.lru_cache(maxsize=512)
def estimate(kernel: str, spatial: tuple[int, ...], window: Window, head_dim: int, dtype: str) -> Config:
    """Returns the configuration of least estimated work.

    A program spends its time on scores (an exponential each, 16 a clock of a multiprocessor) and on loading halos (some 26
    bytes a clock from the L2 cache): small tiles load every key many times, large ones compute many scores that the window
    masks. Only sides that cut an axis evenly are tried, so that little of the last tile is padding.
    """
    bytes_of_token = head_dim * (4 if dtype == "float32" else 2)
    lengths = [group_length(n, d) for n, d in zip(spatial, window.dilation, strict=True)]
    most = _MOST_SCORES[kernel] // (2 if dtype == "float32" or head_dim > 64 else 1)

    def halo(tile: tuple[int, ...]) -> list[int]:
        return [min(t + k - 1, n) for t, k, n in zip(tile, window.kernel_size, lengths, strict=True)]

    def cost(config: Config) -> float:
        tiles = math.prod(math.ceil(n / t) for n, t in zip(lengths, config.tile, strict=True))
        span = halo(config.tile)
        box = config.block or span
        keys = padded(math.prod(box), config.chunk) * math.prod(math.ceil(s / b) for s, b in zip(span, box, strict=True))
        slots = padded_tile(config.tile)
        return tiles * (slots * keys / 16 + 2 * (math.prod(span) + slots) * bytes_of_token / 26)

    def configs():
        sides = [sorted({math.ceil(n / m) for m in range(1, n + 1)} & set(range(_MOST_QUERIES + 1))) for n in lengths]
        for tile in itertools.product(*sides):
            if math.prod(tile) > _MOST_QUERIES:
                continue
            slots, keys = padded_tile(tile), math.prod(halo(tile))
            chunk = min(64, padded_tile((keys,)))
            if slots * padded(keys, chunk) <= most:
                yield Config(tile, None, chunk, num_warps=4 if slots * padded(keys, chunk) <= most // 2 else 8)
            else:
                yield Config(tile, _BOXES[len(tile)], 64)

    return min(configs(), key=cost)


def padded(slots: int, chunk: int) -> int:
    """Returns the slots of whole chunks."""
    return math.ceil(slots / chunk) * chunk


def padded_tile(tile: tuple[int, ...]) -> int:
    """Returns the slots of a tile as the tensor cores want them: a power of two of at least 16."""
    return max(16, 1 << (math.prod(tile) - 1).bit_length())


@functools.cache
def _measured() -> dict[str, dict[str, dict]]:
    return json.loads(resources.files(__package__).joinpath("configs.json").read_text())
