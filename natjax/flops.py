"""Parameters and operations of a model's parts, counted from the declaration of its parameters: nothing is built or compiled.

MACs are what the papers call FLOPs (fvcore's convention): multiply-accumulates of convolutions, linear layers and attention
products, one per score for the relative positional bias, five per element of a LayerNorm, two of a batch normalisation. FLOPs
here are floating point operations, two per MAC, in which speeds of devices are measured. The published 30.6 GMACs of DiNAT-Large
at 224 px are those of its 21841-class head; with 1000 classes they are 30.5. A detection model's are those of as many regions as
mmdetection counts, 1000 in every box head and 100 in every mask head, whatever the image; RoIAlign and the choice of boxes, which
multiply little, are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from natjax.configuration import DenseConfig, MaskRcnnConfig, NatConfig, UperNetConfig
from natjax.configuration.detection import BOX_SIDE, MASK_SIDE
from natjax.configuration.upernet import AUXILIARY_FEATURE
from natjax_convert.pieces import Parameter
from natjax_convert.shapes import Kind, parameters

BOX_REGIONS, MASK_REGIONS = 1000, 100  # of an image, that mmdetection counts operations for
_SIDES = {"box_head": BOX_SIDE, "mask_head": MASK_SIDE}  # of the maps of regions


@dataclasses.dataclass(frozen=True)
class PartInfo:
    """Size and cost of a part of a model.

    Attributes:
        name: "stem", "level1" ..., "head"; "decode_head" and "auxiliary_head" of a segmentation model; "neck", "rpn_head",
            "box_head" and "mask_head" of a detection model.
        shape: (height, width, channels) the part works on.
        parameters: number of parameters.
        macs: multiply-accumulates of one image.
    """

    name: str
    shape: tuple[int, int, int]
    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """Floating point operations of one image: two per multiply-accumulate."""
        return 2 * self.macs


def count_parts(config: NatConfig | DenseConfig, image_size: Sequence[int] = (224, 224)) -> list[PartInfo]:
    """Returns stem, levels (each with the downsampler behind it) and head (final norm, pooling, classifier).

    A segmentation model has two heads, a detection model four; the norms of the feature maps are counted with the first.

    Args:
        config: of the image classifier, the segmentation model or the detection model.
        image_size: (height, width) in pixels.

    Raises:
        ValueError: the model does not take images of this size.
    """
    trunk = config.trunk
    trunk.check_image_size(*image_size)
    patch = trunk.patch_size
    levels = [(f"level{i + 1}", patch * 2**i, dim) for i, dim in enumerate(trunk.level_dims)]
    kind: Kind
    if isinstance(config, UperNetConfig):
        kind, heads = "segmentation", [("decode_head", patch, config.hidden_size)]
        if config.use_auxiliary_head:
            heads.append(("auxiliary_head", patch * 2**AUXILIARY_FEATURE, config.auxiliary_channels))
    elif isinstance(config, MaskRcnnConfig):
        kind, heads = "detection", [("neck", patch, config.fpn_channels), ("rpn_head", patch, config.rpn_channels)]
        heads += [("box_head", 0, config.fpn_channels), ("mask_head", 0, config.fpn_channels)]
    else:
        kind, heads = "classifier", [("head", levels[-1][1], trunk.hidden_size)]
    found, parts = parameters(config, kind), []
    for name, stride, dim in [("stem", patch, trunk.embed_dim), *levels, *heads]:
        height, width = _map(image_size, stride) if stride else (_SIDES[name], _SIDES[name])
        names = ("head", name) if name == heads[0][0] else (name,)
        inside = [parameter for parameter in found if parameter.part in names]
        macs = sum(_macs(parameter, config, image_size) for parameter in inside)
        if name == "head":
            macs += dim * height * width  # mean pooling
        parts.append(
            PartInfo(name, (height, width, dim), sum(parameter.size for parameter in inside if parameter.trained), macs)
        )
    return parts


def count_macs(config: NatConfig | DenseConfig, image_size: Sequence[int] = (224, 224)) -> int:
    """Returns the multiply-accumulates of one image of (height, width) pixels: the papers' "FLOPs".

    Those of classifying or segmenting it, or of detecting in it; an auxiliary head is for training alone.
    """
    return sum(part.macs for part in count_parts(config, image_size) if part.name != "auxiliary_head")


def count_flops(config: NatConfig | DenseConfig, image_size: Sequence[int] = (224, 224)) -> int:
    """Returns the floating point operations of one image of (height, width) pixels: two per multiply-accumulate."""
    return 2 * count_macs(config, image_size)


def _map(image_size: Sequence[int], stride: int) -> tuple[int, int]:
    """Height and width of the map with a token every `stride` pixels; one vector per image where that is 0."""
    return (math.ceil(image_size[0] / stride), math.ceil(image_size[1] / stride)) if stride else (1, 1)


def _macs(parameter: Parameter, config: NatConfig | DenseConfig, image_size: Sequence[int]) -> int:
    """The MACs of the layer that a parameter belongs to, counted at its kernel, scale or positional bias."""
    path, trunk, per_token = parameter.path, config.trunk, 0
    if path[-1] == "kernel":
        per_token = parameter.size
    elif path[-1] == "scale":
        per_token = (2 if "batch_norm" in path else 5) * parameter.size
    elif path[-1] == "rpb":  # scores, their biases, and the sum of values
        channels = trunk.level_dims[next(step for step in path if isinstance(step, int))]
        per_token = trunk.kernel_size**2 * (2 * channels + parameter.shape[0])
    return per_token * _tokens(parameter, config, image_size)


def _tokens(parameter: Parameter, config: NatConfig | DenseConfig, image_size: Sequence[int]) -> int:
    """The tokens, points of maps, that the layer of a parameter is applied to."""
    part, path = parameter.part, parameter.path
    if part == "box_head":
        return BOX_REGIONS * (BOX_SIDE**2 if "shared_convs" in path else 1)
    if part == "mask_head":
        return MASK_REGIONS * MASK_SIDE**2 * (4 if "conv_logits" in path else 1)  # upsampled
    if isinstance(config, MaskRcnnConfig) and part == "rpn_head":  # one for all maps of the pyramid
        return sum(math.prod(_map(image_size, stride)) for stride in config.strides)
    height, width = _map(image_size, parameter.stride)
    if "attention" in path:
        level, layer = (step for step in path if isinstance(step, int))
        window = config.trunk.kernel_size * config.trunk.layer_dilations(level)[layer]
        return max(height, window) * max(width, window)  # small maps are padded to the window
    return height * width
