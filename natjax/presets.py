"""The published variants by name: a new variant is one entry of `PRESETS`.

Architectures, figures and addresses: SHI-Labs' classification/nat.py, dinat.py, dinats.py, isotropic.py, NAT.md and DiNAT.md
(arXiv 2204.07143, 2209.15001). The weights of NAT and DiNAT are on the Hugging Face Hub, too, under their authors' name, with the
licence of the repository.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from natjax.configuration import DinatSConfig, NatConfig, NatIsotropicConfig, VitRpbConfig
from natjax.detection_presets import detection_presets
from natjax.labels import ade20k, coco, imagenet_1k, imagenet_22k
from natjax.segmentation_presets import FILES, segmentation_presets
from natjax.text import did_you_mean

_CLASSES_1K, _CLASSES_22K = 1000, 21841
_ARCHITECTURE = (
    *("patch_size", "embed_dim", "depths", "num_heads", "kernel_size", "dilations", "mlp_ratio", "qkv_bias"),
    "hidden_act",
)
_NAT_FILES = f"{FILES}nat/checkpoints/CLS/"
_DINAT_FILES = f"{FILES}dinat/checkpoints/"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # per channel, of pixels 0..1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A published variant.

    Attributes:
        config: its architecture, with as many classes as ImageNet-1k or -22k; `get_config` adds their names.
        image_size: side, in pixels, of the images of the published figures.
        crop_pct: `image_size` as a part of the side that images are resized to before they are cropped to it.
        gmacs: published multiply-accumulates of one image, in units of 1e9; the papers call them GFLOPs.
        top1: published ImageNet-1k top-1 accuracy in percent; None for a classifier of ImageNet-22k.
        hub_id: the published weights on the Hugging Face Hub; None where they are not there.
        address: the authors' file of the weights, a .pth.
        license: of the weights.
    """

    config: NatConfig
    image_size: int
    crop_pct: float
    gmacs: float
    top1: float | None
    address: str
    hub_id: str | None = None
    license: str = "MIT"


