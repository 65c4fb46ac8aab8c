"""What files of mmsegmentation and mmdetection say of their model beside the weights: `meta`, with a config text and classes.

The text is Python. It is parsed and never run: of it counts `model = dict(...)`, written in literals. `config_of` reads a `meta`,
`meta_of` writes one. A file here for each library reads and writes its heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from natjax.configuration import DenseConfig, MaskRcnnConfig, NatConfig, UperNetConfig
from natjax_convert.config_texts import mmdet, mmseg
from natjax_convert.config_texts.literals import model_of, source
from natjax_convert.config_texts.parts import backbone_fields, backbone_of

_UNTOLD = ("hidden_act", "layer_norm_eps")  # what the authors' backbones have no argument for


def config_of(kind: str, meta: Mapping[str, Any], infer: Callable[[Mapping[str, Any]], Any]) -> Any | None:
    """Returns the configuration that a checkpoint's `meta` describes, None where it describes none.

    Args:
        kind: of the checkpoint, "segmentation" or "detection".
        meta: the checkpoint's.
        infer: returns the configuration that its tensors' shapes say, for what the text leaves out; its argument is the fields of
            the heads that the text says.

    Raises:
        ValueError: the text describes a model that natjax does not have, or is not written in literals.
    """
    model = model_of(meta.get("config"))
    if model is None:
        return None
    config = mmseg.read(model, infer) if kind == "segmentation" else mmdet.read(model, infer)
    return with_classes(config.replace(**backbone_fields(model, config.trunk)), meta)


def with_classes(config: Any, meta: Mapping[str, Any]) -> Any:
    """Returns a configuration with the names of the classes that a `meta` has, where they are as many.

    Those of segmentation have colours, too, which are `extra["palette"]`.
    """
    names: Any = meta.get("CLASSES")
    palette: Any = meta.get("PALETTE")
    if _is_list(names, config.num_labels) and all(isinstance(name, str) for name in names):
        config = config.replace(id2label=dict(enumerate(names)))
    if isinstance(config, UperNetConfig) and _is_palette(palette, config.num_labels):
        config = config.replace(extra={**config.extra, "palette": [list(colour) for colour in palette]})
    return config


def meta_of(config: Any) -> dict[str, Any]:
    """Returns the `meta` of a checkpoint: names of the classes, a config text, and colours (None where a segmenter has none).

    The text is left out where there is something `untold`: whoever reads the file then has to give a configuration.
    """
    meta: dict[str, Any] = {"CLASSES": list((config.id2label or {}).values())}
    if isinstance(config, UperNetConfig):
        palette = config.extra.get("palette")
        meta["PALETTE"] = palette if _is_palette(palette, config.num_labels) else None
    if untold(config):
        return meta
    heads = mmseg.write(config) if isinstance(config, UperNetConfig) else mmdet.write(config)
    model = {"type": heads.pop("type"), "pretrained": None, "backbone": backbone_of(config.trunk), **heads}
    return meta | {"config": f"model = {source(model)}\n"}


def untold(config: DenseConfig) -> list[str]:
    """Returns the fields that decide what a model computes, or what its losses are, and that no config text can say."""
    plain = NatConfig()
    fields = [name for name in _UNTOLD if getattr(config.trunk, name) != getattr(plain, name)]
    if type(config) is MaskRcnnConfig and config.stage_loss_weights != MaskRcnnConfig.stage_loss_weights:
        fields.append("stage_loss_weights")  # which a cascade alone has in mmdetection
    return fields


def _is_palette(value: Any, count: int) -> bool:
    return _is_list(value, count) and all(_is_list(colour, 3) and all(map(_is_byte, colour)) for colour in value)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256
