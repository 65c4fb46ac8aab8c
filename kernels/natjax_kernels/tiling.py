"""The one place that decides how large tiles are and how many are worked on at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from natjax_kernels.plan import Window, group_length


def tile_shape(spatial: Sequence[int], window: Window) -> tuple[int, ...]:
    """Returns the queries per tile along every axis for the XLA implementation."""
    lengths = [group_length(n, d) for n, d in zip(spatial, window.dilation, strict=True)]
    return tuple(min(n, 7) for n in lengths)


def scores_per_step() -> int:
    """Returns how many scores (query, key pairs) of all batch entries and heads are held at a time: 64 MiB in float32."""
    return 2**24
