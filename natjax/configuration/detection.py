"""Configurations of Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1906.09756): boxes and masks of objects.

The defaults are those of the published models over NAT and DiNAT, trained with mmdetection 2.19. A config.json is natjax's own,
as Hugging Face has neither model. Sizes are in pixels of the network's input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from natjax.configuration.checks import MAX_SIZE, expect_int, expect_number
from natjax.configuration.dense import DenseConfig

BOX_LOSSES = ("l1", "giou")

# What every model has, and no field says.
BOX_SIDE, MASK_SIDE = 7, 14  # of a region's features in box and mask heads; masks have twice that
RPN_STDS = (1.0, 1.0, 1.0, 1.0)  # of the deltas of anchors
RPN_IOUS = {
    "positive": 0.7,
    "negative": 0.3,
    "minimum": 0.3,
}  # which anchors learn: see natjax.detection.matching.match

_STDS = (0.1, 0.1, 0.2, 0.2)
_COUNTS = (
    "fpn_channels",
    "rpn_channels",
    "box_conv_channels",
    "box_fc_channels",
    "mask_channels",
    "rpn_pre_nms",
    "rpn_post_nms",
    "max_detections",
    "train_rpn_pre_nms",
    "train_rpn_post_nms",
    "rpn_batch_size",
    "box_batch_size",
)
_FRACTIONS = (
    "rpn_nms_threshold",
    "score_threshold",
    "nms_threshold",
    "mask_threshold",
    "rpn_positive_fraction",
    "box_positive_fraction",
)
_NOT_NEGATIVE = ("initializer_range", "rpn_smooth_l1_beta", "box_loss_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRcnnConfig(DenseConfig):
    """A Mask R-CNN: its heads, how they are run and trained, and its backbone and classes as in `DenseConfig`.

    A box head is called a stage; Mask R-CNN has one. What its stages differ in is a tuple with an entry for each.

    Attributes:
        fpn_channels: channels of the feature pyramid.
        rpn_channels: channels of the region proposal network.
        initializer_range: standard deviation of the normal initialiser of proposals' layers and of classes' scores, see
            `classifier_range`; of other layers it follows from their sizes, as in mmdetection.
        anchor_scale: side of a square anchor per stride of its map.
        anchor_ratios: height per width of the anchors of a point.
        box_num_convs: 3 x 3 convolutions of a box head, each with batch normalisation.
        box_conv_channels: their channels.
        box_num_fcs: linear layers of a box head before its scores and boxes.
        box_fc_channels: their channels.
        box_stds: of every stage, what its four box deltas are multiplied by.
        mask_num_convs: 3 x 3 convolutions of a mask head.
        mask_channels: their channels.
        rpn_pre_nms: anchors of every map of the pyramid, at most, that go into the suppression of proposals.
        rpn_post_nms: proposals of an image, at most.
        rpn_nms_threshold: IoU above which the proposal of the lower score is dropped.
        score_threshold: scores above it are detections.
        nms_threshold: IoU above which the detection of the lower score is dropped, among those of a class.
        max_detections: detections of an image, at most.
        mask_threshold: probability from which on a pixel is part of an object.
        train_rpn_pre_nms: as `rpn_pre_nms`, in training.
        train_rpn_post_nms: as `rpn_post_nms`, in training.
        rpn_batch_size: anchors of an image that the loss is of.
        rpn_positive_fraction: how many of them, at most, are of objects.
        rpn_anchor_border: how far an anchor that the loss is of may reach beyond the image; None allows any.
        rpn_smooth_l1_beta: where the loss of proposals' boxes turns from quadratic to linear; 0 is the L1 loss.
        box_batch_size: proposals of an image that the losses are of.
        box_positive_fraction: how many of them, at most, are of objects.
        box_iou_thresholds: of every stage, the IoU from which on a proposal is of an object.
        box_low_quality_matches: whether an object of which no proposal is by that threshold has the best ones.
        box_loss: "l1" of the deltas, or "giou" of the boxes.
        box_loss_weight: its weight.
        stage_loss_weights: of every stage, the weight of its losses.

    Raises:
        ValueError: a field, or a combination of them, is impossible; the message names field, value and expectation.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mask_rcnn",)
    title: ClassVar[str] = "Mask R-CNN"
    does: ClassVar[str] = "detects"

    fpn_channels: int = 256
    rpn_channels: int = 256
    initializer_range: float = 0.01
    anchor_scale: float = 8
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_num_convs: int = 0
    box_conv_channels: int = 256
    box_num_fcs: int = 2
    box_fc_channels: int = 1024
    box_stds: tuple[tuple[float, float, float, float], ...] = (_STDS,)
    mask_num_convs: int = 4
    mask_channels: int = 256
    rpn_pre_nms: int = 1000
    rpn_post_nms: int = 1000
    rpn_nms_threshold: float = 0.7
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    mask_threshold: float = 0.5
    train_rpn_pre_nms: int = 2000
    train_rpn_post_nms: int = 1000
    rpn_batch_size: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_anchor_border: int | None = None
    rpn_smooth_l1_beta: float = 0.0
    box_batch_size: int = 512
    box_positive_fraction: float = 0.25
    box_iou_thresholds: tuple[float, ...] = (0.5,)
    box_low_quality_matches: bool = True
    box_loss: str = "l1"
    box_loss_weight: float = 1.0
    stage_loss_weights: tuple[float, ...] = (1.0,)

    __hash__ = DenseConfig.__hash__

    @property
    def num_stages(self) -> int:
        """Number of box heads, each with a mask head of its own."""
        return len(self.box_stds)

    @property
    def box_positive_size(self) -> int:
        """Proposals of an image, at most, that learn boxes and masks: the part of `box_batch_size` that is of objects."""
        return int(self.box_batch_size * self.box_positive_fraction)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the points of every map of the pyramid: one map per level of the backbone, and a coarser one."""
        return tuple(self.trunk.patch_size * 2**i for i in range(self.trunk.num_levels + 1))

    def classifier_range(self, layer: str) -> float:
        """Returns the standard deviation of the initial kernel of a layer with outputs per class: mmdetection's.

        Of boxes a tenth of the scores'; of masks He's (arXiv 1502.01852) of as many outputs.
        """
        if layer == "conv_logits":
            return math.sqrt(2 / max(self.num_labels or 0, 1))
        return self.initializer_range / 10 if layer == "fc_reg" else self.initializer_range

    def _check_heads(self) -> None:
        for name in _COUNTS:
            expect_int(name, getattr(self, name), minimum=1, maximum=MAX_SIZE)
        for name in ("box_num_convs", "box_num_fcs", "mask_num_convs"):
            expect_int(name, getattr(self, name), minimum=0, maximum=100)
        for name in _FRACTIONS:
            _expect_fraction(name, getattr(self, name))
        for name in _NOT_NEGATIVE:
            expect_number(name, getattr(self, name))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")
        if not self.box_positive_size:
            raise ValueError(
                f"box_positive_fraction must leave 1 at least of the {self.box_batch_size} proposals of box_batch_size to "
                f"objects; got {self.box_positive_fraction}."
            )
        if self.rpn_anchor_border is not None:
            expect_int("rpn_anchor_border", self.rpn_anchor_border, minimum=0, maximum=MAX_SIZE)
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {', '.join(BOX_LOSSES)}; got {self.box_loss!r}.")
        _expect_positive("anchor_scale", self.anchor_scale)
        self._set(anchor_ratios=_positive_tuple("anchor_ratios", self.anchor_ratios))
        self._check_stages()

    def _check_stages(self) -> None:
        stds = _sequence("box_stds", self.box_stds)
        self._set(box_stds=tuple(_positive_tuple(f"box_stds[{i}]", entry, 4) for i, entry in enumerate(stds)))
        for name in ("box_iou_thresholds", "stage_loss_weights"):
            values = _positive_tuple(name, getattr(self, name))
            if len(values) != self.num_stages:
                raise ValueError(
                    f"{name} needs an entry for each of the {self.num_stages} stages of box_stds; got {values}."
                )
            self._set(**{name: values})
        for value in self.box_iou_thresholds:
            _expect_fraction("entries of box_iou_thresholds", value)
        if self.model_type == "mask_rcnn" and self.num_stages != 1:
            raise ValueError(
                f"box_stds: a Mask R-CNN has one stage; got {self.num_stages}. CascadeMaskRcnnConfig has several."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeMaskRcnnConfig(MaskRcnnConfig):
    """A Cascade Mask R-CNN: stages that refine each other's boxes. The fields are those of `MaskRcnnConfig`."""

    model_types: ClassVar[tuple[str, ...]] = ("cascade_mask_rcnn",)
    title: ClassVar[str] = "Cascade Mask R-CNN"

    box_num_convs: int = 4
    box_num_fcs: int = 1
    box_stds: tuple[tuple[float, float, float, float], ...] = (
        _STDS,
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    )
    train_rpn_post_nms: int = 2000
    rpn_anchor_border: int | None = 0
    rpn_smooth_l1_beta: float = 1 / 9
    box_iou_thresholds: tuple[float, ...] = (0.5, 0.6, 0.7)
    box_low_quality_matches: bool = False
    box_loss: str = "giou"
    box_loss_weight: float = 10.0
    stage_loss_weights: tuple[float, ...] = (1.0, 0.5, 0.25)

    __hash__ = DenseConfig.__hash__


def _expect_fraction(name: str, value: Any) -> None:
    expect_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1]; got {value}.")


def _expect_positive(name: str, value: Any) -> None:
    expect_number(name, value)
    if not 0 < value <= MAX_SIZE:
        raise ValueError(f"{name} must be positive and at most {MAX_SIZE}; got {value}.")


def _sequence(name: str, values: Any, length: int | None = None) -> tuple[Any, ...]:
    """Returns a field as a tuple of so many entries, of at least one where None."""
    wrong = isinstance(values, str) or not isinstance(values, Sequence)
    if wrong or not values or len(values) != (length or len(values)):
        raise ValueError(f"{name} must be a sequence of {length or 'one or more'} entries; got {values!r}.")
    return tuple(values)


def _positive_tuple(name: str, values: Any, length: int | None = None) -> tuple[Any, ...]:
    values = _sequence(name, values, length)
    for value in values:
        _expect_positive(f"entries of {name}", value)
    return values
