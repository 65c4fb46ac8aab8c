"""NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001): the bare model, `NatModel` of transformers 4.40.2 (and its Dinat twin).

Images are in JAX's layout, [B, H, W, C]. A model is evaluated unless it is viewed for training:

    train = nnx.view(model, deterministic=False)
    train(pixel_values, rngs=nnx.Rngs(0)).pooler_output
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.configuration import NatConfig
from natjax.models.base import NatPreTrainedModel, checked_pixel_values
from natjax.nn.blocks import Embeddings, Level
from natjax.nn.layers import as_rngs, layer_norm
from natjax.outputs import NatModelOutput

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float


class Encoder(nnx.Module):
    """All levels. Stochastic depth grows linearly over their layers."""

    def __init__(
        self,
        config: NatConfig,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        rates = np.split(np.linspace(0, config.drop_path_rate, sum(config.depths)), np.cumsum(config.depths)[:-1])
        self.levels = nnx.List(
            [
                Level(config, i, level_rates.tolist(), implementation=implementation, **options)
                for i, level_rates in enumerate(rates)
            ]
        )

    def __call__(self, x: Float[Array, "B H W C"], *, rngs=None, output_attentions: bool = False):
        """Returns every level's output, every level's map before downsampling, and every level's attention weights."""
        outputs, before_downsampling, attentions = [], [], []
        for i, level in enumerate(self.levels):
            with jax.named_scope(f"level{i + 1}"):
                x, before, weights = level(x, rngs=rngs, output_attentions=output_attentions)
            outputs.append(x)
            before_downsampling.append(before)
            attentions.append(weights)
        return tuple(outputs), tuple(before_downsampling), tuple(attentions)


class NatModel(NatPreTrainedModel):
    """The bare model: stem, levels, final norm and mean pooling."""

    kind = "model"

    def _build(self, config: NatConfig, *, implementation: str | None, **options: Any) -> None:
        self.embeddings = Embeddings(config, **options)
        self.encoder = Encoder(config, implementation=implementation, **options)
        self.layernorm = layer_norm(config.hidden_size, epsilon=config.layer_norm_eps, **options)

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatModelOutput:
        """Computes features.

        Args:
            pixel_values: normalised images, floating point, any height and width.
            output_hidden_states: whether to return the output of the stem and of every level.
            output_attentions: whether to return the attention weights of every level's last layer.
            rngs: `nnx.Rngs` or a `jax.random.key` for dropouts; needed by a training view with any rate above 0.

        Raises:
            TypeError: pixel_values is no array.
            ValueError: pixel_values has another rank, number of channels or kind of dtype.
        """
        pixel_values = checked_pixel_values(pixel_values, self.config)
        want_states, want_attentions = self.outputs_wanted(output_hidden_states, output_attentions)
        rngs = as_rngs(rngs)
        stem = self.embeddings(pixel_values, rngs=rngs)
        levels, _, attentions = self.encoder(stem, rngs=rngs, output_attentions=want_attentions)
        last = self.layernorm(levels[-1])
        states = (stem, *levels)
        return NatModelOutput(
            last_hidden_state=last,
            pooler_output=jnp.mean(last, axis=(1, 2)),
            hidden_states=states if want_states else None,
            reshaped_hidden_states=tuple(jnp.moveaxis(x, -1, 1) for x in states) if want_states else None,
            attentions=attentions if want_attentions else None,
        )
