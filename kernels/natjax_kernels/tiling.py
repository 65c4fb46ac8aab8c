"""The one place that decides how large tiles are and how many are worked on at a time."""

from __future__ import annotations

import functools
import itertools
import math

import jax

from natjax_kernels.plan import Window, group_length

_KEY_COST = 32  # scores that take as long as gathering a key and a value, and bringing home their gradients
_MOST_QUERIES = 64  # beyond, the scores of a tile leave the cache: measured slower, whatever they save elsewhere


@functools.lru_cache(maxsize=512)
def tile_shape(spatial: tuple[int, ...], window: Window) -> tuple[int, ...]:
    """Returns the queries per tile along every axis for the XLA implementation: those of least estimated work.

    Small tiles gather every key many times, large ones compute many scores that the window masks. A tile of T queries and S
    keys costs S * (T + 32), with the constant fitted to times on CPU (1-D to 3-D, kernels of 3 to 63 tokens). Only sides that
    cut an axis most evenly are tried, so that little of the last tile is padding.
    """
    lengths = [group_length(n, d) for n, d in zip(spatial, window.dilation, strict=True)]
    sides = [sorted({math.ceil(n / m) for m in range(1, n + 1)} & set(range(_MOST_QUERIES + 1))) for n in lengths]

    def cost(tile: tuple[int, ...]) -> int:
        tiles = math.prod(math.ceil(n / t) for n, t in zip(lengths, tile, strict=True))
        halo = (min(t + k - 1, n) for n, t, k in zip(lengths, tile, window.kernel_size, strict=True))
        return tiles * math.prod(halo) * (math.prod(tile) + _KEY_COST)

    return min((t for t in itertools.product(*sides) if math.prod(t) <= _MOST_QUERIES), key=cost)


def scores_per_step() -> int:
    """Returns how many scores (query, key pairs) of all batch entries and heads are worked on at a time.

    On CPU 4 MiB of them in float32: they stay in the caches, which is up to three times as fast as 64 MiB and makes the
    time per token independent of the size of the map. Accelerators want fewer, larger steps.
    """
    return 2**20 if jax.default_backend() == "cpu" else 2**24
