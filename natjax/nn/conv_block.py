"""The unit of the heads of dense prediction: a convolution, batch normalisation and ReLU, mmcv's `ConvModule`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from natjax.nn.batch_norm import BatchNorm
from natjax.nn.layers import conv
from natjax.nn.resizing import conv3x3_of_pyramid

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class ConvBlock(nnx.Module):
    """A convolution without bias, batch normalisation, ReLU."""

    def __init__(self, in_features: int, out_features: int, kernel_size: int, *, kernel_init: Any, **options: Any):
        self.conv = conv(in_features, out_features, kernel_size, use_bias=False, kernel_init=kernel_init, **options)
        self.batch_norm = BatchNorm(out_features, **options)

    def __call__(self, x: Float[Array, "B h w C"], counted: Bool[Array, " B"] | None = None) -> Float[Array, "B h w D"]:
        """Keeps the map's size. For `counted` see `BatchNorm`."""
        return jax.nn.relu(self.batch_norm(self.conv(x), counted))

    def of_pyramid(
        self, maps: Sequence[Float[Array, "B _ _ _"]], own: Sequence[Sequence[int]] | None = None
    ) -> Float[Array, "B h w D"]:
        """Returns what it makes of all maps, resized to the first one's size and joined along their channels.

        For `own` see `conv3x3_of_pyramid`.
        """
        *maps, kernel = self.conv.promote_dtype((*maps, self.conv.kernel[...]), dtype=self.conv.dtype)
        return jax.nn.relu(self.batch_norm(conv3x3_of_pyramid(maps, kernel, own)))
