"""Object detection and instance segmentation: the feature pyramid, the heads, and the models made of them."""

from natjax.models.detection.mask_rcnn import CascadeMaskRcnnForObjectDetection, MaskRcnnForObjectDetection

__all__ = ["DETECTORS", "CascadeMaskRcnnForObjectDetection", "MaskRcnnForObjectDetection"]

# By the `model_type` of their configurations.
DETECTORS = {
    model.config_class.model_types[0]: model
    for model in (MaskRcnnForObjectDetection, CascadeMaskRcnnForObjectDetection)
}
