"""The parameters of the heads of segmentation and detection models, and the configurations that their shapes are those of.

Both are part of the declaration in `natjax_convert.shapes`. Detection heads are those of mmdetection's Mask R-CNN and Cascade
R-CNN; the box heads of Mask R-CNN and of the stages of a cascade differ in number, not in kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig, NatConfig, UperNetConfig
from natjax.configuration.detection import BOX_SIDE
from natjax.configuration.upernet import AUXILIARY_FEATURE
from natjax.text import shortened
from natjax_convert.pieces import Parameter, ParameterPath, Piece, Shape, at, conv, conv_block, has, linear


def upernet(config: UperNetConfig) -> Iterator[Parameter]:
    """Yields the parameters of a UPerNet's heads."""
    trunk, channels = config.trunk, config.hidden_size
    *lower, last = dims = trunk.level_dims
    top, stride = sum(trunk.depths) + 1, trunk.patch_size

    def put(module: ParameterPath, piece: Piece, stride: int) -> Iterator[Parameter]:
        return at(module, piece, str(module[0]), top, stride)

    for i in range(len(config.pool_scales)):
        yield from put(("decode_head", "psp_modules", i), conv_block(last, channels, side=1), 0)
    pooled = last + len(config.pool_scales) * channels
    yield from put(("decode_head", "bottleneck"), conv_block(pooled, channels), stride * 2 ** len(lower))
    for i, dim in enumerate(lower):
        yield from put(("decode_head", "lateral_convs", i), conv_block(dim, channels, side=1), stride * 2**i)
    for i in range(len(lower)):
        yield from put(("decode_head", "fpn_convs", i), conv_block(channels, channels), stride * 2**i)
    yield from put(("decode_head", "fpn_bottleneck"), conv_block(len(dims) * channels, channels), stride)
    classes = config.num_labels or 0
    yield from put(("decode_head", "classifier"), conv(channels, classes, side=1), stride)
    if config.use_auxiliary_head:
        dim, inner, stride = dims[AUXILIARY_FEATURE], config.auxiliary_channels, stride * 2**AUXILIARY_FEATURE
        for i in range(config.auxiliary_num_convs):
            yield from put(("auxiliary_head", "convs", i), conv_block(inner if i else dim, inner), stride)
        if config.auxiliary_concat_input:
            yield from put(("auxiliary_head", "conv_cat"), conv_block(dim + inner, inner), stride)
        yield from put(("auxiliary_head", "classifier"), conv(inner, classes, side=1), stride)


def detection(config: MaskRcnnConfig) -> Iterator[Parameter]:
    """Yields the parameters of the feature pyramid and of all heads of a Mask R-CNN or a Cascade Mask R-CNN."""
    top, channels = sum(config.trunk.depths) + 1, config.fpn_channels
    for i, dim in enumerate(config.trunk.level_dims):
        stride = config.strides[i]
        yield from at(("neck", "lateral_convs", i), conv(dim, channels, side=1), "neck", top, stride)
        yield from at(("neck", "fpn_convs", i), conv(channels, channels), "neck", top, stride)
    anchors, inner = len(config.anchor_ratios), config.rpn_channels
    rpn_head = {
        "rpn_conv": conv(channels, inner),
        "rpn_cls": conv(inner, anchors, side=1),
        "rpn_reg": conv(inner, 4 * anchors, side=1),
    }
    yield from at(("rpn_head",), rpn_head, "rpn_head", top, config.strides[0])
    for i in range(config.num_stages):
        yield from at(("roi_head", "bbox_head", i), _box_head(config), "box_head", top, 0)
    for i in range(config.num_stages):
        yield from at(("roi_head", "mask_head", i), _mask_head(config), "mask_head", top, 0)


def _box_head(config: MaskRcnnConfig) -> Piece:
    classes, dim, inner = config.num_labels or 0, config.fpn_channels, config.box_conv_channels
    dims = (dim, *(inner,) * config.box_num_convs)
    widths = (
        dims[-1] * BOX_SIDE**2,
        *(config.box_fc_channels,) * config.box_num_fcs,
    )  # flattened: channels, height, width
    return {
        "shared_convs": {i: conv_block(dims[i], inner) for i in range(config.box_num_convs)},
        "shared_fcs": {i: linear(widths[i], widths[i + 1]) for i in range(config.box_num_fcs)},
        "fc_cls": linear(widths[-1], classes + 1),  # the background is the last class
        "fc_reg": linear(widths[-1], 4 * classes),
    }


def _mask_head(config: MaskRcnnConfig) -> Piece:
    inner = config.mask_channels
    dims = (config.fpn_channels, *(inner,) * config.mask_num_convs)
    return {
        "convs": {i: conv(dims[i], inner) for i in range(config.mask_num_convs)},
        "upsample": {"kernel": (2, 2, inner, dims[-1]), "bias": (inner,)},  # of outputs and inputs
        "conv_logits": conv(inner, config.num_labels or 0, side=1),
    }


