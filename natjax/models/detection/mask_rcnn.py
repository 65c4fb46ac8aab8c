"""Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1906.09756): boxes, classes and masks of objects.

As in mmdetection 2.19. A feature pyramid of the backbone's maps has anchors everywhere; the region proposal network makes
proposals of the best ones, a box head classifies and refines each, and a mask head segments what is found. All shapes are fixed,
lists padded and flagged, so that one program does all of it.

Letters: B batch, H W height and width of the images, n anchors of a map, K detections of an image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig
from natjax.detection.anchors import centred_inside, inside, pyramid_anchors
from natjax.models.backbone import NatBackbone
from natjax.models.base import DensePreTrainedModel, checked_pixel_values
from natjax.models.detection.fpn import FeaturePyramid
from natjax.models.detection.roi_heads import RoiHead
from natjax.models.detection.rpn import Proposals, RpnHead, propose
from natjax.models.detection.training import checked_targets, roi_losses, rpn_losses
from natjax.nn.layers import as_rngs
from natjax.nn.spatial import gathered
from natjax.outputs import ObjectDetectionOutput
from natjax_kernels.checks import as_array
from natjax_kernels.sharding import over_batch

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class MaskRcnnForObjectDetection(DensePreTrainedModel):
    """A backbone of natjax with the heads of Mask R-CNN."""

    kind = "detection"
    config_class = MaskRcnnConfig
    config: MaskRcnnConfig

    def _build(self, config: MaskRcnnConfig, *, implementation: str | None, **options: Any) -> None:
        self.backbone = NatBackbone(config.backbone_config, implementation=implementation, **options)
        self.neck = FeaturePyramid(config, self.backbone.channels, **options)
        self.rpn_head = RpnHead(config, **options)
        self.roi_head = RoiHead(config, **options)

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        image_sizes: Int[Array, "B 2"] | None = None,
        scale_factors: Float[Array, "B 4"] | None = None,
        *,
        output_masks: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> ObjectDetectionOutput:
        """Detects objects.

        Args:
            pixel_values: normalised images, floating point, any height and width. Images of several sizes are at the top left of
                their arrays, padded with zeros; as in mmdetection, attention sees the padding. Images may be split over devices,
                see `NatModel`; every device has whole maps of the pyramid then, and computes the heads of all their boxes.
            image_sizes: (height, width) in pixels without the padding, integers; None: the arrays' own. No box goes beyond.
            scale_factors: how many of these pixels one of the original image's has, along x, y, x, y; None: 1. Boxes are divided
                by them, before those that overlap are dropped.
            output_masks: whether to compute the detections' masks.
            output_hidden_states: see `NatBackbone`.
            output_attentions: see `NatBackbone`.
            rngs: see `NatModel`.

        Raises:
            TypeError: an argument is no array.
            ValueError: one does not fit the model or the images; or this is a training view, see `losses`.
        """
        if any(
            not block.batch_norm.use_running_average for head in self.roi_head.bbox_head for block in head.shared_convs
        ):
            raise ValueError(
                "A model detects by its running statistics, and this view of it has use_running_average=False. Call its losses "
                "to train it, or nnx.view(model, deterministic=True, use_running_average=True) to detect."
            )
        pixel_values = checked_pixel_values(pixel_values, self.config.trunk)
        image_sizes = checked_image_sizes(image_sizes, pixel_values.shape)
        scale_factors = checked_scale_factors(scale_factors, len(pixel_values))
        want_states, want_attentions = self.outputs_wanted(output_hidden_states, output_attentions)
        outputs = self.backbone(
            pixel_values, output_hidden_states=want_states, output_attentions=want_attentions, rngs=rngs
        )
        with jax.named_scope("neck"):
            pyramid = self.neck(outputs.feature_maps)
        with jax.named_scope("rpn_head"):
            proposals = self.propose(pyramid, *self.rpn_head(pyramid), image_sizes)
        with jax.named_scope("roi_head"):
            maps = [gathered(x, (1, 2)) for x in pyramid[:-1]]
            stages = self.roi_head.stages(maps, proposals.boxes, proposals.valid, image_sizes)
            found = self.roi_head.detections(stages, proposals.valid, image_sizes, scale_factors)
            masks = None
            if output_masks:
                masks = self.roi_head.masks(maps, found.boxes * scale_factors[:, None], found.labels)
        return ObjectDetectionOutput(
            **found._asdict(), masks=masks, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def losses(
        self,
        pixel_values: Float[Array, "B H W C"],
        labels: Mapping[str, Array],
        image_sizes: Int[Array, "B 2"] | None = None,
        padded_sizes: Int[Array, "B 2"] | None = None,
        *,
        rngs: nnx.Rngs | Array,
    ) -> dict[str, Float[Array, ""]]:
        """Returns the losses of training by mmdetection's names, weighted, and their sum, "loss".

        A cascade's box heads have batch statistics, which a training view takes of the proposals that it learns from:

            train = nnx.view(model, deterministic=False, use_running_average=False, raise_if_not_found=False)

        Args:
            pixel_values: as in `__call__`.
            labels: the objects of the images, with G places for each image: "boxes", x1, y1, x2, y2 in pixels, floating point
                [B, G, 4]; "class_labels", class indices, integers [B, G]; "masks", bool [B, G, H, W]; "valid", which places
                have an object, bool [B, G]. Drop objects whose box has no finite sides above 0: they are an error, and count as
                no object where the labels are traced.
            image_sizes: as in `__call__`.
            padded_sizes: (height, width) that anchors which learn are centred in, integers; None: the arrays' own. In mmdetection
                it is each image's size up to the next multiple of 32. How far they reach is `config.rpn_anchor_border`'s matter.
            rngs: `nnx.Rngs` or a `jax.random.key` of the anchors and proposals that are chosen, and of dropouts.

        Raises:
            TypeError: an argument is no array.
            ValueError: one does not fit the model or the images, or there are no rngs.
        """
        config, streams = self.config, as_rngs(rngs)
        if streams is None:
            raise ValueError("losses are those of a random choice of boxes; pass rngs, a jax.random.key or nnx.Rngs.")
        pixel_values = checked_pixel_values(pixel_values, config.trunk)
        targets = checked_targets(labels, pixel_values.shape, config.num_labels or 0)
        image_sizes = checked_image_sizes(image_sizes, pixel_values.shape)
        padded_sizes = checked_image_sizes(padded_sizes, pixel_values.shape, "padded_sizes")
        of_anchors, of_proposals = jax.random.split(streams.dropout())
        pyramid = self.neck(self.backbone(pixel_values, rngs=streams).feature_maps)
        logits, deltas = self.rpn_head(pyramid)
        proposals = self.propose(pyramid, logits, deltas, image_sizes, training=True)
        anchors, border = np.concatenate(self.anchors(pyramid)), config.rpn_anchor_border
        usable = centred_inside(anchors, padded_sizes)
        if border is not None:
            usable &= inside(anchors, image_sizes, border)
        logits, deltas = (jnp.concatenate(of_maps, axis=1) for of_maps in (logits, deltas))
        losses = rpn_losses(config, anchors, usable, logits, deltas, targets, of_anchors)
        maps = [gathered(x, (1, 2)) for x in pyramid[:-1]]
        losses |= roi_losses(self.roi_head, maps, proposals.boxes, proposals.valid, targets, image_sizes, of_proposals)
        return {"loss": jnp.sum(jnp.stack(list(losses.values()))), **losses}

    def anchors(self, pyramid: Sequence[Float[Array, "B _ _ C"]]) -> list[np.ndarray]:
        """Returns the anchors of every map of the pyramid, float32 [n, 4]."""
        config = self.config
        sizes = [(x.shape[1], x.shape[2]) for x in pyramid]
        return pyramid_anchors(sizes, config.strides, config.anchor_scale, config.anchor_ratios)

    def propose(
        self,
        pyramid: Sequence[Float[Array, "B _ _ C"]],
        logits: Sequence[Float[Array, "B _"]],
        deltas: Sequence[Float[Array, "B _ 4"]],
        image_sizes: Float[Array, "B 2"],
        *,
        training: bool = False,
    ) -> Proposals:
        """Returns proposals, as many as in inference or as in training, of what `rpn_head` makes of the pyramid."""
        config = self.config
        of_images = functools.partial(
            propose,
            anchors=self.anchors(pyramid),
            pre_nms=config.train_rpn_pre_nms if training else config.rpn_pre_nms,
            post_nms=config.train_rpn_post_nms if training else config.rpn_post_nms,
            iou_threshold=config.rpn_nms_threshold,
        )
        return over_batch(of_images, (list(logits), list(deltas), image_sizes))


class CascadeMaskRcnnForObjectDetection(MaskRcnnForObjectDetection):
    """A backbone of natjax with the heads of Cascade Mask R-CNN: every stage refines the boxes of the one before it."""

    config_class = CascadeMaskRcnnConfig


def checked_image_sizes(image_sizes: Any, shape: tuple[int, ...], name: str = "image_sizes") -> Float[Array, "B 2"]:
    """Returns the images' sizes without padding, float32, those of their arrays where None.

    Args:
        image_sizes: integers [B, 2], (height, width), or None.
        shape: of the pixel values, [B, H, W, C].
        name: of the argument.

    Raises:
        TypeError: image_sizes is no array.
        ValueError: it has another shape or dtype, or (where it is not traced) a size that no such image has.
    """
    batch, *size = shape[:3]
    if image_sizes is None:
        return jnp.broadcast_to(jnp.asarray(size, jnp.float32), (batch, 2))
    sizes = as_array(name, image_sizes)
    expected = f"{name} must be integers [{batch}, 2], the (height, width) of every image without padding"
    if sizes.shape != (batch, 2) or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(f"{expected}; got {sizes.dtype} of shape {sizes.shape}.")
    if not isinstance(sizes, jax.core.Tracer):
        values = np.asarray(sizes)
        if (values < 1).any() or (values > size).any():
            raise ValueError(f"{expected}, from 1 to the {size} of the pixel values; got {values.tolist()}.")
    return sizes.astype(jnp.float32)


def checked_scale_factors(scale_factors: Any, batch: int) -> Float[Array, "B 4"]:
    """Returns what boxes are divided by, float32, 1 where None.

    Args:
        scale_factors: floating point [B, 4], or None.
        batch: B.

    Raises:
        TypeError: scale_factors is no array.
        ValueError: it has another shape or dtype, or (where it is not traced) a factor that is not finite and positive.
    """
    if scale_factors is None:
        return jnp.ones((batch, 4), jnp.float32)
    factors = as_array("scale_factors", scale_factors)
    expected = f"scale_factors must be floating point [{batch}, 4], pixels of the resized per one of the original image"
    if factors.shape != (batch, 4) or not jnp.issubdtype(factors.dtype, jnp.floating):
        raise ValueError(f"{expected}; got {factors.dtype} of shape {factors.shape}.")
    if not isinstance(factors, jax.core.Tracer):
        values = np.asarray(factors)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{expected}, finite and positive; got {values.tolist()}.")
    return factors.astype(jnp.float32)
