"""Calls of the op that tests, benchmarks and tuning share: levels of published models, large windows, one call per feature.

NAT (arXiv 2204.07143) halves the map and doubles the heads from level to level, each of 32 channels; DiNAT (2209.15001) dilates
every second layer as far as its map has room.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from natjax_kernels.problem import Problem, make_problem
from natjax_kernels.window import Window, make_map_window

DILATIONS = (8, 4, 2, 1)  # of DiNAT's levels at 224 pixels


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the op on [batch, *spatial, heads, channels]; window arguments as those of the op.

    Attributes:
        name: for tables, and to choose it by.
        batch: batch entries.
        spatial: sides of the map of keys.
        heads: heads of queries.
        channels: channels of a head, of queries and keys.
        kernel_size: neighbours along every axis, or one number for all.
        dilation: likewise.
        stride: likewise.
        is_causal: likewise.
        periodic: likewise.
        bias: whether there is a relative positional bias.
        queries: sides of the map of queries; None where they are those of the keys.
        key_heads: heads of keys and values; None for as many as of queries.
        value_channels: channels of a head of values; None for as many as of keys.
        additional: additional keys.
        masked: whether a mask hides keys.
        sized: whether entries have maps of their own sizes.
        logits_soft_cap: as the op's.
    """

    name: str
    batch: int
    spatial: tuple[int, ...]
    heads: int
    channels: int
    kernel_size: int | tuple[int, ...]
    dilation: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False
    periodic: bool | tuple[bool, ...] = False
    bias: bool = True
    queries: tuple[int, ...] | None = None
    key_heads: int | None = None
    value_channels: int | None = None
    additional: int = 0
    masked: bool = False
    sized: bool = False
    logits_soft_cap: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of query; in calls without more features also that of key, value and output."""
        return self.batch, *(self.queries or self.spatial), self.heads, self.channels

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return *self.shape[:-1], self.value_channels or self.channels

    @property
    def rpb_shape(self) -> tuple[int, ...] | None:
        """Shape of the bias; None without one."""
        return (self.heads, *(2 * k - 1 for k in self.window.kernel_size)) if self.bias else None

    @property
    def window(self) -> Window:
        """The window, one entry per axis."""
        return make_map_window(self.spatial, **self.window_options())

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments of the op that are no arrays."""
        capped = {} if self.logits_soft_cap is None else {"logits_soft_cap": self.logits_soft_cap}
        return self.window_options() | capped

    def window_options(self) -> dict[str, Any]:
        """Returns those that describe the window; `periodic` only where an axis is."""
        options = {name: getattr(self, name) for name in ("kernel_size", "dilation", "stride", "is_causal", "periodic")}
        return options if np.any(self.periodic) else {k: x for k, x in options.items() if k != "periodic"}

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the op's arrays, by the names of its arguments."""
        heads, values = self.key_heads or self.heads, self.value_channels or self.channels
        keys = (self.batch, *self.spatial, heads)
        shapes = {"query": self.shape, "key": (*keys, self.channels), "value": (*keys, values)}
        if self.rpb_shape is not None:
            shapes["rpb"] = self.rpb_shape
        if self.additional:
            more = (self.batch, self.additional, heads)
            shapes |= {"additional_keys": (*more, self.channels), "additional_values": (*more, values)}
        if self.masked:
            shapes["key_mask"] = keys[:-1]
        if self.sized:
            shapes["sizes"] = (self.batch, len(self.spatial))
        return shapes

    def problem(self, dtype: str) -> Problem:
        """Returns the call without its data: a problem of `jax.ShapeDtypeStruct`."""
        dtypes = {"key_mask": "bool", "sizes": "int32"}
        arrays = {name: jax.ShapeDtypeStruct(x, dtypes.get(name, dtype)) for name, x in self.arrays().items()}
        return make_problem(**arrays, **self.options())


