"""What the config texts of mmsegmentation and mmdetection share: the authors' backbones, and how what natjax lacks is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natjax.configuration import NatConfig
from natjax.text import shortened

# Arguments of the authors' backbones, and the fields that they are.
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
_BACKBONE_ONLY = {"qk_scale": None, "in_patch_size": 4, "patch_size": 4, "patch_norm": True}


class Either(tuple[Any, ...]):
    """Values that mean the same to natjax; the first is the one that it writes."""


def check(value: Any, only: Any, name: str = "") -> None:
    """Checks that a value of a text is the one that natjax has. What a text leaves out, or natjax does not know, is no matter.

    Args:
        value: of the text: a mapping, or anything in it.
        only: the value that natjax has. A mapping is that of every entry of a list, too.
        name: of the value, for messages.

    Raises:
        ValueError: it is another; the message names it.
    """
    if isinstance(only, Mapping):
        if isinstance(value, list):
            only = [only] * len(value)
        elif isinstance(value, dict):
            for key in only.keys() & value.keys():
                check(value[key], only[key], f"{name}.{key}" if name else key)
            return
        elif value is None:  # as good as left out
            return
    if isinstance(only, list) and isinstance(value, list) and len(only) == len(value):
        for i, pair in enumerate(zip(value, only, strict=True)):
            check(*pair, f"{name}.{i}")
    elif value not in (only if isinstance(only, Either) else (only,)):
        shown = repr(only[0] if isinstance(only, Either) else only)
        raise ValueError(f"{name} is {shortened(repr(value))}; natjax has {shown} alone")


def part(model: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a part of a model, which is empty where it is missing or None.

    Raises:
        ValueError: it is no mapping.
    """
    value = model.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no mapping but {type(value).__name__}")
    return value


def backbone_fields(model: Mapping[str, Any], trunk: NatConfig) -> dict[str, Any]:
    """Returns the fields of the backbone that a model's text says.

    Args:
        model: the text's.
        trunk: the backbone's configuration as far as tensors say it.

    Raises:
        ValueError: it is another backbone than the tensors', or one that natjax does not have.
    """
    backbone = part(model, "backbone")
    check(backbone, _BACKBONE_ONLY, "backbone")
    kind = backbone.get("type")
    if trunk.model_type not in _BACKBONES.get(str(kind), ()):
        raise ValueError(f"the backbone is {shortened(repr(kind))}, the tensors are those of {trunk.model_type!r}")
    fields = {field: backbone[argument] for argument, field in _BACKBONE.items() if backbone.get(argument) is not None}
    if kind == "NAT":
        fields.pop("dilations", None)
    elif "dilations" not in fields:
        raise ValueError(f"the backbone is {kind!r} and has no dilations")
    return fields


def backbone_of(trunk: NatConfig) -> dict[str, Any]:
    """Returns the arguments of the authors' backbone."""
    arguments = {argument: getattr(trunk, field) for argument, field in _BACKBONE.items()}
    for argument in ("dilations", "layer_scale"):  # not every backbone of the authors takes them
        if not arguments[argument]:
            del arguments[argument]
    return {"type": _TYPES[trunk.model_type], **arguments, "out_indices": list(range(trunk.num_levels))}
