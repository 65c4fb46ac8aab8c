"""Which keys a query sees, as indices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from natjax_kernels.checks import check_grids
from natjax_kernels.window import make_map_window, windows


def neighbors(
    spatial: tuple[int, ...],
    kernel_size: int | tuple[int, ...],
    *,
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    periodic: bool | tuple[bool, ...] = False,
    query_spatial: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Returns the keys that every query of `neighborhood_attention` sees.

        natjax.neighbors((5,), 3)  # [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]

    Args:
        spatial: sides of the map of keys, one to three.
        kernel_size: see `neighborhood_attention`, as for the next four.
        dilation: see there.
        stride: see there.
        is_causal: see there.
        periodic: see there.
        query_spatial: sides of the map of queries; those of the keys by default.

    Returns:
        [*query_spatial, K] int32, where K is the product of the kernel sizes: indices into the flattened map of keys
        (`key.reshape(B, -1, N, D)`), in the order of the attention weights of `neighborhood_attention_with_weights`; -1 where
        a causal window has no such neighbour.

    Raises:
        ValueError: an argument is impossible; the message names it, its value and what is expected.
    """
    spatial, query_spatial = (
        _sides("spatial", spatial),
        _sides("query_spatial", spatial if query_spatial is None else query_spatial),
    )
    if len(query_spatial) != len(spatial):
        raise ValueError(f"query_spatial must have {len(spatial)} sides as spatial has; got {query_spatial}.")
    folded, spacing = check_grids(query_spatial, spatial)
    window = make_map_window(spatial, kernel_size, dilation, stride, is_causal, periodic)
    rank = len(spatial)
    index, present = np.zeros((1,) * (2 * rank), np.int64), np.ones((1,) * (2 * rank), bool)
    for a, (length, axis, repeats, apart) in enumerate(zip(spatial, window.axes(), folded, spacing, strict=True)):
        centers = np.repeat(np.arange(apart // 2, length, apart), repeats)[:, None]
        start, end = (edge[centers] for edge in windows(length, axis))
        place = start + np.arange(axis.kernel)  # [queries, k], in the dilation group
        seen = place < end
        if axis.periodic:
            place = place % (length // axis.dilation)
        shape = [1] * (2 * rank)
        shape[a], shape[rank + a] = place.shape
        index = index + (place * axis.dilation + centers % axis.dilation).reshape(shape) * math.prod(spatial[a + 1 :])
        present = present & seen.reshape(shape)
    return np.where(present, index, -1).reshape(*query_spatial, -1).astype(np.int32)


def _sides(name: str, sides: Any) -> tuple[int, ...]:
    values = tuple(sides) if isinstance(sides, tuple | list) else (sides,)
    if not 1 <= len(values) <= 3 or not all(isinstance(n, int | np.integer) and n > 0 for n in values):
        raise ValueError(f"{name} must be 1 to 3 positive integers; got {sides!r}.")
    return tuple(map(int, values))
