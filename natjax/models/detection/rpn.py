"""Region proposal network (arXiv 1506.01497): which anchors of the feature pyramid are of objects, and the objects' boxes.

Letters: B batch, h w a map's height and width, A anchors of a point, n = h w A anchors of a map, in the order y, x, ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import MaskRcnnConfig
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import conv

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class RpnHead(nnx.Module):
    """A convolution and two classifiers of every point, the same for all maps of the pyramid."""

    def __init__(self, config: MaskRcnnConfig, **options: Any):
        dim, anchors = config.rpn_channels, len(config.anchor_ratios)
        options["kernel_init"] = truncated_normal(config.initializer_range)
        self.rpn_conv = conv(config.fpn_channels, dim, 3, **options)
        self.rpn_cls = conv(dim, anchors, 1, **options)
        self.rpn_reg = conv(dim, 4 * anchors, 1, **options)

    def __call__(
        self, pyramid: Sequence[Float[Array, "B _ _ C"]]
    ) -> tuple[list[Float[Array, "B _"]], list[Float[Array, "B _ 4"]]]:
        """Returns logits and deltas, float32, of the anchors of every map."""
        logits, deltas = [], []
        for x in pyramid:
            x = jax.nn.relu(self.rpn_conv(x))
            logits.append(self.rpn_cls(x).astype(jnp.float32).reshape(len(x), -1))
            deltas.append(self.rpn_reg(x).astype(jnp.float32).reshape(len(x), -1, 4))
        return logits, deltas
