"""UPerNet's heads in the config texts of mmsegmentation 0.20.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from natjax.configuration import UperNetConfig
from natjax.configuration.upernet import AUXILIARY_FEATURE
from natjax_convert.config_texts.parts import Either, check, part

# Arguments of mmsegmentation's heads, and the fields that they are.
_DECODE_HEAD = {
    "channels": "hidden_size",
    "pool_scales": "pool_scales",
    "num_classes": "num_labels",
    "dropout_ratio": "head_dropout_prob",
    "ignore_index": "loss_ignore_index",
}
_AUXILIARY_HEAD = {
    "channels": "auxiliary_channels",
    "num_convs": "auxiliary_num_convs",
    "concat_input": "auxiliary_concat_input",
}
_UNCHANGED = {  # what natjax has no other value of
    "align_corners": False,
    "conv_cfg": None,
    "act_cfg": {"type": "ReLU"},
    "norm_cfg": {"type": Either(("BN", "SyncBN")), "eps": 1e-5, "momentum": 0.1},  # as natjax.nn.batch_norm has them
}
_ONLY = {
    "decode_head": {**_UNCHANGED, "type": "UPerHead", "input_transform": "multiple_select"},
    "auxiliary_head": {
        **_UNCHANGED,
        "type": "FCNHead",
        "in_index": AUXILIARY_FEATURE,
        "kernel_size": 3,
        "dilation": 1,
        "input_transform": None,
    },
}


def read(model: Mapping[str, Any], infer: Callable[[Mapping[str, Any]], UperNetConfig]) -> UperNetConfig:
    """Returns the configuration of a text's model; see `natjax_convert.config_texts.config_of`."""
    head, auxiliary = part(model, "decode_head"), part(model, "auxiliary_head")
    check(model, _ONLY)
    fields = {field: head[argument] for argument, field in _DECODE_HEAD.items() if argument in head}
    fields |= {field: auxiliary[argument] for argument, field in _AUXILIARY_HEAD.items() if argument in auxiliary}
    if "loss_weight" in (loss := part(auxiliary, "loss_decode")):
        fields["auxiliary_loss_weight"] = loss["loss_weight"]
    return infer(fields)


def write(config: UperNetConfig) -> dict[str, Any]:
    """Returns the model of a text, without its backbone."""
    levels = list(config.trunk.level_dims)
    indices = list(range(len(levels)))
    decode_head = {argument: getattr(config, field) for argument, field in _DECODE_HEAD.items()}
    model: dict[str, Any] = {
        "type": "EncoderDecoder",
        "decode_head": _head("UPerHead", levels, indices, 1.0) | decode_head,
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    if config.use_auxiliary_head:
        common = {name: decode_head[name] for name in ("num_classes", "dropout_ratio", "ignore_index")}
        auxiliary_head = {argument: getattr(config, field) for argument, field in _AUXILIARY_HEAD.items()}
        head = _head("FCNHead", levels[AUXILIARY_FEATURE], AUXILIARY_FEATURE, config.auxiliary_loss_weight)
        model["auxiliary_head"] = head | common | auxiliary_head
    return model


def _head(kind: str, channels: Any, index: Any, loss_weight: float) -> dict[str, Any]:
    return {
        "type": kind,
        "in_channels": channels,
        "in_index": index,
        "norm_cfg": {"type": "SyncBN", "requires_grad": True},
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": loss_weight},
    }
