"""The names of the heads of Mask R-CNN and Cascade Mask R-CNN: mmdetection's, which natjax's own files share but for one word."""

from __future__ import annotations

HEADS = ("neck", "rpn_head", "roi_head")
_PYRAMID = {
    "neck.{module}.{i}": "neck.{module}.{i}.conv",
    "rpn_head.{module}": "rpn_head.{module}",
}
_BOX_HEAD = {
    "shared_convs.{i}.conv": "shared_convs.{i}.conv",
    "shared_fcs.{i}": "shared_fcs.{i}",
    "fc_cls": "fc_cls",
    "fc_reg": "fc_reg",
}
_MASK_HEAD = {"convs.{i}": "convs.{i}.conv", "upsample": "upsample", "conv_logits": "conv_logits"}


def heads_table(*, batch_norm: str, stages: bool = True) -> dict[str, str]:
    """Returns the rows of a dialect's table for feature pyramid and heads.

    Args:
        batch_norm: what the dialect calls a norm.
        stages: whether names have a stage's number: not those of mmdetection's Mask R-CNN, which has one.
    """
    row, stage = ("{stage}", ".{stage}") if stages else ("0", "")
    box_head = {**_BOX_HEAD, "shared_convs.{i}.batch_norm": f"shared_convs.{{i}}.{batch_norm}"}
    rows = {
        f"roi_head.{head}.{row}.{module}": f"roi_head.{head}{stage}.{name}"
        for head, modules in (("bbox_head", box_head), ("mask_head", _MASK_HEAD))
        for module, name in modules.items()
    }
    return _PYRAMID | rows
