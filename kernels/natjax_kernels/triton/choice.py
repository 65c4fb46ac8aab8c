"""Which configuration the Triton kernels take: the overriding one, the measured one, or the one of least estimated work.

Measured ones are in configs.json by device kind (`python -m benchmarks.tune` refreshes it); those of one kind serve others of its
compute capability, such as an H100's an H200, where these have none of their own. Estimates keep within the registers of a
multiprocessor, by what Triton's compiler made of the kernels (`python tests/deviceless/resources.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import math
from importlib import resources
from typing import Any

from natjax_kernels.fused import band, configurations
from natjax_kernels.fused.configurations import Case, Config, halo, lengths, little_shared_memory, power_of_two

_BOXES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # of keys, where a halo is too large to be one block


def choose(case: Case, device: str) -> Config:
    """Returns the configuration for a case on this kind of device.

    Raises:
        NotImplementedError: one was named, of a design that cannot compute the case.
    """
    if config := configurations.named(case):
        if config.design == "band" and (reason := band.why_not(case, config)):
            raise NotImplementedError(f"the band design cannot compute {case.key}: {reason}")
        return config
    kinds = _measured()  # whose keys tell compute capabilities apart
    found = collections.ChainMap(kinds.get(device, {}), *kinds.values()).get(case.key)
    config = configurations.read(found) if found else estimate(case)
    return estimate(case) if config.design == "band" and band.why_not(case, config) else config


@functools.lru_cache(maxsize=512)
def estimate(case: Case) -> Config:
    """Returns the configuration of least estimated work; with the table on chip where that makes no difference to it."""
    return min(candidates(case), key=functools.partial(clocks, case))


def candidates(case: Case) -> list[Config]:
    """Returns configurations that fit a multiprocessor's registers, of tiles that cut every axis evenly.

    What fits was found with `python tests/deviceless/resources.py`.
    """
    sides = [sorted({math.ceil(n / m) for m in range(1, n + 1)} & set(range(65))) for n in lengths(case)]
    tiles = [tile for tile in itertools.product(*sides) if math.prod(tile) <= _most_queries(case)]
    found = [
        config for tile in tiles for config in (_resident(case, tile), _streamed(case, tile)) if config is not None
    ]
    return [dataclasses.replace(config, programs=programs(case, config)) for config in found]


def programs(case: Case, config: Config) -> int:
    """Returns how many programs a multiprocessor holds at a time, by what was compiled.

    Registers hold 12 warps where a thread has up to 168, else 8; 100 kB of shared memory hold 10, and fewer of wide floats or
    where chunks that run ahead take more.
    """
    if _wide_floats(case):
        return max(1, 4 // config.num_warps)
    few = math.prod(halo(case, config.tile)) <= 64  # keys, whose table takes few registers
    lean = {
        "fwd": few or (not config.resident and case.capability < 120),
        "bwd_dq": False,
        "bwd_dkv": _hopper(case) and config.num_warps >= 4 and (few or not config.resident),
    }[case.kernel]
    warps = 10 if little_shared_memory(case) else 12
    if not lean or case.masked or case.channels not in (16, 32) or case.dtype == "float32":
        warps = 8
    held = warps // config.num_warps
    if little_shared_memory(case) and (case.masked or not config.resident):
        channels, size = case.head_dim + case.values, 4 if case.dtype == "float32" else 2
        held = min(held, 100_000 // (config.num_stages * config.chunk * channels * size))
    return max(1, held)


def _most_queries(case: Case) -> int:
    """Returns how many queries a tile holds at most: few where channels are many and of 32 bits, each of which is two operands
    of TF32 products, in registers.
    """
    if not _wide_floats(case):
        return 64
    return 32 if case.channels <= 64 and case.kernel != "bwd_dq" else 16


def _streamed(case: Case, tile: tuple[int, ...]) -> Config:
    """Keys stream by in chunks, each with its part of the table."""
    keys = math.prod(halo(case, tile))
    block = _BOXES[len(tile)] if keys > 1024 else None
    chunk = 32 if case.dtype == "float32" or case.channels > 64 else 64
    wide, wide_floats = case.channels > 64, _wide_floats(case)
    rows, stages = 8 if wide_floats or case.channels > 128 else 16, 2  # rows of a tile per warp
    halved = True
    if case.kernel == "bwd_dkv":  # four products of a chunk at once
        if wide or (_blackwell(case) and case.dtype != "float32"):
            rows = 4 if wide_floats else 8
    elif case.kernel == "fwd":
        halved, stages = wide and wide_floats, 3 if _blackwell(case) and case.channels <= 32 else 2
    else:
        halved = wide_floats or ((wide or _short_of_registers(case)) and (keys > 64 or chunk < 64))
    config = Config(tile, block, min(chunk // 2 if halved else chunk, power_of_two(keys)), False, 1, stages)
    return dataclasses.replace(config, num_warps=config.slots // rows)


def _resident(case: Case, tile: tuple[int, ...]) -> Config | None:
    """All keys in unrolled chunks, with the table on chip and its gradient beside it; None where a loop over them spills."""
    if case.dtype == "float32" or (case.kernel == "bwd_dkv" and case.group > 1):  # whose heads have tables of their own
        return None
    keys = math.prod(halo(case, tile))
    config = Config(tile, None, power_of_two(keys), True, 4)
    if case.kernel == "fwd":
        most = 64 if case.masked else 192  # whose loads run ahead, too
        if config.slots == 64 and keys <= most and case.channels <= 32:
            return dataclasses.replace(config, chunk=min(64, config.chunk))
        if config.slots == 16 and 64 < keys <= 128 and case.channels <= 32:
            return dataclasses.replace(config, num_warps=2)
    elif case.kernel == "bwd_dkv":
        most = 192 if _hopper(case) else 128 if _short_of_registers(case) else 64
        if config.slots == 64 and keys <= most and case.channels <= 32:
            chunk, warps = 32 if keys > 64 or _hopper(case) else 64, 8 if _blackwell(case) else 4
            return dataclasses.replace(config, chunk=min(chunk, config.chunk), num_warps=warps)
        if config.slots == 16 and 64 < keys <= 128 and case.channels <= 32:
            return dataclasses.replace(config, chunk=32, num_warps=2)
    elif config.slots == 64 and keys <= 64 and case.channels <= 32:
        return dataclasses.replace(config, num_stages=1) if case.bias and _short_of_registers(case) else config
    elif case.bias and config.slots == 16 and config.chunk in (128, 256) and case.channels >= 32:
        if case.channels <= 128 or not little_shared_memory(case):
            return dataclasses.replace(config, num_warps=config.chunk // (32 if case.channels <= 64 else 16))
    return None


def _wide_floats(case: Case) -> bool:
    return case.dtype == "float32" and case.channels > 32


def _hopper(case: Case) -> bool:
    return case.capability // 10 == 9


def _blackwell(case: Case) -> bool:
    return case.capability // 10 == 10


def _short_of_registers(case: Case) -> bool:
    """Returns whether operands of matrix products have to be in registers, as before Hopper and on Blackwell's consumer GPUs."""
    return case.capability < 90 or case.capability >= 120


