"""NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001): the bare model, `NatModel` of transformers 4.40.2 (and its Dinat twin).

The configuration decides the family: NAT and DiNAT, DiNAT_s, isotropic models and ViT-rpb.

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
from natjax.nn.sizes import cut, halved, in_patches, mean, sizes_of_mask
from natjax.nn.spatial import check_sides
from natjax.outputs import NatModelOutput

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float, Shaped


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

    def __call__(self, x: Float[Array, "B H W C"], *, sizes=None, rngs=None, output_attentions: bool = False):
        """Returns every level's output, every level's map before downsampling, and every level's attention weights.

        Where the maps of entries have sizes of their own, [B, 2], everything past them is 0.
        """
        outputs, before_downsampling, attentions = [], [], []
        for i, level in enumerate(self.levels):
            with jax.named_scope(f"level{i + 1}"):
                x, before, weights = level(x, sizes=sizes, rngs=rngs, output_attentions=output_attentions)
            before_downsampling.append(cut(before, sizes))
            sizes = sizes if level.downsample is None else halved(sizes)
            outputs.append(cut(x, sizes))
            attentions.append(weights)
        return tuple(outputs), tuple(before_downsampling), tuple(attentions)


def embed(
    stem: Embeddings, config: NatConfig, pixel_values: Array, pixel_mask: Any, *, rngs
) -> tuple[Array, Array | None]:
    """Returns the stem's map, and, of images of mixed sizes, the sizes of theirs, past which it is 0.

    Raises:
        ValueError: the model does not take images of this size, or of mixed sizes, or split over so many devices, or the mask
            does not fit them.
    """
    config.check_image_size(*pixel_values.shape[1:3], mixed=pixel_mask is not None)
    check_sides(pixel_values, config.patch_size * 2 ** (config.num_levels - 1))
    sizes = None if pixel_mask is None else sizes_of_mask(pixel_mask, pixel_values.shape)
    x = stem(pixel_values, sizes=sizes, rngs=rngs)
    sizes = in_patches(sizes, config.patch_size)
    return cut(x, sizes), sizes


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
        pixel_mask: Shaped[Array, "B H W"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatModelOutput:
        """Computes features.

        Args:
            pixel_values: normalised images, floating point, any height and width. On a mesh of Explicit axes they may be split
                over devices along batch, height and width, and so is every level's map then.
            pixel_mask: not 0 for the pixels of every image, which are at the top left of its array: batches of images of
                mixed sizes give what each image gives alone, and features past its size are 0.
            output_hidden_states: whether to return the output of the stem and of every level.
            output_attentions: whether to return the attention weights of every level's last layer.
            rngs: `nnx.Rngs` or a `jax.random.key` for dropouts; needed by a training view with any rate above 0.

        Raises:
            TypeError: pixel_values is no array.
            ValueError: pixel_values has another rank, number of channels or kind of dtype, or is split along a side that does not
                divide; pixel_mask does not fit it, or the model is a ViT-rpb and takes another size.
        """
        pixel_values = checked_pixel_values(pixel_values, self.config)
        want_states, want_attentions = self.outputs_wanted(output_hidden_states, output_attentions)
        rngs = as_rngs(rngs)
        stem, sizes = embed(self.embeddings, self.config, pixel_values, pixel_mask, rngs=rngs)
        levels, _, attentions = self.encoder(stem, sizes=sizes, rngs=rngs, output_attentions=want_attentions)
        for _ in levels[1:]:
            sizes = halved(sizes)
        last = cut(self.layernorm(levels[-1]), sizes)
        states = (stem, *levels)
        return NatModelOutput(
            last_hidden_state=last,
            pooler_output=mean(last, sizes),
            hidden_states=states if want_states else None,
            reshaped_hidden_states=tuple(jnp.moveaxis(x, -1, 1) for x in states) if want_states else None,
            attentions=attentions if want_attentions else None,
        )
