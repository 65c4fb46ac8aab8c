"""Region proposal network (arXiv 1506.01497): which anchors of the feature pyramid are of objects, and the objects' boxes.

Letters: B batch, h w a map's height and width, A anchors of a point, n = h w A anchors of a map, in the order y, x, ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.configuration import MaskRcnnConfig
from natjax.configuration.detection import RPN_STDS
from natjax.detection.boxes import decode
from natjax.detection.nms import nms
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import conv
from natjax.nn.spatial import gathered
from natjax_kernels.sharding import reshape_batch

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class Proposals(NamedTuple):
    """Boxes that may be of objects, those of the highest scores first.

    Attributes:
        boxes: [B, N, 4] float32, in the network's pixels; 0 where not valid.
        scores: [B, N] float32, probabilities; 0 where not valid.
        valid: [B, N], whether an entry is a proposal; the others are padding.
    """

    boxes: Float[Array, "B N 4"]
    scores: Float[Array, "B N"]
    valid: Bool[Array, "B N"]


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
            found = (layer(x).astype(jnp.float32) for layer in (self.rpn_cls, self.rpn_reg))
            logit, delta = (gathered(y, (1, 2)) for y in found)  # the best are those of all the map
            anchors = math.prod(logit.shape[1:])
            logits.append(reshape_batch(logit, len(x), anchors))
            deltas.append(reshape_batch(delta, len(x), anchors, 4))
        return logits, deltas


def propose(
    logits: Sequence[Float[Array, "B _"]],
    deltas: Sequence[Float[Array, "B _ 4"]],
    image_sizes: Float[Array, "B 2"],
    *,
    anchors: Sequence[Float[np.ndarray, "_ 4"]],
    pre_nms: int,
    post_nms: int,
    iou_threshold: float,
) -> Proposals:
    """Returns the proposals of all maps, by non-maximum suppression of each map's; no gradient goes through them.

    Equal scores, such as sigmoids that are 1 in float32, are in the order of maps and anchors.

    Args:
        logits: of the anchors of every map.
        deltas: of the same.
        image_sizes: (height, width) without padding, which the proposals are clipped to; those without an area are dropped.
        anchors: of all maps.
        pre_nms: anchors of every map that take part at most, those of the highest scores.
        post_nms: number of proposals.
        iou_threshold: IoU above which the proposal of the lower score is dropped.
    """
    boxes, scores, levels = [], [], []
    for level, (of_logits, of_deltas, of_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
        best, index = jax.lax.top_k(jax.nn.sigmoid(of_logits), min(pre_nms, len(of_anchors)))
        picked = jnp.take_along_axis(of_deltas, index[..., None], axis=1)
        boxes.append(decode(jnp.asarray(of_anchors)[index], picked, RPN_STDS, image_sizes[:, None]))
        scores.append(best)
        levels.append(np.full(best.shape[1], level, np.int32))
    groups = jnp.asarray(np.concatenate(levels))

    def suppress(boxes: Array, scores: Array) -> Proposals:
        has_area = jnp.all(boxes[:, 2:] > boxes[:, :2], axis=-1)
        index, kept = nms(boxes, scores, iou_threshold=iou_threshold, max_kept=post_nms, groups=groups, valid=has_area)
        return Proposals(jnp.where(kept[:, None], boxes[index], 0), jnp.where(kept, scores[index], 0), kept)

    return jax.vmap(suppress)(*(jax.lax.stop_gradient(jnp.concatenate(of_maps, axis=1)) for of_maps in (boxes, scores)))
