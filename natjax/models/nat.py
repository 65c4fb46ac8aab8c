"""NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001): the bare model, `NatModel` of transformers 4.40.2 (and its Dinat twin).

Images are in JAX's layout, [B, H, W, C]. A model is evaluated unless it is viewed for training:

    train = nnx.view(model, deterministic=False)
    train(pixel_values, rngs=nnx.Rngs(0)).pooler_output
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from natjax.models.base import NatPreTrainedModel, as_rngs, check_pixel_values
from natjax.nn.blocks import Builder, Embeddings, Encoder
from natjax.outputs import NatModelOutput

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class NatModel(NatPreTrainedModel):
    """The bare model: stem, levels, final norm and mean pooling."""

    kind = "model"

    def _build(self, make: Builder) -> None:
        config = make.config
        self.embeddings = Embeddings(make)
        self.encoder = Encoder(make)
        self.layernorm = make.norm(config.hidden_size, config.layer_norm_eps)

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
            ValueError: pixel_values has another rank, number of channels or kind of dtype.
        """
        check_pixel_values(pixel_values, self.config)
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
