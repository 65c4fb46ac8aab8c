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
from natjax_kernels.fused.configurations import Case, Config, halo, lengths, power_of_two

_BOXES = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}  # of keys, where a halo is too large to be one block


def choose(case: Case, device: str) -> Config:
    """Returns the configuration for a case on this kind of device.

    Raises:
        NotImplementedError: it names a design that cannot compute the case.
    """
    kinds = _measured()  # whose keys tell compute capabilities apart
    config = configurations.choose(case, collections.ChainMap(kinds.get(device, {}), *kinds.values()), estimate)
    if config.design == "band" and (reason := band.why_not(case, config)):
        raise NotImplementedError(f"the band design cannot compute {case.key}: {reason}")
    return config


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
    return [config for tile in tiles for config in (_resident(case, tile), _streamed(case, tile)) if config is not None]


def _most_queries(case: Case) -> int:
    """Returns how many queries a tile holds at most: few where channels are many and of 32 bits, each of which is two operands
    of TF32 products, in registers.
    """
    if not _wide_floats(case):
        return 64
    return 32 if case.head_dim <= 64 and case.kernel != "bwd_dq" else 16


def _streamed(case: Case, tile: tuple[int, ...]) -> Config:
    """Keys stream by in chunks, each with its part of the table."""
    keys = math.prod(halo(case, tile))
    block = _BOXES[len(tile)] if keys > 1024 else None
    chunk = 32 if case.dtype == "float32" or case.head_dim > 64 else 64
    wide, wide_floats = case.head_dim > 64, _wide_floats(case)
    blackwell = case.capability // 10 == 10
    rows, stages = 8 if wide_floats else 16, 2  # rows of a tile per warp
    halved = True
    if case.kernel == "bwd_dkv":  # four products of a chunk at once
        if wide or (blackwell and case.dtype != "float32"):
            rows = 4 if wide_floats else 8
    elif case.kernel == "fwd":
        halved, stages = wide and wide_floats, 3 if blackwell and case.head_dim <= 32 else 2
    else:
        halved = wide_floats or ((wide or _short_of_registers(case)) and (keys > 64 or chunk < 64))
    config = Config(tile, block, min(chunk // 2 if halved else chunk, power_of_two(keys)), False, 1, stages)
    return dataclasses.replace(config, num_warps=config.slots // rows)


def _resident(case: Case, tile: tuple[int, ...]) -> Config | None:
    """All keys at once, with their part of the table kept on chip, and its gradient beside it; None where that spills."""
    if case.dtype == "float32" or case.kernel == "bwd_dkv":
        return None
    keys = power_of_two(math.prod(halo(case, tile)))
    config = Config(tile, None, keys, True, 4)
    sums_table = case.kernel == "bwd_dq" and case.bias
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


def clocks(case: Case, config: Config) -> float:
    """Estimates a map's clocks: scores (an exponential each, 16 a clock of a multiprocessor), and halos (some 26 bytes a
    clock from the L2 cache). Small tiles load every key many times, large ones compute many scores that the window masks.
    """
    tiles = math.prod(math.ceil(n / t) for n, t in zip(lengths(case), config.tile, strict=True))
    sides = halo(case, config.tile)
    block = config.block or sides
    chunks = math.ceil(math.prod(block) / config.chunk) * math.prod(
        math.ceil(s / b) for s, b in zip(sides, block, strict=True)
    )
    scores = config.slots * chunks * config.chunk
    passes = 2 if case.kernel == "bwd_dq" and case.bias and not config.resident else 1
    loaded = 2 * (math.prod(sides) + math.prod(config.tile)) * case.head_dim * (4 if case.dtype == "float32" else 2)
    return passes * tiles * (scores / 16 + loaded / 26)


@functools.cache
def _measured() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(resources.files("natjax_kernels.triton").joinpath("configs.json").read_text())
