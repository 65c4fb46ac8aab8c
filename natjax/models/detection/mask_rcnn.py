"""Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1906.09756): boxes, classes and masks of objects.

As in mmdetection 2.19. A feature pyramid of the backbone's maps has anchors everywhere; the region proposal network makes
proposals of the best ones, a box head classifies and refines each, and a mask head segments what is found.
"""

from __future__ import annotations

from typing import Any

from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig
from natjax.models.backbone import NatBackbone
from natjax.models.base import NatPreTrainedModel
from natjax.models.detection.fpn import FeaturePyramid
from natjax.models.detection.roi_heads import RoiHead
from natjax.models.detection.rpn import RpnHead


class MaskRcnnForObjectDetection(NatPreTrainedModel):
    """A backbone of natjax with the heads of Mask R-CNN."""

    kind = "detection"
    config_class = MaskRcnnConfig
    config: MaskRcnnConfig

    def _build(self, config: MaskRcnnConfig, *, implementation: str | None, **options: Any) -> None:
        self.backbone = NatBackbone(config.backbone_config, implementation=implementation, **options)
        self.neck = FeaturePyramid(config, self.backbone.channels, **options)
        self.rpn_head = RpnHead(config, **options)
        self.roi_head = RoiHead(config, **options)


class CascadeMaskRcnnForObjectDetection(MaskRcnnForObjectDetection):
    """A backbone of natjax with the heads of Cascade Mask R-CNN: every stage refines the boxes of the one before it."""

    config_class = CascadeMaskRcnnConfig
