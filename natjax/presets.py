"""The published variants by name: a new variant is one entry of `PRESETS`.

Architectures and figures: SHI-Labs' classification/nat.py, dinat.py, NAT.md and DiNAT.md (arXiv 2204.07143, 2209.15001).
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from natjax.configuration import NatConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # per channel, of pixels 0..1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A published variant.

    Attributes:
        config: its architecture, with ImageNet-1k's 1000 classes.
        image_size: side, in pixels, of the images of the published figures.
        gflops: published multiply-accumulates of one image, in units of 1e9.
        top1: published ImageNet-1k top-1 accuracy in percent.
    """

    config: NatConfig
    image_size: int
    gflops: float
    top1: float


def _dilations(depths: Sequence[int], most: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """DiNAT alternates local layers with dilated ones: dilation 1, then the level's own, and so on."""
    return tuple(tuple(most[i] if j % 2 else 1 for j in range(depth)) for i, depth in enumerate(depths))


def _preset(
    embed_dim: int,
    third_depth: int,
    mlp_ratio: float,
    drop_path_rate: float,
    *,
    gflops: float,
    top1: float,
    dilations: Sequence[int] | None = None,
    layer_scale: float = 0.0,
    kernel_size: int = 7,
    image_size: int = 224,
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
        num_labels=1000,
    )
    return Preset(config=config, image_size=image_size, gflops=gflops, top1=top1)


PRESETS = {
    "nat_mini": _preset(64, 6, 3.0, 0.2, gflops=2.7, top1=81.8),
    "nat_tiny": _preset(64, 18, 3.0, 0.2, gflops=4.3, top1=83.2),
    "nat_small": _preset(96, 18, 2.0, 0.3, layer_scale=1e-5, gflops=7.8, top1=83.7),
    "nat_base": _preset(128, 18, 2.0, 0.5, layer_scale=1e-5, gflops=13.7, top1=84.3),
    "dinat_mini": _preset(64, 6, 3.0, 0.2, dilations=(8, 4, 2, 1), gflops=2.7, top1=81.8),
    "dinat_tiny": _preset(64, 18, 3.0, 0.2, dilations=(8, 4, 2, 1), gflops=4.3, top1=82.7),
    "dinat_small": _preset(96, 18, 2.0, 0.3, dilations=(8, 4, 2, 1), gflops=7.8, top1=83.8),
    "dinat_base": _preset(128, 18, 2.0, 0.5, layer_scale=1e-5, dilations=(8, 4, 2, 1), gflops=13.7, top1=84.4),
    "dinat_large": _preset(192, 18, 2.0, 0.35, dilations=(8, 4, 2, 1), gflops=30.6, top1=86.6),
    "dinat_large_384": _preset(192, 18, 2.0, 0.35, dilations=(13, 6, 3, 1), image_size=384, gflops=89.7, top1=87.4),
    "dinat_large_384_11x11": _preset(
        192, 18, 2.0, 0.35, dilations=(8, 4, 2, 1), kernel_size=11, image_size=384, gflops=92.4, top1=87.5
    ),
}


def list_models(pattern: str | None = None) -> list[str]:
    """Returns the names of the presets, those that match a shell pattern such as "dinat_*" where one is given."""
    return [name for name in PRESETS if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def get_config(name: str, **changes: Any) -> NatConfig:
    """Returns the configuration of a preset, with fields changed where given.

    Raises:
        ValueError: there is no such preset, or the changes are impossible.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no model named {name!r}.{hint} There are: {', '.join(PRESETS)}.")
    config = PRESETS[name].config
    return config.replace(**changes) if changes else config
