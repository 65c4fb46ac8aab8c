"""What an mmsegmentation checkpoint says of its model beside the weights: `meta`, with the text of the config file and classes.

The text is Python. It is parsed and never run: of it counts `model = dict(...)`, written in literals. `config_of` reads a `meta`,
`meta_of` writes one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from natjax.configuration import NatConfig, UperNetConfig
from natjax.configuration.upernet import AUXILIARY_FEATURE

_MAX_CHARACTERS = 2**20  # the authors' configs have 2**13
_MAX_DEPTH = 50  # of calls, lists and mappings in one another

# Arguments of the authors' backbones and mmsegmentation's heads, and the fields that they are.
_BACKBONES = {"NAT": ("nat",), "DiNAT": ("dinat", "nat"), "DiNAT_s": ("dinat_s",), "DiNAT_S": ("dinat_s",)}
_TYPES = {"nat": "NAT", "dinat": "DiNAT", "dinat_s": "DiNAT_s"}
_BACKBONE = {
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "kernel_size": "kernel_size",
    "dilations": "dilations",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "in_chans": "num_channels",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "layer_scale": "layer_scale_init_value",
}
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
_UNTOLD = ("hidden_act", "layer_norm_eps")  # what the authors' backbones have no argument for
# What natjax has no other value of.
_HEAD = {"align_corners": False, "conv_cfg": None, "act_cfg": {"type": "ReLU"}}
_FIXED = {
    "backbone": {"qk_scale": None, "in_patch_size": 4, "patch_size": 4},
    "decode_head": {**_HEAD, "type": "UPerHead", "input_transform": "multiple_select"},
    "auxiliary_head": {
        **_HEAD,
        "type": "FCNHead",
        "in_index": AUXILIARY_FEATURE,
        "kernel_size": 3,
        "dilation": 1,
        "input_transform": None,
    },
}
_NORM = {"type": ("BN", "SyncBN"), "eps": (1e-5,), "momentum": (0.1,)}  # as natjax.nn.batch_norm has them


def config_of(meta: Mapping[str, Any], infer: Callable[[Any], UperNetConfig]) -> UperNetConfig | None:
    """Returns the configuration that a checkpoint's `meta` describes, None where it describes none.

    Args:
        meta: the checkpoint's.
        infer: returns the configuration that its tensors' shapes say, for what the text leaves out; its argument is what the text
            says of pool scales, None where it says nothing.

    Raises:
        ValueError: the text describes a model that natjax does not have, or is not written in literals.
    """
    model = model_of(meta.get("config"))
    if model is None:
        return None
    parts = {name: _part(model, name) for name in ("backbone", "decode_head", "auxiliary_head")}
    for name, part in parts.items():
        for argument, only in _FIXED[name].items():
            if part and part.get(argument, only) != only:
                raise ValueError(f"{name}.{argument} is {part[argument]!r}; natjax has {only!r} alone")
        for argument, value in _part(part, "norm_cfg").items():
            if value not in _NORM.get(argument, (value,)):
                raise ValueError(f"{name}.norm_cfg has {argument} {value!r}; natjax has {_NORM[argument][0]!r} alone")
    backbone, head, auxiliary = parts.values()
    shapes = infer(head.get("pool_scales"))
    model_types = _BACKBONES.get(str(backbone.get("type")), ())
    if shapes.trunk.model_type not in model_types:
        raise ValueError(
            f"the backbone is {backbone.get('type')!r}, the tensors are those of {shapes.trunk.model_type!r}"
        )
    fields = {field: backbone[argument] for argument, field in _BACKBONE.items() if backbone.get(argument) is not None}
    if backbone["type"] == "NAT":
        fields.pop("dilations", None)
    elif "dilations" not in fields:
        raise ValueError(f"the backbone is {backbone['type']!r} and has no dilations")
    fields |= {field: head[argument] for argument, field in _DECODE_HEAD.items() if argument in head}
    fields |= {field: auxiliary[argument] for argument, field in _AUXILIARY_HEAD.items() if argument in auxiliary}
    if "loss_weight" in (loss := _part(auxiliary, "loss_decode")):
        fields["auxiliary_loss_weight"] = loss["loss_weight"]
    config = shapes.replace(**fields)
    return _with_classes(config, meta)


def meta_of(config: UperNetConfig) -> dict[str, Any]:
    """Returns the `meta` of a checkpoint: names of the classes, their colours (None where the model has none) and a config text.

    The text is left out where there is something `untold`: whoever reads the file then has to give a configuration.
    """
    palette: Any = config.extra.get("palette")
    meta = {
        "CLASSES": list((config.id2label or {}).values()),
        "PALETTE": palette if _is_palette(palette, config.num_labels) else None,
    }
    trunk = config.trunk
    if untold(config):
        return meta
    backbone = {argument: getattr(trunk, field) for argument, field in _BACKBONE.items()}
    for argument in ("dilations", "layer_scale"):  # not every backbone of the authors takes them
        if not backbone[argument]:
            del backbone[argument]
    levels = list(trunk.level_dims)
    indices = list(range(len(levels)))
    decode_head = {argument: getattr(config, field) for argument, field in _DECODE_HEAD.items()}
    model: dict[str, Any] = {
        "type": "EncoderDecoder",
        "pretrained": None,
        "backbone": {"type": _TYPES[trunk.model_type], **backbone, "out_indices": indices},
        "decode_head": _head("UPerHead", levels, indices, 1.0) | decode_head,
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    if config.use_auxiliary_head:
        common = {name: decode_head[name] for name in ("num_classes", "dropout_ratio", "ignore_index")}
        auxiliary_head = {argument: getattr(config, field) for argument, field in _AUXILIARY_HEAD.items()}
        head = _head("FCNHead", levels[AUXILIARY_FEATURE], AUXILIARY_FEATURE, config.auxiliary_loss_weight)
        model["auxiliary_head"] = head | common | auxiliary_head
    return meta | {"config": f"model = {_source(model)}\n"}


def untold(config: UperNetConfig) -> list[str]:
    """Returns the backbone's fields that decide what a model computes and that no config text can say."""
    plain = NatConfig()
    return [name for name in _UNTOLD if getattr(config.trunk, name) != getattr(plain, name)]


