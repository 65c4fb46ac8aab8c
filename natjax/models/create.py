"""Models by the names of their presets, with random weights."""

from __future__ import annotations

from typing import Any

from flax import nnx

from natjax.models.base import NatPreTrainedModel
from natjax.models.classification import NatForImageClassification
from natjax.presets import get_config


def create_model(
    name: str,
    *,
    model_class: type[NatPreTrainedModel] | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    implementation: str | None = None,
    rngs: nnx.Rngs | None = None,
    **changes: Any,
) -> NatPreTrainedModel:
    """Makes a preset with random weights; `from_pretrained` loads published ones.

    Args:
        name: of `list_models()`.
        model_class: `NatForImageClassification` (default), `NatModel` or `NatBackbone`.
        dtype: compute dtype, see `NatForImageClassification`.
        param_dtype: dtype of the parameters.
        implementation: of neighborhood attention.
        rngs: source of the weights; `nnx.Rngs(0)` by default.
        **changes: fields of `NatConfig`, for instance `num_labels=10` or `drop_path_rate=0.0`.

    Raises:
        ValueError: there is no such preset, or the changes are impossible.
    """
    return (model_class or NatForImageClassification)(
        get_config(name, **changes),
        dtype=dtype,
        param_dtype=param_dtype,
        implementation=implementation,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
    )
