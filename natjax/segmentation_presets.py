"""The published UPerNets: their architectures, figures and addresses, of SHI-Labs' segmentation/ folder and READMEs.

A backbone is that of a classifier with dilations of its own, as feature maps are larger. All were trained on ADE20K, 160,000
iterations of 16 images of 512 x 512 pixels, over backbones of ImageNet (arXiv 2204.07143, 2209.15001).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from natjax.configuration import NatConfig, UperNetConfig

_CLASSES = 150  # of ADE20K
FILES = "https://shi-labs.com/projects/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationPreset:
    """A published segmentation model.

    Attributes:
        config: its architecture, with as many classes as ADE20K; `natjax.get_config` adds their names.
        gmacs: published multiply-accumulates of one image of `image_size`, in units of 1e9; the papers call them GFLOPs. None
            where they are not published.
        miou: published mean intersection over union on ADE20K's validation set in percent, images at one scale.
        miou_multi_scale: the same, averaged over several scales and mirror images.
        address: the authors' file of the weights, a .pth.
        image_size: (height, width) in pixels of the published operations.
        hub_id: the published weights on the Hugging Face Hub, where they are not.
        license: of the weights.
    """

    config: UperNetConfig
    gmacs: float | None
    miou: float
    miou_multi_scale: float
    address: str
    image_size: tuple[int, int]
    hub_id: str | None = None
    license: str = "MIT"


# Name: drop path rate, GMACs, mIoU, mIoU at several scales.
_PUBLISHED = {
    "nat_mini": (0.2, 900, 45.1, 46.4),
    "nat_tiny": (0.3, 934, 47.1, 48.4),
    "nat_small": (0.5, 1010, 48.0, 49.5),
    "nat_base": (0.5, 1137, 48.5, 49.7),
    "dinat_mini": (0.2, 900, 45.8, 47.2),
    "dinat_tiny": (0.3, 934, 47.8, 48.8),
    "dinat_small": (0.5, 1010, 48.9, 49.9),
    "dinat_base": (0.5, 1137, 49.6, 50.4),
    "dinat_large": (0.3, 2335, 54.0, 54.9),
    "dinat_s_tiny": (0.3, None, 46.0, 47.4),
    "dinat_s_small": (0.3, None, 48.6, 49.9),
    "dinat_s_base": (0.3, None, 49.4, 50.2),
    "dinat_s_large": (0.3, None, 53.4, 54.6),
}


def segmentation_presets(backbones: Mapping[str, NatConfig]) -> dict[str, SegmentationPreset]:
    """Returns the published models by name, "upernet_" and that of their backbone.

    Args:
        backbones: configurations of the classifiers by name.
    """
    presets = {}
    for name, (drop_path_rate, gmacs, miou, miou_multi_scale) in _PUBLISHED.items():
        backbone = backbones[name]
        dilations = None if name.startswith("nat") else _dilations(backbone.depths, large=name.endswith("large"))
        config = UperNetConfig(
            backbone_config=backbone.replace(drop_path_rate=drop_path_rate, dilations=dilations), num_labels=_CLASSES
        )
        nat = name.startswith("nat")
        file = f"nat/checkpoints/SEG/{name}_upernet.pth" if nat else f"dinat/checkpoints/ade20k/upernet_{name}.pth"
        presets[f"upernet_{name}"] = SegmentationPreset(
            config=config,
            gmacs=gmacs,
            miou=miou,
            miou_multi_scale=miou_multi_scale,
            address=FILES + file,
            image_size=(640, 2560) if name.endswith("large") else (512, 2048),
        )
    return presets


def _dilations(depths: Sequence[int], *, large: bool) -> tuple[tuple[int, ...], ...]:
    """Returns the dilations of every level's layers: every second is dilated, by what fits a map of 512 x 512 pixels.

    (Of 640 x 640 the largest, as their configs have it.)
    """
    first, second, third = (20, 10, (2, 3, 4, 5)) if large else (16, 8, (2, 3, 4))
    dilated = (
        (first,),
        (second,) if depths[1] == 2 else (second // 2, second),
        tuple(third[i % len(third)] for i in range(depths[2] // 2)),
        (2, 2),
    )
    if large:
        dilated = (*dilated[:2], (*dilated[2][:-1], third[-1]), dilated[3])  # the last is the largest
    return every_second(depths, dilated)


def every_second(depths: Sequence[int], dilated: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Returns the dilations of all layers by level, of those of every second one; the others are not dilated."""
    return tuple(
        tuple(level[j // 2] if j % 2 else 1 for j in range(depth)) for depth, level in zip(depths, dilated, strict=True)
    )
