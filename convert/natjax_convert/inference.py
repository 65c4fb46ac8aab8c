"""What the shapes of tensors say of the model: its configuration, and the presets that it may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natjax.configuration import FAMILIES, DenseConfig, NatConfig
from natjax.errors import CheckpointError
from natjax.presets import DETECTION_PRESETS, PRESETS, SEGMENTATION_PRESETS
from natjax_convert.dialect import Dialect, Found, parameter_shape
from natjax_convert.heads import detection_from_shapes, upernet_from_shapes
from natjax_convert.names import detect
from natjax_convert.pieces import Parameter, ParameterPath
from natjax_convert.shapes import Kind, config_from_shapes, parameters
from natjax_convert.state_dict import StateDict, unusable

DENSE_PRESETS: dict[Kind, Mapping[str, Any]] = {"segmentation": SEGMENTATION_PRESETS, "detection": DETECTION_PRESETS}


def infer_config(
    state_dict: StateDict,
    *,
    dilations: Any = None,
    fields: Mapping[str, Any] | None = None,
    found: Found | None = None,
) -> Any:
    """Infers the configuration of a model from the shapes of its tensors.

    Args:
        state_dict: tensors by name, in any dialect.
        dilations: of every layer, by level; they are in no tensor. None means none.
        fields: what is known of the configuration of a segmentation or detection model: `pool_scales`, `anchor_ratios` and
            `box_stds`, for instance, are in no tensor. Without, those of the published models are, if there are as many.
        found: what `natjax_convert.names.detect` says of the state dict, where that is known already.

    Returns:
        a `NatConfig`, or that of its family; a `UperNetConfig` for a segmentation model, a `MaskRcnnConfig` or
        `CascadeMaskRcnnConfig` for a detection model.

    Raises:
        CheckpointError: tensors are missing, their shapes are those of no model, or the dilations do not fit.
    """
    found = found or detect(state_dict)
    families = {FAMILIES[model_type] for model_type in found.model_types}
    family: Any = families.pop() if len(families) == 1 else None

    def shape(path: ParameterPath) -> tuple[int, ...]:
        return _shape_in(state_dict, found.dialect, found.prefix, path)

    try:
        config: Any = config_from_shapes(shape, family=family)
        if found.kind == "segmentation":
            config = upernet_from_shapes(shape, config, fields or {})
        elif found.kind == "detection":
            config = detection_from_shapes(shape, config, fields or {}, found.dialect.family)
    except (LookupError, ValueError) as error:
        raise unusable(state_dict, f"The tensors' shapes are those of no model of natjax: {error}") from error
    if dilations is None:
        return config
    try:
        return config.replace(dilations=dilations)
    except ValueError as error:
        raise unusable(state_dict, f"The dilations do not fit the model: {error}") from error


def fitting_presets(state_dict: StateDict, found: Found) -> list[str]:
    """Returns the names of the presets that have tensors of these shapes, those of as many classes first."""
    try:
        config = infer_config(state_dict, found=found)
    except CheckpointError:
        return []
    if found.kind in DENSE_PRESETS:
        return [
            name
            for name, preset in DENSE_PRESETS[found.kind].items()
            if type(preset.config) is type(config)
            and preset.config.trunk.depths == config.trunk.depths
            and preset.config.trunk.model_type in found.model_types
            and _shapes(preset.config, found.kind) == _shapes(config, found.kind)
        ]
    fitting = [
        name
        for name, preset in PRESETS.items()
        if preset.config.depths == config.depths  # before the parameters are listed, of which there may be many
        and _trunk(preset.config) == _trunk(config)
        and preset.config.model_type in found.model_types
    ]
    return sorted(fitting, key=lambda name: PRESETS[name].config.num_labels != config.num_labels)


def _shapes(config: DenseConfig, kind: Kind) -> list[Parameter]:
    """All parameters but those that follow the classes."""
    return [parameter for parameter in parameters(config, kind) if not parameter.of_classifier]


def _trunk(config: NatConfig) -> list[Parameter]:
    return parameters(config, "model")


def _shape_in(state_dict: StateDict, dialect: Dialect, prefix: str, path: ParameterPath) -> tuple[int, ...]:
    """The shape of a parameter, by that of its first tensor; a LookupError where it has none."""
    names = dialect.names(path, prefix)
    if not names:
        raise LookupError(f"{dialect.title} has no name for {'.'.join(map(str, path))}")
    tensor_shape = tuple(state_dict[names[0]].shape)
    if 0 in tensor_shape:  # an empty tensor can have any shape without a byte to show for it
        raise LookupError(f"{names[0]} is empty")
    return parameter_shape(path, names, tensor_shape)
