"""Feature maps for detection and segmentation, `NatBackbone` of transformers 4.40.2 (and its Dinat twin)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import nnx

from natjax.configuration import NatConfig
from natjax.models.base import NatPreTrainedModel, checked_pixel_values
from natjax.models.nat import Encoder, embed
from natjax.nn.blocks import Embeddings
from natjax.nn.layers import as_rngs, layer_norm
from natjax.nn.sizes import cut, halved
from natjax.outputs import NatBackboneOutput

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


class NatBackbone(NatPreTrainedModel):
    """Feature maps of the stages `config.out_features` for detection and segmentation, each with a norm of its own."""

    kind = "backbone"

    def _build(self, config: NatConfig, *, implementation: str | None, **options: Any) -> None:
        self.embeddings = Embeddings(config, **options)
        self.encoder = Encoder(config, implementation=implementation, **options)
        self.hidden_states_norms = nnx.Dict(
            {
                stage: layer_norm(dim, **options)
                for stage, dim in zip(config.out_features or (), self.channels, strict=True)
            }
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every feature map."""
        dims = (self.config.embed_dim, *self.config.level_dims)
        return tuple(dims[i] for i in self.config.out_indices or ())

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        *,
        pixel_mask: Shaped[Array, "B H W"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatBackboneOutput:
        """Computes feature maps. Arguments and errors are those of `NatModel`."""
        pixel_values = checked_pixel_values(pixel_values, self.config)
        want_states, want_attentions = self.outputs_wanted(output_hidden_states, output_attentions)
        rngs = as_rngs(rngs)
        stem, sizes = embed(self.embeddings, self.config, pixel_values, pixel_mask, rngs=rngs)
        _, before_downsampling, attentions = self.encoder(
            stem, sizes=sizes, rngs=rngs, output_attentions=want_attentions
        )
        of_stages = [sizes, sizes]  # stem and first level
        while len(of_stages) < len(self.config.stage_names):
            of_stages.append(halved(of_stages[-1]))
        of_stages = dict(zip(self.config.stage_names, of_stages, strict=True))
        states = dict(zip(self.config.stage_names, (stem, *before_downsampling), strict=True))
        return NatBackboneOutput(
            feature_maps=tuple(
                cut(self.hidden_states_norms[stage](states[stage]), of_stages[stage])
                for stage in self.config.out_features or ()
            ),
            hidden_states=tuple(states.values()) if want_states else None,
            attentions=attentions if want_attentions else None,
        )
