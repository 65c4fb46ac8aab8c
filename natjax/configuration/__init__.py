"""Configurations: one frozen, validated dataclass per family, a file each. Any config.json is read by its model_type.

A new family is one file here and one entry of `CONFIGURATIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from natjax.configuration.base import CONFIG_NAME, PROCESSOR_NAME, Configuration, model_type_of, read_json
from natjax.configuration.checks import check_fields
from natjax.configuration.dense import DenseConfig
from natjax.configuration.detection import CascadeMaskRcnnConfig, MaskRcnnConfig
from natjax.configuration.dinat_s import DinatSConfig
from natjax.configuration.isotropic import NatIsotropicConfig, VitRpbConfig
from natjax.configuration.nat import ACTIVATIONS, PROBLEM_TYPES, UNDILATED, NatConfig
from natjax.configuration.upernet import UperNetConfig

__all__ = [
    "ACTIVATIONS",
    "CONFIGURATIONS",
    "CONFIG_NAME",
    "FAMILIES",
    "PROBLEM_TYPES",
    "PROCESSOR_NAME",
    "UNDILATED",
    "CascadeMaskRcnnConfig",
    "Configuration",
    "DenseConfig",
    "DinatSConfig",
    "MaskRcnnConfig",
    "NatConfig",
    "NatIsotropicConfig",
    "UperNetConfig",
    "VitRpbConfig",
    "check_fields",
    "config_from_dict",
    "read_config",
]

# By the model_type of a config.json: the families of bare models, backbones and classifiers, and all.
FAMILIES: dict[str, type[NatConfig]] = {
    model_type: family
    for family in (NatConfig, DinatSConfig, NatIsotropicConfig, VitRpbConfig)
    for model_type in family.model_types
}
CONFIGURATIONS: dict[str, type[Configuration]] = FAMILIES | {
    model_type: dense
    for dense in (UperNetConfig, MaskRcnnConfig, CascadeMaskRcnnConfig)
    for model_type in dense.model_types
}


def config_from_dict(values: Mapping[str, Any]) -> Any:
    """Makes the configuration that the content of a config.json describes, of the class that its model_type names.

    Raises:
        ValueError: it is of an architecture that natjax does not know, or a value is impossible.
    """
    model_type = model_type_of(values)
    if not isinstance(model_type, str) or model_type not in CONFIGURATIONS:
        known = ", ".join(map(repr, CONFIGURATIONS))
        raise ValueError(f"This configuration is of a {model_type!r} model; natjax reads {known}.")
    return CONFIGURATIONS[model_type].from_dict(values)


def read_config(path: str | os.PathLike) -> Any:
    """Reads any config.json.

    Raises:
        natjax.CheckpointError: the file is missing, is not JSON or describes an impossible or unknown model.
    """
    return read_json(path, config_from_dict)
