"""The one place that decides how large tiles are and how many are worked on at a time, by platform."""

from __future__ import annotations

import functools
import itertools
import math
import os

import jax

from natjax_kernels.plan import group_length, longest_halo
from natjax_kernels.window import Window

# Scores of a row of tiles, for one head, that make its work take twice as long: they leave the caches.
_LARGE_ROW = 2**21
ALL_ENTRIES = 2**31  # of a batch: more than there are
_MOST_QUERIES = 64  # beyond, the scores of a tile leave the cache: measured slower, whatever they save elsewhere


def on_tpu() -> bool:
    """Returns whether tiles are cut by slices, in whole rows of a TPU's registers, with heads that share lanes."""
    return jax.default_backend() == "tpu"


def lanes() -> int:
    """Returns the channels that heads fill together."""
    return 128 if on_tpu() else 1


def row_multiples(rank: int) -> tuple[int, ...]:
    """Returns of what numbers a tile's queries and keys along every axis are multiples."""
    return (*(1,) * (rank - 1), 8 if on_tpu() else 1)


def tile_shape(spatial: tuple[int, ...], window: Window, together: int) -> tuple[int, ...]:
    """Returns the queries per tile along every axis for the XLA implementation: those of least estimated work.

    Small tiles gather every key many times, large ones compute many scores that the window masks. A tile of T queries and S
    keys costs S * (T + 12), with the constant fitted to times on CPU (1-D to 3-D, kernels of 3 to 63 tokens). Only sides that
    cut an axis most evenly are tried, so that little of the last tile is padding. On a TPU queries of all heads that share lanes,
    `together`, are columns of scores, which are computed 128 at a time; to fetch a key costs as much as 128 columns.
    """
    return _tile_shape(spatial, window, row_multiples(len(spatial)), together if on_tpu() else None)


@functools.lru_cache(maxsize=512)
def _tile_shape(
    spatial: tuple[int, ...], window: Window, multiples: tuple[int, ...], together: int | None
) -> tuple[int, ...]:
    axes = []  # of every axis: what a side of a tile makes of it, as (side, tiles, keys of a tile)
    for length, axis, multiple in zip(spatial, window.axes(), multiples, strict=True):
        own, whole = (length, length) if axis.split is None else axis.split.lengths(length)
        n = math.ceil(group_length(own, axis.dilation) / axis.in_group().spacing)  # queries
        keys, most = group_length(whole, axis.dilation), group_length(length, axis.dilation)
        sides = {_rounded(math.ceil(n / m), multiple) for m in range(1, n + 1)} & set(range(_MOST_QUERIES + 1))
        halos = {t: min(longest_halo(keys, axis, t), most) for t in sides}
        axes.append([(t, math.ceil(n / t), _rounded(halos[t], multiple)) for t in sorted(sides)])

    def cost(choice) -> float:
        queries, tiles, keys = (math.prod(numbers) for numbers in zip(*choice, strict=True))
        if queries > _MOST_QUERIES:
            return math.inf
        if together is not None:
            return tiles * _rounded(keys, 16) * (_rounded(queries * together, 128) + 128)
        row = tiles // choice[0][1] * queries * keys  # scores of the smallest step
        return tiles * keys * (queries + 12) * (1 + row / _LARGE_ROW)

    return tuple(side for side, _, _ in min(itertools.product(*axes), key=cost))


def _rounded(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple


def scores_per_step() -> int:
    """Returns how many scores (query, key pairs) of all batch entries and heads are worked on at a time.

    On CPU 2 MiB of them in float32 per core: they stay in its caches, which is up to three times as fast as 64 MiB and makes
    the time per token independent of the size of the map. On a TPU 24 MiB of them: the few such arrays that there are at a time
    stay in the memory of a core, and those of twice as many do not. Other accelerators want fewer, larger steps.
    """
    if jax.default_backend() == "cpu":
        return 2**19 * _cores()
    return 6 * 2**20 if on_tpu() else 2**24


def entries_per_step(scores: int, *, backward: bool, split: bool) -> int:
    """Returns how many batch entries, each of so many scores, a device works on at a time; `split` says if it may have others.

    On one CPU as many as stay in its caches, mostly one: the backward pass takes 0.45 to 0.9 of the time that all at once take.
    On a TPU as many as are in a step. Elsewhere all: a batch that is split over devices in an unknown way has to stay whole.
    """
    if on_tpu():
        return ALL_ENTRIES if split else max(1, scores_per_step() // max(scores, 1))
    if not backward or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return ALL_ENTRIES
    return max(1, 2**17 * _cores() // max(scores, 1))


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # what this process may use, and XLA's threads do
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
