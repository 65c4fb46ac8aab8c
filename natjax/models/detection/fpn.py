"""Feature pyramid network (arXiv 1612.03144): maps of all levels with the same channels, each with what the coarser ones saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flax import nnx

from natjax.configuration import MaskRcnnConfig
from natjax.nn.initializers import glorot_uniform
from natjax.nn.layers import conv
from natjax.nn.resizing import upsample_nearest
from natjax.nn.spatial import gathered

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class FeaturePyramid(nnx.Module):
    """A map for every level of the backbone, and a coarser one: every second point of the last."""

    def __init__(self, config: MaskRcnnConfig, channels: Sequence[int], **options: Any):
        dim = config.fpn_channels
        self.lateral_convs = nnx.List(
            [conv(n, dim, 1, kernel_init=glorot_uniform(n, dim), **options) for n in channels]
        )
        options["kernel_init"] = glorot_uniform(9 * dim, 9 * dim)
        self.fpn_convs = nnx.List([conv(dim, dim, 3, **options) for _ in channels])

    def __call__(self, features: Sequence[Float[Array, "B _ _ _"]]) -> tuple[Float[Array, "B _ _ C"], ...]:
        """Returns one map more than the backbone has, the finest first."""
        maps = [lateral(x) for lateral, x in zip(self.lateral_convs, features, strict=True)]
        for i in reversed(range(len(maps) - 1)):
            maps[i] += upsample_nearest(maps[i + 1], maps[i].shape[1:3])
        maps = [smooth(x) for smooth, x in zip(self.fpn_convs, maps, strict=True)]
        return (*maps, gathered(maps[-1], (1, 2))[:, ::2, ::2])