def levels(
    batch: int, heads: int, prefix: str, dilations: tuple[int, ...] = (1, 1, 1, 1), side: int = 56, kernel: int = 7
) -> list[Case]:
    """Returns a model's levels, whose maps halve from `side` on, without dilation and with the level's largest one.

    Args:
        batch: batch entries.
        heads: heads of level 1.
        prefix: of names: "tiny" makes "tiny level 1" and "tiny level 1 dilation 8".
        dilations: the largest of every level.
        side: of level 1's map: a quarter of the picture's.
        kernel: kernel size.
    """
    return [
        Case(
            f"{prefix} level {level + 1}{f' dilation {d}' * (d > 1)}".strip(),
            batch,
            (side >> level,) * 2,
            heads << level,
            32,
            kernel,
            d,
        )
        for level, most in enumerate(dilations)
        for d in dict.fromkeys((1, most))
    ]


def published() -> list[Case]:
    """Returns what attention of all published models comes to: heads and batch are no part of a configuration's name."""
    return [
        *levels(128, 2, "tiny", DILATIONS),  # NAT-Tiny speaks for all sizes at 224 pixels
        *levels(32, 6, "384 px", (13, 6, 3, 1), 96),
        *levels(32, 6, "384 px kernel 11", DILATIONS, 96, 11),
        Case("ViT-rpb", 128, (14, 14), 12, 32, 14),  # the other isotropic models have the attention of level 3
    ]


# Large windows of every rank.
LARGE = [
    Case("1-D of 32768", 8, (32768,), 4, 64, 63),
    Case("2-D kernel 80", 1, (256, 256), 2, 128, 80, bias=False),
    Case("3-D kernel 18 x 24 x 24", 1, (30, 48, 80), 2, 64, (18, 24, 24), bias=False),
]

# Small calls that between them meet every feature of the op.
FEATURES = [
    Case("1-D", 2, (19,), 2, 8, 5),
    Case("1-D dilated", 1, (23,), 1, 4, 3, 4),
    Case("2-D", 2, (9, 14), 2, 4, (3, 7)),
    Case("2-D dilated", 1, (17, 15), 2, 4, (5, 3), (2, 5)),
    Case("2-D exact", 1, (6, 7), 1, 8, (3, 7), (2, 1)),  # kernel_size * dilation is the side
    Case("2-D even", 1, (9, 10), 2, 4, (4, 2), (1, 3)),
    Case("2-D causal", 1, (10, 11), 2, 4, (3, 4), is_causal=(True, False)),
    Case("2-D strided", 1, (11, 13), 1, 4, (5, 4), stride=(2, 4), is_causal=(False, True), bias=False),
    Case("2-D periodic", 1, (9, 12), 1, 4, (3, 4), (1, 2), periodic=(False, True)),
    Case("1-D ring", 2, (12,), 1, 4, 5, stride=3, periodic=True),
    Case("2-D of fewer key heads", 2, (8, 9), 4, 4, 3, key_heads=2),
    Case("1-D of one key head", 1, (19,), 3, 4, 5, key_heads=1, bias=False),
    Case("2-D wide values", 1, (7, 8), 2, 4, 3, value_channels=20),
    Case("2-D of finer queries", 1, (4, 5), 2, 4, 3, queries=(8, 15)),
    Case("2-D of coarser queries", 1, (8, 12), 2, 4, (4, 3), (1, 2), queries=(4, 4)),
    Case("2-D with additional keys", 2, (7, 8), 2, 4, 3, additional=5),
    Case("2-D masked", 2, (7, 8), 2, 4, 3, masked=True),
    Case("2-D of mixed sizes", 3, (9, 10), 2, 4, (3, 4), (2, 1), stride=(1, 2), sized=True),
    Case(
        "1-D of mixed sizes", 2, (12,), 4, 4, 3, 2, is_causal=True, queries=(24,), key_heads=2, masked=True, sized=True
    ),
    Case("2-D of capped logits", 2, (7, 8), 2, 4, 3, additional=2, masked=True, logits_soft_cap=0.7),
    Case("1-D of all", 1, (9,), 1, 4, -1, is_causal=True),
    Case("3-D", 1, (5, 6, 7), 1, 4, 3, (1, 2, 1)),
    Case(
        "3-D of many features",
        2,
        (4, 4, 6),
        4,
        4,
        (3, 2, 3),
        (1, 2, 2),
        is_causal=(True, False, False),
        periodic=(False, False, True),
        queries=(8, 4, 3),
        key_heads=2,
        value_channels=6,
        additional=2,
        masked=True,
    ),
]
