"""Mask R-CNN and Cascade Mask R-CNN in the config texts of mmdetection 2.19: heads, training and test.

A text is read into the fields that natjax has, and then compared with what natjax would write of them: whatever differs, natjax
does not have. In a text, a mapping for several stages is that of each of them, and Mask R-CNN has one that is no list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig
from natjax.configuration.detection import BOX_SIDE, MASK_SIDE, RPN_IOUS, RPN_STDS
from natjax.text import shortened
from natjax_convert.config_texts.parts import Either, check, part

_MAX_STAGES = 16
_STAGES = (("roi_head", "bbox_head"), ("roi_head", "mask_head"), ("train_cfg", "rcnn"))  # what is a list in a cascade

# Where arguments are, and the fields that they are. Those of stages are the same in all of them.
_FIELDS = {
    "neck.out_channels": "fpn_channels",
    "rpn_head.feat_channels": "rpn_channels",
    "rpn_head.anchor_generator.ratios": "anchor_ratios",
    "roi_head.bbox_head.num_shared_convs": "box_num_convs",
    "roi_head.bbox_head.num_shared_fcs": "box_num_fcs",
    "roi_head.bbox_head.conv_out_channels": "box_conv_channels",
    "roi_head.bbox_head.fc_out_channels": "box_fc_channels",
    "roi_head.bbox_head.num_classes": "num_labels",
    "roi_head.bbox_head.loss_bbox.loss_weight": "box_loss_weight",
    "roi_head.mask_head.num_convs": "mask_num_convs",
    "roi_head.mask_head.conv_out_channels": "mask_channels",
    "train_cfg.rpn.sampler.num": "rpn_batch_size",
    "train_cfg.rpn.sampler.pos_fraction": "rpn_positive_fraction",
    "train_cfg.rpn_proposal.nms_pre": "train_rpn_pre_nms",
    "train_cfg.rpn_proposal.max_per_img": "train_rpn_post_nms",
    "train_cfg.rcnn.sampler.num": "box_batch_size",
    "train_cfg.rcnn.sampler.pos_fraction": "box_positive_fraction",
    "train_cfg.rcnn.assigner.match_low_quality": "box_low_quality_matches",
    "test_cfg.rpn.nms_pre": "rpn_pre_nms",
    "test_cfg.rpn.max_per_img": "rpn_post_nms",
    "test_cfg.rpn.nms.iou_threshold": "rpn_nms_threshold",
    "test_cfg.rcnn.score_thr": "score_threshold",
    "test_cfg.rcnn.nms.iou_threshold": "nms_threshold",
    "test_cfg.rcnn.max_per_img": "max_detections",
    "test_cfg.rcnn.mask_thr_binary": "mask_threshold",
}
_BOX_LOSSES = {"L1Loss": "l1", "GIoULoss": "giou"}
_NMS = {"class_agnostic": False, "offset": 0, "score_threshold": 0, "max_num": -1}
_PROPOSALS = {"nms": _NMS, "nms_across_levels": False}
# What natjax has no other value of, and does not write as not every version of mmdetection knows it.
_ONLY = {
    "neck": {
        "start_level": 0,
        "end_level": -1,
        "add_extra_convs": False,
        "conv_cfg": None,
        "norm_cfg": None,
        "act_cfg": None,
        "upsample_cfg": {"mode": "nearest"},
    },
    "rpn_head": {
        "num_convs": 1,
        "reg_decoded_bbox": False,
        "anchor_generator": {"base_sizes": None, "center_offset": 0, "octave_base_scale": None, "centers": None},
        "bbox_coder": {"clip_border": True, "add_ctr_clamp": False},
    },
    "roi_head": {
        "shared_head": None,
        "bbox_roi_extractor": {"finest_scale": 56, "roi_layer": {"aligned": True, "pool_mode": "avg"}},
        "mask_roi_extractor": {"finest_scale": 56, "roi_layer": {"aligned": True, "pool_mode": "avg"}},
        "bbox_head": {
            "num_cls_convs": 0,
            "num_cls_fcs": 0,
            "num_reg_convs": 0,
            "num_reg_fcs": 0,
            "with_avg_pool": False,
            "with_cls": True,
            "with_reg": True,
            "conv_cfg": None,
            "cls_predictor_cfg": {"type": "Linear"},
            "reg_predictor_cfg": {"type": "Linear"},
            "norm_cfg": {"eps": 1e-5, "momentum": 0.1},  # as natjax.nn.batch_norm has them
            "bbox_coder": {"clip_border": True, "add_ctr_clamp": False},
        },
        "mask_head": {
            "roi_feat_size": MASK_SIDE,
            "conv_kernel_size": 3,
            "class_agnostic": False,
            "upsample_cfg": {"type": "deconv", "scale_factor": 2},
            "conv_cfg": None,
            "norm_cfg": None,
            "predictor_cfg": {"type": "Conv"},
        },
    },
    "train_cfg": {"rpn_proposal": _PROPOSALS},
    "test_cfg": {"rpn": _PROPOSALS, "rcnn": {"nms": _NMS}},
}


def read(model: Mapping[str, Any], infer: Callable[[Mapping[str, Any]], MaskRcnnConfig]) -> MaskRcnnConfig:
    """Returns the configuration of a text's model; see `natjax_convert.config_texts.config_of`."""
    model = _with_lists(model)
    config = infer(_fields(model))
    check(model, _ONLY)
    check(model, _written(config))
    return config


