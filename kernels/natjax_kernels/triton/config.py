"""How the kernels cut their work: sides of tiles and blocks, warps and stages.

Measured choices are in configs.json by device kind (`python -m benchmarks.tune` refreshes it); what it lacks is chosen by the
estimate below.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Generator, Mapping
from importlib import resources
from typing import Any

from natjax_kernels.plan import Window, group_length

KERNELS = ("attend", "attend_backward", "attend_mirrored")
PROGRAMS = 1024  # that fill a GPU
_BOXES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # of keys, where a halo is too large to be one block


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel works on one shape.

    Attributes:
        tile: sides of a tile, one per axis of the map.
        block: sides of the blocks of its halo; None for a halo that is one block.
        chunk: slots of a block that are worked on at a time, a power of two of at least 16.
        resident: whether all chunks are unrolled and their table is kept on chip; for halos of one block.
        num_warps: warps of a program.
        num_stages: how far ahead loads run.
    """

    tile: tuple[int, ...]
    block: tuple[int, ...] | None
    chunk: int
    resident: bool
    num_warps: int
    num_stages: int = 2

    @property
    def slots(self) -> int:
        """Slots of a tile, T: a power of two of at least 16, as the tensor cores want them."""
        return max(16, 1 << (math.prod(self.tile) - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Case:
    """What a configuration is for: one kernel on one shape.

    Attributes:
        kernel: one of `KERNELS`.
        spatial: sides of the map.
        window: its window.
        head_dim: channels of a head.
        dtype: name of the dtype.
        bias: whether there is a relative positional bias.
        capability: compute capability of the device, times ten.
    """

    kernel: str
    spatial: tuple[int, ...]
    window: Window
    head_dim: int
    dtype: str
    bias: bool
    capability: int

    @property
    def key(self) -> str:
        """The name of the case in configs.json."""
        axes = zip(self.spatial, self.window.axes(), strict=True)
        window = " ".join(f"{n}:{k}x{d}{f'/{s}' * (s > 1)}{'c' * c}" for n, (k, d, s, c) in axes)
        return f"{self.kernel} {window} D{self.head_dim} {self.dtype}{' rpb' * self.bias}"


_overrides: contextvars.ContextVar[Mapping[str, Config]] = contextvars.ContextVar("overrides")


@contextlib.contextmanager
def override(case: Case, config: Config) -> Generator[None]:
    """Has the ops that this thread traces meanwhile use `config` for `case`; ops that were traced before keep theirs."""
    token = _overrides.set({**_overrides.get({}), case.key: config})
    try:
        yield
    finally:
        _overrides.reset(token)


def choose(case: Case, device: str) -> Config:
    """Returns the overriding or else the measured configuration for this kind of device, or else an estimate."""
    if overriding := _overrides.get({}).get(case.key):
        return overriding
    found = _measured().get(device, {}).get(case.key)
    if found is None:
        return estimate(case)
    return dataclasses.replace(
        Config(**found), tile=tuple(found["tile"]), block=found["block"] and tuple(found["block"])
    )


@functools.lru_cache(maxsize=512)
def estimate(case: Case) -> Config:
    """Returns the configuration of least estimated work; with the table on chip where that makes no difference to it."""
    return min(candidates(case), key=functools.partial(_clocks, case))


def candidates(case: Case) -> list[Config]:
    """Returns configurations that fit a multiprocessor's registers, of tiles that cut every axis evenly.

    What fits was found with `python tests/deviceless/resources.py`.
    """
    sides = [sorted({math.ceil(n / m) for m in range(1, n + 1)} & set(range(65))) for n in _lengths(case)]
    tiles = [tile for tile in itertools.product(*sides) if math.prod(tile) <= _most_queries(case)]
    return [config for tile in tiles for config in (_resident(case, tile), _streamed(case, tile)) if config is not None]


def _most_queries(case: Case) -> int:
    """Returns how many queries a tile holds at most: few where channels are many and of 32 bits, each of which is two operands
    of TF32 products, in registers.
    """
    if not _wide_floats(case):
        return 64
    return 32 if case.head_dim <= 64 and case.kernel != "attend_backward" else 16


def _streamed(case: Case, tile: tuple[int, ...]) -> Config:
    """Keys stream by in chunks, each with its part of the table."""
    halo = math.prod(_halo(case, tile))
    block = _BOXES[len(tile)] if halo > 1024 else None
    chunk = 32 if case.dtype == "float32" or case.head_dim > 64 else 64
    wide, wide_floats = case.head_dim > 64, _wide_floats(case)
    hopper, blackwell = case.capability // 10 == 9, case.capability // 10 == 10
    rows, stages = 8 if wide_floats else 16, 2  # rows of a tile per warp
    if case.kernel == "attend_mirrored":  # four products of a chunk at once
        halved = wide or wide_floats or not hopper
        if wide or (blackwell and case.dtype != "float32"):
            rows = 4 if wide_floats else 8
    elif case.kernel == "attend":
        halved, stages = wide and wide_floats, 3 if blackwell and case.head_dim <= 32 else 2
    else:
        halved = wide_floats or ((wide or _short_of_registers(case)) and (halo > 64 or chunk < 64))
    config = Config(tile, block, min(chunk // 2 if halved else chunk, _power_of_two(halo)), False, 1, stages)
    return dataclasses.replace(config, num_warps=config.slots // rows)


def _resident(case: Case, tile: tuple[int, ...]) -> Config | None:
    """All keys at once, with their part of the table kept on chip, and its gradient beside it; None where that spills."""
    if case.dtype == "float32" or case.kernel == "attend_mirrored":
        return None
    keys = _power_of_two(math.prod(_halo(case, tile)))
    config = Config(tile, None, keys, True, 4)
    sums_table = case.kernel == "attend_backward" and case.bias
    if config.slots == 64 and keys <= 64 and case.head_dim <= 32:
        return dataclasses.replace(config, num_stages=1) if sums_table and _short_of_registers(case) else config
    if sums_table and config.slots == 16 and keys in (128, 256) and case.head_dim >= 32:
        return dataclasses.replace(config, num_warps=keys // (32 if case.head_dim <= 64 else 16))
    return None


def _wide_floats(case: Case) -> bool:
    return case.dtype == "float32" and case.head_dim > 32


def _short_of_registers(case: Case) -> bool:
    """Returns whether operands of matrix products have to be in registers, as before Hopper and on Blackwell's consumer GPUs."""
    return case.capability < 90 or case.capability >= 120


def _clocks(case: Case, config: Config) -> float:
    """Estimates a map's clocks: scores (an exponential each, 16 a clock of a multiprocessor), and halos (some 26 bytes a
    clock from the L2 cache). Small tiles load every key many times, large ones compute many scores that the window masks.
    """
    tiles = math.prod(math.ceil(n / t) for n, t in zip(_lengths(case), config.tile, strict=True))
    halo = _halo(case, config.tile)
    block = config.block or halo
    chunks = math.ceil(math.prod(block) / config.chunk) * math.prod(
        math.ceil(s / b) for s, b in zip(halo, block, strict=True)
    )
    scores = config.slots * chunks * config.chunk
    passes = 2 if case.kernel == "attend_backward" and case.bias and not config.resident else 1
    loaded = 2 * (math.prod(halo) + math.prod(config.tile)) * case.head_dim * (4 if case.dtype == "float32" else 2)
    return passes * tiles * (scores / 16 + loaded / 26)


def _lengths(case: Case) -> list[int]:
    return [group_length(n, d) for n, d in zip(case.spatial, case.window.dilation, strict=True)]


def _halo(case: Case, tile: tuple[int, ...]) -> list[int]:
    return [min(t + k - 1, n) for t, k, n in zip(tile, case.window.kernel_size, _lengths(case), strict=True)]


def _power_of_two(slots: int) -> int:
    return max(16, 1 << (slots - 1).bit_length())


@functools.cache
def _measured() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(resources.files("natjax_kernels.triton").joinpath("configs.json").read_text())
