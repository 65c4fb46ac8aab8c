"""Parameters and FLOPs of a model, counted from its configuration alone: nothing is built or compiled.

FLOPs are the papers' (fvcore's convention): one per multiply-accumulate of convolutions, linear layers and attention
products, one per score for the relative positional bias, five per element of a LayerNorm. The published 30.6 G of
DiNAT-Large at 224 px are those of its 21841-class head; with 1000 classes they are 30.5 G.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from natjax.configuration import NatConfig


@dataclasses.dataclass(frozen=True)
class PartInfo:
    """Size and cost of a part of a model.

    Attributes:
        name: "stem", "level1" ..., "head".
        shape: (height, width, channels) the part works on.
        parameters: number of parameters.
        flops: of one image.
    """

    name: str
    shape: tuple[int, int, int]
    parameters: int
    flops: int


def count_parts(config: NatConfig, image_size: Sequence[int] = (224, 224)) -> list[PartInfo]:
    """Returns stem, levels (each with the downsampler behind it) and head (final norm, pooling, classifier).

    Args:
        config: of the image classifier.
        image_size: (height, width) in pixels.
    """
    half = config.embed_dim // 2
    height, width = _halved(image_size)
    parameters = 9 * config.num_channels * half + half
    flops = 9 * config.num_channels * half * height * width
    height, width = _halved((height, width))
    parameters += 9 * half * config.embed_dim + 3 * config.embed_dim
    flops += (9 * half + 5) * config.embed_dim * height * width
    parts = [PartInfo("stem", (height, width, config.embed_dim), parameters, flops)]
    for level, dim in enumerate(config.level_dims):
        shape = (height, width, dim)
        parameters = flops = 0
        for dilation in config.layer_dilations(level):
            layer = _layer(config, level, dim, height, width, dilation)
            parameters, flops = parameters + layer[0], flops + layer[1]
        if level + 1 < config.num_levels:
            height, width = _halved((height, width))
            parameters += 9 * dim * 2 * dim + 4 * dim
            flops += (9 * dim + 5) * 2 * dim * height * width
        parts.append(PartInfo(f"level{level + 1}", shape, parameters, flops))
    dim = config.hidden_size
    head = dim * config.num_labels + config.num_labels if config.num_labels else 0
    flops = (5 + 1) * dim * height * width + dim * (config.num_labels or 0)
    return [*parts, PartInfo("head", (height, width, dim), 2 * dim + head, flops)]


def count_parameters(config: NatConfig) -> int:
    """Returns the number of parameters of the image classifier."""
    return sum(part.parameters for part in count_parts(config))


def count_flops(config: NatConfig, image_size: Sequence[int] = (224, 224)) -> int:
    """Returns the FLOPs of classifying one image of (height, width) pixels."""
    return sum(part.flops for part in count_parts(config, image_size))


def _halved(size: Sequence[int]) -> tuple[int, int]:
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


def _layer(config: NatConfig, level: int, dim: int, height: int, width: int, dilation: int) -> tuple[int, int]:
    heads, kernel, hidden = config.num_heads[level], config.kernel_size, int(config.mlp_ratio * dim)
    tokens = height * width
    padded = max(height, kernel * dilation) * max(width, kernel * dilation)  # small maps are padded to the window
    attention = dim * 3 * dim + (3 * dim if config.qkv_bias else 0) + dim * dim + dim + heads * (2 * kernel - 1) ** 2
    mlp = 2 * dim * hidden + hidden + dim
    scale = 2 * dim if config.layer_scale_init_value > 0 else 0
    flops = padded * (4 * dim * dim + kernel**2 * (2 * dim + heads)) + tokens * (2 * dim * hidden + 2 * 5 * dim)
    return attention + mlp + 4 * dim + scale, flops