def _head(kind: str, channels: Any, index: Any, loss_weight: float) -> dict[str, Any]:
    return {
        "type": kind,
        "in_channels": channels,
        "in_index": index,
        "norm_cfg": {"type": "SyncBN", "requires_grad": True},
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": loss_weight},
    }


def _source(value: Any, indent: str = "") -> str:
    """Returns the literal of a value as mmcv writes it: mappings are calls of dict, over several lines."""
    if not isinstance(value, Mapping):
        return repr(value)
    inner = indent + "    "
    lines = (f"{inner}{key}={_source(item, inner)}" for key, item in value.items())
    return "dict(\n" + ",\n".join(lines) + ")" if value else "dict()"


def model_of(text: Any) -> dict[str, Any] | None:
    """Returns the mapping that a config's text assigns to `model`, None where there is no such text.

    Raises:
        ValueError: it is not Python, or its model is not written in literals.
    """
    if not isinstance(text, str):
        return None
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"it has more than {_MAX_CHARACTERS} characters")
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python ({type(error).__name__})") from error
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "model" for target in targets):
            model = _literal(statement.value)
            if not isinstance(model, dict):
                raise ValueError(f"its model is no mapping but {type(model).__name__}")
            return model
    return None


def _literal(node: ast.expr, depth: int = 0) -> Any:
    """Returns the value of a constant, list, tuple or mapping, or of `dict(name=value)`.

    Raises:
        ValueError: it is anything else.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")

    def inner(node: ast.expr) -> Any:
        return _literal(node, depth + 1)

    match node:
        case ast.Constant():
            return node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List() | ast.Tuple():
            return [inner(item) for item in node.elts]
        case ast.Dict() if all(isinstance(key, ast.Constant) for key in node.keys):
            return {key.value: inner(value) for key, value in zip(node.keys, node.values, strict=True)}  # ty: ignore
        case ast.Call(func=ast.Name(id="dict"), args=[]) if all(keyword.arg for keyword in node.keywords):
            return {keyword.arg: inner(keyword.value) for keyword in node.keywords}
    raise ValueError(f"its model has a {type(node).__name__} in it (line {node.lineno}), which is no literal")


def _part(model: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a part of the model, which is empty where it is missing or None.

    Raises:
        ValueError: it is no mapping.
    """
    part = model.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise ValueError(f"{name} is no mapping but {type(part).__name__}")
    return part


def _with_classes(config: UperNetConfig, meta: Mapping[str, Any]) -> UperNetConfig:
    """Returns a configuration with the names of the classes, and their colours as `extra["palette"]`, where they fit."""
    names: Any = meta.get("CLASSES")
    palette: Any = meta.get("PALETTE")
    count = config.num_labels
    if _is_list(names, count) and all(isinstance(name, str) for name in names):
        config = config.replace(id2label=dict(enumerate(names)))
    if _is_palette(palette, count):
        config = config.replace(extra={**config.extra, "palette": [list(colour) for colour in palette]})
    return config


def _is_palette(value: Any, count: int | None) -> bool:
    return _is_list(value, count) and all(_is_list(colour, 3) and all(map(_is_byte, colour)) for colour in value)


def _is_list(value: Any, length: int | None) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256
