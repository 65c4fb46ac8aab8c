"""The published Mask R-CNNs and Cascade Mask R-CNNs: architectures, figures and addresses, of SHI-Labs' detection/ and READMEs.

A backbone is that of a classifier with dilations of its own, as feature maps are larger. All were trained on COCO 2017, 36 epochs
of images with a shorter side of 480 to 800 pixels, over backbones of ImageNet (arXiv 2204.07143, 2209.15001).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig, NatConfig
from natjax.segmentation_presets import FILES, every_second

_CLASSES = 80  # of COCO


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectionPreset:
    """A published detection model.

    Attributes:
        config: its architecture, with as many classes as COCO; `natjax.get_config` adds their names.
        gmacs: published multiply-accumulates of one image of `image_size`, in units of 1e9; the papers call them GFLOPs. None
            where they are not published.
        box_ap: published average precision of boxes on COCO's validation set in percent, over IoU thresholds of 0.5 to 0.95.
        mask_ap: that of masks.
        address: the authors' file of the weights, a .pth.
        image_size: (height, width) in pixels of the published operations.
        hub_id: the published weights on the Hugging Face Hub, where they are not.
        license: of the weights.
    """

    config: MaskRcnnConfig
    gmacs: float | None
    box_ap: float
    mask_ap: float
    address: str
    image_size: tuple[int, int] = (800, 1280)
    hub_id: str | None = None
    license: str = "MIT"


# Backbone: drop path rate, GMACs, box AP, mask AP.
_MASK_RCNN = {
    "nat_mini": (0.2, 225, 46.5, 41.7),
    "nat_tiny": (0.2, 258, 47.7, 42.6),
    "nat_small": (0.35, 330, 48.4, 43.2),
    "dinat_mini": (0.2, 225, 47.2, 42.5),
    "dinat_tiny": (0.2, 258, 48.6, 43.5),
    "dinat_small": (0.35, 330, 49.3, 44.0),
    "dinat_s_tiny": (0.2, None, 46.6, 42.1),
    "dinat_s_small": (0.35, None, 48.6, 43.5),
}
_CASCADE_MASK_RCNN = {
    "nat_mini": (0.2, 704, 50.3, 43.6),
    "nat_tiny": (0.3, 737, 51.4, 44.5),
    "nat_small": (0.3, 809, 52.0, 44.9),
    "nat_base": (0.5, 931, 52.3, 45.1),
    "dinat_mini": (0.2, 704, 51.2, 44.4),
    "dinat_tiny": (0.3, 737, 52.2, 45.1),
    "dinat_small": (0.5, 809, 52.9, 45.8),
    "dinat_base": (0.6, 931, 53.4, 46.2),
    "dinat_large": (0.6, 1276, 55.3, 47.8),
    "dinat_s_tiny": (0.3, None, 51.0, 44.1),
    "dinat_s_small": (0.5, None, 52.3, 45.2),
    "dinat_s_base": (0.6, None, 52.6, 45.3),
    "dinat_s_large": (0.6, None, 54.8, 47.2),
}


def detection_presets(backbones: Mapping[str, NatConfig]) -> dict[str, DetectionPreset]:
    """Returns the published models by name: "mask_rcnn_" or "cascade_mask_rcnn_" and that of their backbone.

    Args:
        backbones: configurations of the classifiers by name.
    """
    presets = {}
    for family, published in ((MaskRcnnConfig, _MASK_RCNN), (CascadeMaskRcnnConfig, _CASCADE_MASK_RCNN)):
        [model_type] = family.model_types
        for name, (drop_path_rate, gmacs, box_ap, mask_ap) in published.items():
            backbone = backbones[name]
            dilations = None if name.startswith("nat") else _dilations(backbone.depths)
            config = family(
                backbone_config=backbone.replace(drop_path_rate=drop_path_rate, dilations=dilations),
                num_labels=_CLASSES,
            )
            presets[f"{model_type}_{name}"] = DetectionPreset(
                config=config, gmacs=gmacs, box_ap=box_ap, mask_ap=mask_ap, address=_address(name, family)
            )
    return presets


def _address(backbone: str, family: type[MaskRcnnConfig]) -> str:
    cascade = family is CascadeMaskRcnnConfig
    if backbone.startswith("nat"):
        return f"{FILES}nat/checkpoints/DET/{backbone}_{'cascademaskrcnn' if cascade else 'maskrcnn'}.pth"
    return f"{FILES}dinat/checkpoints/coco/{'cascadedmaskrcnn' if cascade else 'maskrcnn'}_{backbone}.pth"


def _dilations(depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Returns the dilations of every level's layers: every second is dilated, by what fits a map of 800 x 800 pixels."""
    dilated = (
        (28,),
        (14,) if depths[1] == 2 else (7, 14),
        tuple((3, 5, 7)[i % 3] for i in range(depths[2] // 2)),
        (3, 3),
    )
    return every_second(depths, dilated)
