"""A natjax model or layer as a Flax Linen module, for code bases that have not moved to NNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import nnx
from flax.nnx import bridge

from natjax.models import NatForImageClassification, NatPreTrainedModel

if TYPE_CHECKING:
    from natjax.configuration import NatConfig


def to_linen(
    config: NatConfig | type[nnx.Module],
    *arguments: Any,
    model_class: type[NatPreTrainedModel] = NatForImageClassification,
    **options: Any,
) -> bridge.ToLinen:
    """Wraps a model or layer as a Linen module; its parameters are the module's variables as they are.

        model = natjax.NatForImageClassification.from_pretrained("...")
        module = natjax.to_linen(model.config)
        variables = {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}
        logits = module.apply(variables, pixel_values).logits

        layer = natjax.to_linen(natjax.NeighborhoodAttention, 64, 4, kernel_size=7)  # in a Linen module's setup, say

    Args:
        config: the architecture of a model, or the class of a layer.
        *arguments: of the layer.
        model_class: which model.
        **options: keyword arguments of the model or layer, such as `dtype`.
    """
    if isinstance(config, type):
        return bridge.to_linen(config, *arguments, **options)
    return bridge.to_linen(model_class, config, *arguments, **options)
