"""The models: one file per family and one per task; base.py has what they share."""

from natjax.models.backbone import NatBackbone
from natjax.models.base import NatPreTrainedModel
from natjax.models.classification import NatForImageClassification
from natjax.models.create import create_model
from natjax.models.detection import CascadeMaskRcnnForObjectDetection, MaskRcnnForObjectDetection
from natjax.models.nat import NatModel
from natjax.models.upernet import UperNetForSemanticSegmentation

__all__ = [
    "CascadeMaskRcnnForObjectDetection",
    "MaskRcnnForObjectDetection",
    "NatBackbone",
    "NatForImageClassification",
    "NatModel",
    "NatPreTrainedModel",
    "UperNetForSemanticSegmentation",
    "create_model",
]
