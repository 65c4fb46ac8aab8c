"""A natjax model as a Flax Linen module, for code bases that have not moved to NNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax.nnx import bridge

from natjax.models import NatForImageClassification, NatPreTrainedModel

if TYPE_CHECKING:
    from natjax.configuration import NatConfig


def to_linen(
    config: NatConfig, *, model_class: type[NatPreTrainedModel] = NatForImageClassification, **options: Any
) -> bridge.ToLinen:
    """Wraps a model class as a Linen module; a model's parameters are its variables as they are.

        model = natjax.NatForImageClassification.from_pretrained("...")
        module = natjax.to_linen(model.config)
        variables = {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}
        logits = module.apply(variables, pixel_values).logits

    Args:
        config: the architecture.
        model_class: which model.
        **options: its keyword arguments, such as `dtype`.
    """
    return bridge.to_linen(model_class, config, **options)