def _dilations(depths: Sequence[int], most: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """DiNAT alternates local layers with dilated ones: dilation 1, then the level's own, and so on."""
    return tuple(tuple(most[i] if j % 2 else 1 for j in range(depth)) for i, depth in enumerate(depths))


def _preset(
    embed_dim: int,
    third_depth: int,
    mlp_ratio: float,
    drop_path_rate: float,
    *,
    gmacs: float,
    top1: float,
    hub: str,
    file: str | None = None,
    dilations: Sequence[int] | None = None,
    layer_scale: float = 0.0,
    kernel_size: int = 7,
    image_size: int = 224,
    crop_pct: float = 0.875,
) -> Preset:
    depths = (3, 4, third_depth, 5)
    config = NatConfig(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=tuple(embed_dim // 32 * 2**i for i in range(4)),  # heads have 32 channels throughout
        kernel_size=kernel_size,
        dilations=None if dilations is None else _dilations(depths, dilations),
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
        layer_scale_init_value=layer_scale,
        num_labels=_CLASSES_1K,
    )
    return Preset(
        config=config,
        image_size=image_size,
        crop_pct=crop_pct,
        gmacs=gmacs,
        top1=top1,
        hub_id=f"shi-labs/{hub}",
        address=(_NAT_FILES if dilations is None else f"{_DINAT_FILES}imagenet1k/")
        + (file or f"{hub.replace('-', '_')}.pth"),
    )


def _dinat_s(
    embed_dim: int,
    third_depth: int,
    drop_path_rate: float,
    *,
    gmacs: float,
    top1: float | None,
    file: str,
    dilations: Sequence[int] = (8, 4, 2, 1),
    num_labels: int = _CLASSES_1K,
    image_size: int = 224,
    crop_pct: float = 0.875,
) -> Preset:
    depths = (2, 2, third_depth, 2)
    config = DinatSConfig(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=tuple(embed_dim // 32 * 2**i for i in range(4)),
        dilations=_dilations(depths, dilations),
        drop_path_rate=drop_path_rate,
        num_labels=num_labels,
    )
    address = f"{_DINAT_FILES}{file}.pth"
    return Preset(config=config, image_size=image_size, crop_pct=crop_pct, gmacs=gmacs, top1=top1, address=address)


def _isotropic(
    name: str, family: type[NatIsotropicConfig], base: bool, *, gmacs: float, top1: float, **fields: Any
) -> Preset:
    dim, drop_path_rate = (768, 0.4) if base else (384, 0.1)
    config = family(
        embed_dim=dim, num_heads=(dim // 32,), drop_path_rate=drop_path_rate, num_labels=_CLASSES_1K, **fields
    )
    address = f"{_DINAT_FILES}isotropic/{name}_{'base' if base else 'small'}_in1k_224.pth"
    return Preset(config=config, image_size=224, crop_pct=0.875, gmacs=gmacs, top1=top1, address=address)


_MINI, _TINY, _SMALL = (64, 6, 3.0, 0.2), (64, 18, 3.0, 0.2), (96, 18, 2.0, 0.3)
_BASE, _LARGE = (128, 18, 2.0, 0.5), (192, 18, 2.0, 0.35)
_dinat = functools.partial(_preset, dilations=(8, 4, 2, 1))  # of the dilated layers, by level
_DINAT_S_LARGE = (192, 18, 0.35)
_nat_iso = functools.partial(_isotropic, "nat_isotropic", NatIsotropicConfig)
_dinat_iso = functools.partial(_isotropic, "dinat_isotropic", NatIsotropicConfig, dilations=_dilations((12,), (2,)))
_vitrpb = functools.partial(_isotropic, "vitrpb", VitRpbConfig)

PRESETS = {
    "nat_mini": _preset(*_MINI, gmacs=2.7, top1=81.8, hub="nat-mini-in1k-224", file="nat_mini.pth"),
    "nat_tiny": _preset(*_TINY, gmacs=4.3, top1=83.2, hub="nat-tiny-in1k-224", file="nat_tiny.pth"),
    "nat_small": _preset(
        *_SMALL, layer_scale=1e-5, gmacs=7.8, top1=83.7, hub="nat-small-in1k-224", file="nat_small.pth"
    ),
    "nat_base": _preset(*_BASE, layer_scale=1e-5, gmacs=13.7, top1=84.3, hub="nat-base-in1k-224", file="nat_base.pth"),
    "dinat_mini": _dinat(*_MINI, gmacs=2.7, top1=81.8, hub="dinat-mini-in1k-224"),
    "dinat_tiny": _dinat(*_TINY, gmacs=4.3, top1=82.7, hub="dinat-tiny-in1k-224"),
    "dinat_small": _dinat(*_SMALL, gmacs=7.8, top1=83.8, hub="dinat-small-in1k-224"),
    "dinat_base": _dinat(*_BASE, layer_scale=1e-5, gmacs=13.7, top1=84.4, hub="dinat-base-in1k-224"),
    "dinat_large": _dinat(*_LARGE, gmacs=30.6, top1=86.6, hub="dinat-large-in22k-in1k-224"),
    "dinat_large_384": _dinat(
        *_LARGE,
        dilations=(13, 6, 3, 1),
        image_size=384,
        crop_pct=1.0,
        gmacs=89.7,
        top1=87.4,
        hub="dinat-large-in22k-in1k-384",
    ),
    "dinat_large_384_11x11": _dinat(
        *_LARGE,
        kernel_size=11,
        image_size=384,
        crop_pct=1.0,
        gmacs=92.4,
        top1=87.5,
        hub="dinat-large-11x11-in22k-in1k-384",
        file="dinat_large_in22k_in1k_384_11x11.pth",
    ),
    "dinat_s_tiny": _dinat_s(96, 6, 0.2, gmacs=4.5, top1=81.8, file="imagenet1k/dinat_s_tiny_in1k_224"),
    "dinat_s_small": _dinat_s(96, 18, 0.3, gmacs=8.7, top1=83.5, file="imagenet1k/dinat_s_small_in1k_224"),
    "dinat_s_base": _dinat_s(128, 18, 0.5, gmacs=15.4, top1=83.8, file="imagenet1k/dinat_s_base_in1k_224"),
    "dinat_s_large": _dinat_s(*_DINAT_S_LARGE, gmacs=34.5, top1=86.5, file="imagenet1k/dinat_s_large_in1k_224"),
    "dinat_s_large_384": _dinat_s(
        *_DINAT_S_LARGE,
        dilations=(13, 6, 3, 1),
        image_size=384,
        crop_pct=1.0,
        gmacs=101.5,
        top1=87.4,
        file="imagenet1k/dinat_s_large_in1k_384",
    ),
    "dinat_s_large_22k": _dinat_s(
        192, 18, 0.2, num_labels=_CLASSES_22K, gmacs=34.5, top1=None, file="imagenet22k/dinat_s_large_in22k_224"
    ),
    "nat_isotropic_small": _nat_iso(base=False, gmacs=4.3, top1=80.0),
    "nat_isotropic_base": _nat_iso(base=True, gmacs=16.9, top1=81.6),
    "dinat_isotropic_small": _dinat_iso(base=False, gmacs=4.3, top1=80.8),
    "dinat_isotropic_base": _dinat_iso(base=True, gmacs=16.9, top1=82.1),
    "vitrpb_small": _vitrpb(base=False, gmacs=4.6, top1=81.2),
    "vitrpb_base": _vitrpb(base=True, gmacs=17.5, top1=82.5),
}


_BACKBONES = {name: preset.config for name, preset in PRESETS.items()}
SEGMENTATION_PRESETS = segmentation_presets(_BACKBONES)
DETECTION_PRESETS = detection_presets(_BACKBONES)
# All by name: image classifiers, then segmentation and detection models.
ALL_PRESETS: Mapping[str, Any] = ChainMap[str, Any](DETECTION_PRESETS, SEGMENTATION_PRESETS, PRESETS)


def preset_of(config: NatConfig) -> Preset | None:
    """Returns the preset of a model's architecture, whatever its channels and regularisation, or None.

    Of several the one with as many classes, or else the first.
    """

    def architecture(config: NatConfig) -> tuple[Any, ...]:
        same = (getattr(config, name) for name in _ARCHITECTURE)
        return type(config), *same, config.layer_scale_init_value > 0

    fitting = [preset for preset in PRESETS.values() if architecture(preset.config) == architecture(config)]
    return max(fitting, key=lambda preset: preset.config.num_labels == config.num_labels, default=None)


def list_models(pattern: str | None = None) -> list[str]:
    """Returns the names of the presets: those that match a pattern ("dinat_*") or contain a text ("tiny"), or all."""
    if pattern is not None and not any(letter in pattern for letter in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in ALL_PRESETS if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def get_config(name: str, **changes: Any) -> Any:
    """Returns the configuration of a preset, with fields changed where given: a `UperNetConfig` for a segmentation model,
    a `MaskRcnnConfig` or `CascadeMaskRcnnConfig` for a detection model.

    Classifiers have the classes of ImageNet-1k (of ImageNet-22k in `dinat_s_large_22k`), segmentation models those of ADE20K,
    detection models those of COCO, unless `num_labels` or `id2label` is given: then those of `id2label`, or LABEL_0 and so on.
    A classifier's `num_labels=21841` means ImageNet-22k, on which the Large variants were pre-trained, and gives its names.

    Raises:
        ValueError: there is no such preset, or the changes are impossible.
    """
    if name not in ALL_PRESETS:
        hint = did_you_mean(str(name), ALL_PRESETS, cutoff=0.5)
        raise ValueError(f"There is no model named {name!r}.{hint} There are: {', '.join(ALL_PRESETS)}.")
    given = {"num_labels", "id2label", "label2id"} & set(changes)
    if name not in PRESETS:
        names = ade20k() if name in SEGMENTATION_PRESETS else coco()
        classes = {} if given else {"id2label": dict(enumerate(names))}
        return ALL_PRESETS[name].config.replace(**classes, **changes)
    if not given:
        changes["num_labels"] = PRESETS[name].config.num_labels
    if not given and changes["num_labels"] == _CLASSES_1K:
        changes["id2label"] = dict(enumerate(imagenet_1k()))
    elif given <= {"num_labels"} and changes["num_labels"] == _CLASSES_22K:
        changes["id2label"] = dict(enumerate(imagenet_22k()))
    return PRESETS[name].config.replace(**changes)
