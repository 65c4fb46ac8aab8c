"""Object detection and instance segmentation: the feature pyramid, the heads, and the models made of them."""

from natjax.models.detection.mask_rcnn import CascadeMaskRcnnForObjectDetection, MaskRcnnForObjectDetection

__all__ = ["CascadeMaskRcnnForObjectDetection", "MaskRcnnForObjectDetection"]
