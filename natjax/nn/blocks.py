"""The blocks of NAT (arXiv 2204.07143, section 3; DiNAT: arXiv 2209.15001): stem, layer, downsampler, level.

The families differ in stem and downsampler alone: overlapping convolutions here, or the patches of natjax.nn.patches.

Feature maps are `[B, H, W, C]` throughout. Modules hold parameters only; they start in evaluation mode (`deterministic=True`),
`nnx.view(model, deterministic=False)` gives the training view, whose dropouts take `rngs` at call time.

Letters: B batch, H W height and width, C channels, N heads, K kernel size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import NatConfig
from natjax.nn.attention import NeighborhoodAttention
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import downsampling_conv, drop_path, dropout, layer_norm, linear, multiply
from natjax.nn.patches import PatchMerging, PatchProjection
from natjax.nn.sizes import cut, halved
from natjax.nn.xla import gelu, split_residual

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float

_ACTIVATIONS = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
}


class PatchEmbeddings(nnx.Module):
    """Two overlapping stride-2 convolutions, without activation between them (NAT section 3.3)."""

    def __init__(self, config: NatConfig, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        half = config.embed_dim // 2
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        options["kernel_init"] = truncated_normal(config.initializer_range)
        self.projection = nnx.List(
            [
                downsampling_conv(config.num_channels, half, **options),
                downsampling_conv(half, config.embed_dim, **options),
            ]
        )

    def __call__(self, x: Float[Array, "B H W C"], *, sizes=None) -> Float[Array, "B h w D"]:
        """Embeds images of such sizes, [B, 2]; of that of the array where None."""
        for conv in self.projection:
            x, sizes = conv(cut(x, sizes)), halved(sizes)
        return x


class Embeddings(nnx.Module):
    """The stem: patch embeddings, LayerNorm, dropout."""

    def __init__(self, config: NatConfig, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        patch_embeddings = PatchEmbeddings if config.overlapping else PatchProjection
        self.patch_embeddings = patch_embeddings(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = layer_norm(config.embed_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dropout = dropout(config.hidden_dropout_prob)

    def __call__(self, pixel_values: Float[Array, "B H W C"], *, sizes=None, rngs=None) -> Float[Array, "B h w D"]:
        """Embeds images of such sizes, [B, 2]; of that of the array where None."""
        return self.dropout(self.norm(self.patch_embeddings(pixel_values, sizes=sizes)), rngs=rngs)


class NatLayer(nnx.Module):
    """One pre-norm layer: attention, then MLP, each with optional layer scale and stochastic depth."""

    def __init__(
        self,
        config: NatConfig,
        dim: int,
        num_heads: int,
        *,
        dilation: int,
        drop_path_rate: float,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        hidden = int(config.mlp_ratio * dim)
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        kernel_init = truncated_normal(config.initializer_range)
        self.hidden_act = config.hidden_act
        self.layernorm_before = layer_norm(dim, epsilon=config.layer_norm_eps, **options)
        self.attention = NeighborhoodAttention(
            dim,
            num_heads,
            kernel_size=(config.kernel_size,) * 2,
            dilation=dilation,
            qkv_bias=config.qkv_bias,
            attention_dropout=config.attention_probs_dropout_prob,
            projection_dropout=config.attention_probs_dropout_prob,
            kernel_init=kernel_init,
            implementation=implementation,
            **options,
        )
        self.layernorm_after = layer_norm(dim, epsilon=config.layer_norm_eps, **options)
        self.intermediate = linear(dim, hidden, kernel_init=kernel_init, **options)
        self.output = linear(hidden, dim, kernel_init=kernel_init, **options)
        self.dropout = dropout(config.hidden_dropout_prob)
        self.drop_path = drop_path(drop_path_rate)
        if config.layer_scale_init_value > 0:
            self.layer_scale_parameters = nnx.Param(jnp.full((2, dim), config.layer_scale_init_value, param_dtype))
        else:
            self.layer_scale_parameters = nnx.data(None)

    def _residual(self, x, branch, index, rngs):
        if self.layer_scale_parameters is not None:
            scale = jax.lax.index_in_dim(self.layer_scale_parameters[...], index, keepdims=False)
            branch = multiply(branch, scale)
        return x + self.drop_path(branch, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B H W C"], *, sizes=None, rngs=None, output_attentions: bool = False
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B N h w K2"] | None]:
        """Returns the layer's output and, where asked for, its attention weights; entries may have sizes of their own, [B, 2]."""
        x, y = split_residual(x)
        y, weights = self.layernorm_before(y), None
        if output_attentions:
            y, weights = self.attention(y, sizes=sizes, rngs=rngs, output_attentions=True)
        else:
            y = self.attention(y, sizes=sizes, rngs=rngs)
        x, y = split_residual(self._residual(x, y, 0, rngs))
        with jax.named_scope("mlp"):
            hidden = _ACTIVATIONS[self.hidden_act](self.intermediate(self.layernorm_after(y)))
            x = self._residual(x, self.dropout(self.output(hidden), rngs=rngs), 1, rngs)
        return x, weights


class Downsampler(nnx.Module):
    """Overlapping downsampling between levels: half the size, twice the channels."""

    def __init__(self, config: NatConfig, dim: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        kernel_init = truncated_normal(config.initializer_range)
        self.reduction = downsampling_conv(dim, 2 * dim, use_bias=False, kernel_init=kernel_init, **options)
        self.norm = layer_norm(2 * dim, **options)

    def __call__(self, x: Float[Array, "B H W C"], *, sizes=None) -> Float[Array, "B h w 2*C"]:
        """Downsamples maps of such sizes, [B, 2]; of that of the array where None."""
        return self.norm(self.reduction(cut(x, sizes)))


class Level(nnx.Module):
    """Layers of one resolution and the downsampler to the next, if there is one."""

    def __init__(
        self,
        config: NatConfig,
        index: int,
        drop_path_rates: Sequence[float],
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        dim, num_heads = config.level_dims[index], config.num_heads[index]
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layers = nnx.List(
            [
                NatLayer(
                    config,
                    dim,
                    num_heads,
                    dilation=dilation,
                    drop_path_rate=rate,
                    implementation=implementation,
                    **options,
                )
                for dilation, rate in zip(config.layer_dilations(index), drop_path_rates, strict=True)
            ]
        )
        last = index + 1 == config.num_levels
        downsampler = Downsampler if config.overlapping else PatchMerging
        self.downsample = nnx.data(None) if last else downsampler(config, dim, **options)
        self.remat = False

    def set_view(self, remat: bool | None = None):
        """Args of `nnx.view`:
        remat: True computes every layer's activations again in the backward pass instead of keeping them.
        """
        if remat is not None:
            self.remat = remat

    def __call__(self, x: Float[Array, "B H W C"], *, sizes=None, rngs=None, output_attentions: bool = False):
        """Returns the map for the next level, the map before downsampling and the last layer's attention weights.

        What is past an entry's own size, [B, 2], means nothing.
        """
        weights = None
        for i, layer in enumerate(self.layers):
            # As in Hugging Face, a level shows the weights of its last layer only.
            show = output_attentions and i + 1 == len(self.layers)
            run = nnx.remat(_run_layer, static_argnums=4) if self.remat else _run_layer
            x, weights = run(layer, x, sizes, rngs, show)
        return (x if self.downsample is None else self.downsample(x, sizes=sizes)), x, weights


def _run_layer(layer: NatLayer, x: Array, sizes: Array | None, rngs: nnx.Rngs | None, output_attentions: bool):
    return layer(x, sizes=sizes, rngs=rngs, output_attentions=output_attentions)
