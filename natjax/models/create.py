"""Models by the names of their presets, with random weights or the published ones."""

from __future__ import annotations

import os
from typing import Any

from flax import nnx

from natjax.configuration import CascadeMaskRcnnConfig, DenseConfig, MaskRcnnConfig, UperNetConfig
from natjax.hub import locate_preset
from natjax.models.base import NatPreTrainedModel
from natjax.models.classification import NatForImageClassification
from natjax.models.detection import CascadeMaskRcnnForObjectDetection, MaskRcnnForObjectDetection
from natjax.models.upernet import UperNetForSemanticSegmentation
from natjax.presets import get_config

_CLASSES: dict[type, type[NatPreTrainedModel]] = {
    UperNetConfig: UperNetForSemanticSegmentation,
    MaskRcnnConfig: MaskRcnnForObjectDetection,
    CascadeMaskRcnnConfig: CascadeMaskRcnnForObjectDetection,
}


def class_of(config: Any) -> type[NatPreTrainedModel]:
    """Returns the class of the models of a configuration, that of image classifiers for a bare backbone's."""
    return _CLASSES.get(type(config), NatForImageClassification)


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    model_class: type[NatPreTrainedModel] | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    implementation: str | None = None,
    rngs: nnx.Rngs | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **changes: Any,
) -> NatPreTrainedModel:
    """Makes a preset.

    Args:
        name: of `list_models()`.
        pretrained: whether it has the published weights (see `natjax.hub.locate_preset`) instead of random ones. The
            classifier is a new one where the number or the names of the classes are other ones.
        model_class: by default `NatForImageClassification`, or `UperNetForSemanticSegmentation`, `MaskRcnnForObjectDetection` or
            `CascadeMaskRcnnForObjectDetection` for a model of these; or `NatModel` or `NatBackbone`.
        dtype: compute dtype, see `NatForImageClassification`.
        param_dtype: dtype of the parameters.
        implementation: of neighborhood attention.
        rngs: source of random weights; `nnx.Rngs(0)` by default.
        revision: of the published weights on the Hub: branch, tag or commit.
        local_files_only: use only what is in the Hub's cache, without a network.
        cache_dir: the Hub's cache.
        **changes: fields of the configuration, for instance `num_labels=10` or `drop_path_rate=0.0`.

    Raises:
        ValueError: there is no such preset, or the changes are impossible.
        CheckpointError: the published weights cannot be loaded, or do not fit the changes.
    """
    rngs = nnx.Rngs(0) if rngs is None else rngs
    options: dict[str, Any] = {
        "dtype": dtype,
        "param_dtype": param_dtype,
        "implementation": implementation,
        "rngs": rngs,
    }
    config = get_config(name, **changes)
    model_class = model_class or class_of(config)
    if not pretrained:
        return model_class(config if issubclass(model_class.config_class, DenseConfig) else config.trunk, **options)
    published = get_config(name)
    named = {"id2label", "label2id"} & set(changes) and config.id2label != published.id2label
    replace_head = bool(named) or config.num_labels != published.num_labels
    if replace_head:
        changes["id2label"] = config.id2label
    path = locate_preset(name, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
    return model_class.from_pretrained(path, replace_head=replace_head, **options, **changes)
