"""How fused kernels cut their work: sides of tiles and blocks, warps and stages; and by what name a choice is filed.

A backend has its own estimate and its own file of measured configurations (`natjax_kernels.triton.choice`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Generator, Mapping
from typing import Any

from natjax_kernels.logits import Logits
from natjax_kernels.plan import group_length, longest_halo, plan_axis
from natjax_kernels.window import AxisWindow, Window

KERNELS = ("fwd", "bwd_dq", "bwd_dkv")


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
        programs: that a multiprocessor holds at a time, by its registers and shared memory.
        design: "tiles", as `natjax_kernels.fused.layout` says, or "band" (`natjax_kernels.fused.band`), forward.
    """

    tile: tuple[int, ...]
    block: tuple[int, ...] | None
    chunk: int
    resident: bool
    num_warps: int
    num_stages: int = 2
    programs: int = 2
    design: str = "tiles"

    @property
    def slots(self) -> int:
        """Slots of a tile, T: a power of two of at least 16, as the tensor cores want them."""
        return power_of_two(math.prod(self.tile))


@dataclasses.dataclass(frozen=True)
class Case:
    """What a configuration is for: one kernel on one shape.

    Attributes:
        kernel: one of `KERNELS`.
        spatial: sides of the map of keys.
        window: its window.
        head_dim: channels of a head of queries and keys.
        dtype: name of the dtype.
        bias: whether there is a relative positional bias.
        capability: compute capability of the device, times ten.
        value_dim: channels of a head of values; None for as many.
        group: heads of queries that share a head of keys.
        masked: whether a query may see no key.
        capped: whether logits are softly capped.
    """

    kernel: str
    spatial: tuple[int, ...]
    window: Window
    head_dim: int
    dtype: str
    bias: bool
    capability: int
    value_dim: int | None = None
    group: int = 1
    masked: bool = False
    capped: bool = False

    @classmethod
    def of(cls, kernel: str, window: Window, logits: Logits, capability: int, query, key, value, rpb, mask) -> Case:
        """Returns the case of a kernel for arrays as those of the op."""
        channels, values = query.shape[-1], value.shape[-1]
        return cls(
            kernel,
            tuple(key.shape[1:-2]),
            window,
            channels,
            query.dtype.name,
            rpb is not None,
            capability,
            None if values == channels else values,
            query.shape[-2] // key.shape[-2],
            mask is not None or window.blind,
            logits.soft_cap is not None,
        )

    @property
    def values(self) -> int:
        """Channels of a head of values."""
        return self.value_dim or self.head_dim

    @property
    def channels(self) -> int:
        """Channels of a head, of keys or values, whichever has more."""
        return max(self.head_dim, self.values)

    @property
    def key(self) -> str:
        """The name of the case in configs.json."""
        window = " ".join(f"{n}:{_named(axis)}" for n, axis in zip(self.spatial, self.window.axes(), strict=True))
        more = (f"/{self.value_dim}" if self.value_dim else "") + f" x{self.group}" * (self.group > 1)
        added = " rpb" * self.bias + " mask" * self.masked + " cap" * self.capped
        return f"{self.kernel} {window} D{self.head_dim}{more} {self.dtype}{added} sm_{self.capability}"


def _named(axis: AxisWindow) -> str:
    more = (
        (f"/{axis.stride}", axis.stride > 1),
        ("c", axis.causal),
        ("p", axis.periodic),
        (f"@{axis.spacing}", axis.spacing > 1),
        (f" of {axis.split.parts}" if axis.split else "", axis.split is not None),
    )
    return f"{axis.kernel}x{axis.dilation}" + "".join(mark for mark, on in more if on)


_overrides: contextvars.ContextVar[Mapping[str, Config]] = contextvars.ContextVar("overrides")


@contextlib.contextmanager
def override(case: Case, config: Config) -> Generator[None]:
    """Sets the configuration of a case, while this thread traces inside the `with` block; programs traced before keep theirs."""
    token = _overrides.set({**_overrides.get({}), case.key: config})
    try:
        yield
    finally:
        _overrides.reset(token)


def named(case: Case) -> Config | None:
    """Returns the configuration that `override` sets for a case, if any."""
    return _overrides.get({}).get(case.key)


def read(fields: Mapping[str, Any]) -> Config:
    """Returns a configuration of its fields as JSON has them."""
    sides = {"tile": tuple(fields["tile"]), "block": fields["block"] and tuple(fields["block"])}
    return dataclasses.replace(Config(**fields), **sides)


def lengths(case: Case) -> list[int]:
    """Returns the longest dilation group of every axis of what tiles are of: queries, or in `bwd_dkv` keys."""
    axes = list(zip(case.spatial, case.window.axes(), strict=True))
    if case.kernel == "bwd_dkv":
        return [group_length(n, axis.dilation) for n, axis in axes]
    longest = [group_length(axis.split.own(n) if axis.split else n, axis.dilation) for n, axis in axes]
    return [math.ceil(n / axis.in_group().spacing) for n, axis in zip(longest, case.window.axes(), strict=True)]


def halo(case: Case, tile: tuple[int, ...]) -> list[int]:
    """Returns the longest sides of the halos of tiles; of a split map at most those of the whole one, or what a device has."""
    sides, transposed = [], case.kernel == "bwd_dkv"
    for n, axis, t in zip(case.spatial, case.window.axes(), tile, strict=True):
        whole, most = n, math.inf
        if axis.split is not None:
            own, whole = axis.split.lengths(n)
            most, axis = group_length(own if transposed else n, axis.dilation), dataclasses.replace(axis, split=None)
        if axis.spacing > 1:  # where a group's first query is differs from group to group
            longest = plan_axis(whole, axis, t, transposed).span
        else:
            groups = {group_length(whole, axis.dilation), whole // axis.dilation}
            # With strides that of the shorter one may be longer.
            longest = max(longest_halo(length, axis, t, transposed) for length in groups)
        sides.append(min(longest, most))
    return sides


def little_shared_memory(case: Case) -> bool:
    """Returns whether a multiprocessor has 100 kB of it, as on GPUs for consumers, instead of 164 or 228."""
    return case.capability in (86, 89, 120, 121)


def power_of_two(slots: int) -> int:
    """Returns the power of two, of at least 16, that holds so many slots: what tensor cores multiply."""
    return max(16, 1 << (slots - 1).bit_length())