def upernet_from_shapes(shape: Shape, trunk: NatConfig, fields: Mapping[str, Any]) -> UperNetConfig:
    """Returns the configuration of a UPerNet over a backbone, whose parameters have these shapes.

    Args:
        shape: returns the shape of a parameter by its path; a LookupError where there is none.
        trunk: the backbone's configuration.
        fields: what is known of it already, `pool_scales` among others, which are in no shape: those of all published models
            without, if there are as many.

    Raises:
        LookupError: a parameter is missing.
        ValueError: the shapes are those of no UPerNet or not what the fields say, or the pool scales are not as many as they have
            or are not known.
    """
    scales = _count(shape, "decode_head", "psp_modules")
    if "pool_scales" not in fields and scales != len(UperNetConfig.pool_scales):
        raise ValueError(f"the heads pool to {scales} maps of unknown scales; give a configuration, with pool_scales.")
    found: dict[str, Any] = {"use_auxiliary_head": False}
    if has(shape, "auxiliary_head", "classifier", "kernel"):
        found = {
            "auxiliary_channels": shape(("auxiliary_head", "classifier", "kernel"))[2],
            "auxiliary_num_convs": _count(shape, "auxiliary_head", "convs"),
            "auxiliary_concat_input": has(shape, "auxiliary_head", "conv_cat", "conv", "kernel"),
        }
    *_, found["hidden_size"], found["num_labels"] = shape(("decode_head", "classifier", "kernel"))
    config = UperNetConfig(backbone_config=trunk, **_agreed(found, fields))
    if len(config.pool_scales) != scales:
        raise ValueError(f"the heads pool to {scales} maps, and pool_scales are {config.pool_scales}.")
    return config


def detection_from_shapes(
    shape: Shape, trunk: NatConfig, fields: Mapping[str, Any], family: type[MaskRcnnConfig] | None = None
) -> MaskRcnnConfig:
    """Returns the configuration of a detection model over a backbone, whose parameters have these shapes.

    Args:
        shape: returns the shape of a parameter by its path; a LookupError where there is none.
        trunk: the backbone's configuration.
        fields: what is known of it already. The ratios of the anchors and what belongs to a stage, such as `box_stds`, are in no
            shape: those of the published models without, if there are as many.
        family: class of the configuration; None tells by the number of stages.

    Raises:
        LookupError: a parameter is missing.
        ValueError: the shapes are those of no detection model of natjax or not what the fields say, or ratios or stages are not
            as many as they have or are not known.
    """
    stages = _count(shape, "roi_head", "bbox_head", leaf=("fc_cls", "kernel"))
    if not has(shape, "roi_head", "mask_head", 0, "conv_logits", "kernel"):
        raise ValueError("there is no mask head, and natjax has Mask R-CNN and Cascade Mask R-CNN alone.")
    family = family or (MaskRcnnConfig if stages == 1 else CascadeMaskRcnnConfig)
    *_, rpn_channels, anchors = shape(("rpn_head", "rpn_cls", "kernel"))
    box_head, mask_head = ("roi_head", "bbox_head", 0), ("roi_head", "mask_head", 0)
    found: dict[str, Any] = {
        "fpn_channels": shape(("neck", "lateral_convs", 0, "kernel"))[-1],
        "rpn_channels": rpn_channels,
        "box_num_convs": _count(shape, *box_head, "shared_convs"),
        "box_num_fcs": _count(shape, *box_head, "shared_fcs", leaf=("kernel",)),
        "mask_num_convs": _count(shape, *mask_head, "convs", leaf=("kernel",)),
        "mask_channels": shape((*mask_head, "conv_logits", "kernel"))[-2],
        "num_labels": shape((*mask_head, "conv_logits", "kernel"))[-1],
    }
    if found["box_num_convs"]:
        found["box_conv_channels"] = shape((*box_head, "shared_convs", 0, "conv", "kernel"))[-1]
    if found["box_num_fcs"]:
        found["box_fc_channels"] = shape((*box_head, "shared_fcs", 0, "kernel"))[-1]
    config = family(backbone_config=trunk, **_agreed(found, fields))
    for name, count, what in (("anchor_ratios", anchors, "anchors of a point"), ("box_stds", stages, "box heads")):
        if len(getattr(config, name)) != count:
            raise ValueError(f"there are {count} {what}, and {name} are {getattr(config, name)}.")
    return config


def _agreed(found: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that shapes say and all others that are known, of which none may say another.

    Raises:
        ValueError: one does.
    """
    for name, value in found.items():
        if (said := fields.get(name, value)) != value:
            raise ValueError(f"{name} is said to be {shortened(repr(said))}, and is {value} by the shapes.")
    return {**fields, **found}


def _count(shape: Shape, *path: str | int, leaf: ParameterPath = ("conv", "kernel")) -> int:
    """Returns how many modules are in the list at a path, which have a parameter of that name each."""
    return next(i for i in itertools.count() if not has(shape, *path, i, *leaf))
