"""Neighborhood Attention Transformers (NAT, DiNAT and their family) for JAX and Flax.

The names below load on first use, so that `import natjax` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from natjax._version import __version__

if TYPE_CHECKING:
    from natjax.configuration import CascadeMaskRcnnConfig as CascadeMaskRcnnConfig
    from natjax.configuration import DinatSConfig as DinatSConfig
    from natjax.configuration import MaskRcnnConfig as MaskRcnnConfig
    from natjax.configuration import NatConfig as NatConfig
    from natjax.configuration import NatIsotropicConfig as NatIsotropicConfig
    from natjax.configuration import UperNetConfig as UperNetConfig
    from natjax.configuration import VitRpbConfig as VitRpbConfig
    from natjax.errors import CheckpointError as CheckpointError
    from natjax.errors import ImageError as ImageError
    from natjax.errors import NatjaxError as NatjaxError
    from natjax.exporting import export as export
    from natjax.image_processing import NatImageProcessor as NatImageProcessor
    from natjax.images import load_image as load_image
    from natjax.linen import to_linen as to_linen
    from natjax.models import CascadeMaskRcnnForObjectDetection as CascadeMaskRcnnForObjectDetection
    from natjax.models import MaskRcnnForObjectDetection as MaskRcnnForObjectDetection
    from natjax.models import NatBackbone as NatBackbone
    from natjax.models import NatForImageClassification as NatForImageClassification
    from natjax.models import NatModel as NatModel
    from natjax.models import UperNetForSemanticSegmentation as UperNetForSemanticSegmentation
    from natjax.models import create_model as create_model
    from natjax.nn.attention import NeighborhoodAttention as NeighborhoodAttention
    from natjax.nn.xla import compiler_options as compiler_options
    from natjax.pipelines import pipeline as pipeline
    from natjax.presets import get_config as get_config
    from natjax.presets import list_models as list_models
    from natjax_kernels import default_implementation as default_implementation
    from natjax_kernels import explain as explain
    from natjax_kernels import merge_attentions as merge_attentions
    from natjax_kernels import neighborhood_attention as neighborhood_attention
    from natjax_kernels import neighborhood_attention_with_weights as neighborhood_attention_with_weights
    from natjax_kernels import neighbors as neighbors

_MODULES = {
    "CascadeMaskRcnnConfig": "natjax.configuration",
    "CascadeMaskRcnnForObjectDetection": "natjax.models",
    "CheckpointError": "natjax.errors",
    "ImageError": "natjax.errors",
    "DinatSConfig": "natjax.configuration",
    "MaskRcnnConfig": "natjax.configuration",
    "MaskRcnnForObjectDetection": "natjax.models",
    "NatBackbone": "natjax.models",
    "NatConfig": "natjax.configuration",
    "NatForImageClassification": "natjax.models",
    "NatImageProcessor": "natjax.image_processing",
    "NatIsotropicConfig": "natjax.configuration",
    "NatModel": "natjax.models",
    "NatjaxError": "natjax.errors",
    "NeighborhoodAttention": "natjax.nn.attention",
    "VitRpbConfig": "natjax.configuration",
    "UperNetConfig": "natjax.configuration",
    "UperNetForSemanticSegmentation": "natjax.models",
    "compiler_options": "natjax.nn.xla",
    "create_model": "natjax.models",
    "default_implementation": "natjax_kernels",
    "explain": "natjax_kernels",
    "export": "natjax.exporting",
    "get_config": "natjax.presets",
    "list_models": "natjax.presets",
    "load_image": "natjax.images",
    "merge_attentions": "natjax_kernels",
    "neighborhood_attention": "natjax_kernels",
    "neighborhood_attention_with_weights": "natjax_kernels",
    "neighbors": "natjax_kernels",
    "pipeline": "natjax.pipelines",
    "to_linen": "natjax.linen",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'natjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