def write(config: MaskRcnnConfig) -> dict[str, Any]:
    """Returns the model of a text, without its backbone."""
    model = _written(config)
    if not isinstance(config, CascadeMaskRcnnConfig):
        for outer, inner in _STAGES:
            [model[outer][inner]] = model[outer][inner]
    return _first(model)


def _with_lists(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model with a list wherever its stages differ."""
    roi_head = part(model, "roi_head")
    heads = roi_head.get("bbox_head")
    count = len(heads) if isinstance(heads, list) else roi_head.get("num_stages", 1)
    if not isinstance(count, int) or not 1 <= count <= _MAX_STAGES:
        raise ValueError(f"roi_head.num_stages is {shortened(repr(count))}; natjax has 1 to {_MAX_STAGES}")
    model = dict(model)
    for outer, inner in _STAGES:
        if isinstance(part(model, outer).get(inner), dict):
            model[outer] = {**model[outer], inner: [model[outer][inner]] * count}
    return model


def _fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that a model says."""

    def values(path: str) -> list[Any]:
        return list(_values(model, path.split(".")))

    fields = {field: found[0] for path, field in _FIELDS.items() if (found := values(path))}
    if stds := values("roi_head.bbox_head.bbox_coder.target_stds"):
        fields["box_stds"] = stds
    if thresholds := values("train_cfg.rcnn.assigner.pos_iou_thr"):
        fields["box_iou_thresholds"] = thresholds
    if weights := values("roi_head.stage_loss_weights"):
        fields["stage_loss_weights"] = weights[0]
    match values("rpn_head.anchor_generator.scales"):
        case [[scale]]:
            fields["anchor_scale"] = scale
    match values("train_cfg.rpn.allowed_border"):
        case [int() as border]:
            fields["rpn_anchor_border"] = border if border >= 0 else None
    match values("rpn_head.loss_bbox"):
        case [{"type": "L1Loss"}]:
            fields["rpn_smooth_l1_beta"] = 0.0
        case [{"type": "SmoothL1Loss", **others}]:
            fields["rpn_smooth_l1_beta"] = others.get("beta", 1.0)
    match values("roi_head.bbox_head.loss_bbox.type"):
        case [str() as loss, *_] if loss in _BOX_LOSSES:
            fields["box_loss"] = _BOX_LOSSES[loss]
    return fields


def _values(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yields what is at a path in mappings: of every entry of a list on the way."""
    if not path:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _values(item, path)
    elif isinstance(value, dict) and path[0] in value:
        yield from _values(value[path[0]], path[1:])


def _put(model: Any, path: Sequence[str], value: Any) -> None:
    """Puts a value where `_values` finds it."""
    for inner in model if isinstance(model, list) else [model]:
        if len(path) == 1:
            inner[path[0]] = list(value) if isinstance(value, tuple) else value
        else:
            _put(inner.setdefault(path[0], {}), path[1:], value)


def _written(config: MaskRcnnConfig) -> dict[str, Any]:
    """Returns the model of a text, with lists and with alternatives."""
    cascade, beta = isinstance(config, CascadeMaskRcnnConfig), config.rpn_smooth_l1_beta
    border = config.rpn_anchor_border
    model: dict[str, Any] = {
        "type": "CascadeRCNN" if cascade else "MaskRCNN",
        "neck": {"type": "FPN", "in_channels": list(config.trunk.level_dims), "num_outs": len(config.strides)},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": config.fpn_channels,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [config.anchor_scale],
                "strides": list(config.strides),
            },
            "bbox_coder": _coder(RPN_STDS),
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": ({"type": "SmoothL1Loss", "beta": beta} if beta else {"type": "L1Loss"})
            | {"loss_weight": 1.0},
        },
        "roi_head": _roi_head(config),
        "train_cfg": {
            "rpn": {
                "assigner": _assigner(**RPN_IOUS) | {"match_low_quality": True},
                "sampler": _sampler(add_gt_as_proposals=False),
                "allowed_border": -1 if border is None else border,
                "pos_weight": -1,
            },
            "rpn_proposal": _nms(config.rpn_nms_threshold),
            "rcnn": [
                {
                    "assigner": _assigner(iou, iou, iou),
                    "sampler": _sampler(add_gt_as_proposals=True),
                    "mask_size": 2 * MASK_SIDE,
                    "pos_weight": -1,
                }
                for iou in config.box_iou_thresholds
            ],
        },
        "test_cfg": {"rpn": _nms(config.rpn_nms_threshold), "rcnn": {"nms": {"type": "nms"}}},
    }
    for path, field in _FIELDS.items():
        _put(model, path.split("."), getattr(config, field))
    return model


def _coder(stds: Sequence[float]) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0, 0.0, 0.0, 0.0], "target_stds": list(stds)}


def _extractor(config: MaskRcnnConfig, side: int) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": Either((side, [side, side])), "sampling_ratio": 0},
        "out_channels": config.fpn_channels,
        "featmap_strides": list(config.strides[:-1]),
    }


def _roi_head(config: MaskRcnnConfig) -> dict[str, Any]:
    channels = {"in_channels": config.fpn_channels}
    cascade = {"num_stages": config.num_stages, "stage_loss_weights": list(config.stage_loss_weights)}
    mask_head = {
        "type": "FCNMaskHead",
        **channels,
        "num_classes": config.num_labels,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    }
    return {
        **(
            {"type": "CascadeRoIHead", **cascade}
            if isinstance(config, CascadeMaskRcnnConfig)
            else {"type": "StandardRoIHead"}
        ),
        "bbox_roi_extractor": _extractor(config, BOX_SIDE),
        "bbox_head": [_box_head(config, stds) | channels for stds in config.box_stds],
        "mask_roi_extractor": _extractor(config, MASK_SIDE),
        "mask_head": [dict(mask_head) for _ in config.box_stds],
    }


def _box_head(config: MaskRcnnConfig, stds: Sequence[float]) -> dict[str, Any]:
    [loss] = (name for name, loss in _BOX_LOSSES.items() if loss == config.box_loss)
    head = {
        "type": Either(("ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")),
        "roi_feat_size": Either((BOX_SIDE, [BOX_SIDE, BOX_SIDE])),
        "bbox_coder": _coder(stds),
        "reg_class_agnostic": False,
        "reg_decoded_bbox": config.box_loss == "giou",
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": loss},
    }
    return head | ({"norm_cfg": {"type": Either(("SyncBN", "BN"))}} if config.box_num_convs else {})


def _assigner(positive: float, negative: float, minimum: float) -> dict[str, Any]:
    thresholds = {"pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": minimum, "ignore_iof_thr": -1}
    return {"type": "MaxIoUAssigner", **thresholds}


def _sampler(*, add_gt_as_proposals: bool) -> dict[str, Any]:
    return {"type": "RandomSampler", "neg_pos_ub": -1, "add_gt_as_proposals": add_gt_as_proposals}


def _nms(iou_threshold: float) -> dict[str, Any]:
    return {"nms": {"type": "nms", "iou_threshold": iou_threshold}, "min_bbox_size": 0}


def _first(model: Any) -> Any:
    """Returns a model of which every alternative is the first."""
    if isinstance(model, Either):
        return model[0]
    if isinstance(model, dict):
        return {name: _first(value) for name, value in model.items()}
    return [_first(value) for value in model] if isinstance(model, list) else model