def clocks(case: Case, config: Config) -> float:
    """Estimates a map's clocks: scores (10 instructions each, 14 where they load the table, 128 a clock of a multiprocessor),
    and halos and tables (some 26 bytes a clock from the L2 cache, as loads that run ahead pass by L1). Small tiles load every
    key many times, large ones compute many scores that the window masks, and Blackwell's tensor cores want 64 rows.
    """
    tiles = math.prod(math.ceil(n / t) for n, t in zip(lengths(case), config.tile, strict=True))
    sides = halo(case, config.tile)
    block = config.block or sides
    chunks = math.ceil(math.prod(block) / config.chunk) * math.prod(
        math.ceil(s / b) for s, b in zip(sides, block, strict=True)
    )
    scores = config.slots * chunks * config.chunk
    passes = 2 if case.kernel == "bwd_dq" and case.bias and not config.resident else 1
    tokens = (
        (math.prod(sides) + math.prod(config.tile))
        * (case.head_dim + case.values)
        * (4 if case.dtype == "float32" else 2)
    )
    table = 0 if config.resident else scores * (4 if case.bias else 2)
    instructions = scores * (10 if config.resident else 14) * (2 if _blackwell(case) and config.slots < 64 else 1)
    return passes * tiles * (instructions / 128 + (tokens + table) / 26)


@functools.cache
def _measured() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(resources.files("natjax_kernels.triton").joinpath("configs.json").read_text())
