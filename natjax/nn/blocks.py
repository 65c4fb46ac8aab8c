"""The parts of NAT (arXiv 2204.07143, section 3; DiNAT: arXiv 2209.15001): stem, attention layer, downsampler, encoder.

Feature maps are `[B, H, W, C]` throughout. Modules hold parameters only; they start in evaluation mode (`deterministic=True`),
`nnx.view(model, deterministic=False)` gives the training view, whose dropouts take `rngs` at call time.

Letters: B batch, H W height and width, C channels, N heads, D channels of a head, K kernel size.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.configuration import NatConfig
from natjax.nn.xla import conv3x3_s2, flat_dot_general, gelu, split_residual
from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float

_STEM_EPS = 1e-5  # stem, downsampler and backbone norms ignore `layer_norm_eps`, in the original as in Hugging Face

_ACTIVATIONS = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
}


class Builder:
    """Makes the primitive layers of a model, all with its dtypes, initialisers and random stream.

    Attributes:
        config: the model's configuration.
        implementation: of neighborhood attention; None picks the best for platform and shapes.
        rngs: source of initial weights.
    """

    def __init__(
        self,
        config: NatConfig,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        implementation: str | None,
        rngs: nnx.Rngs,
    ):
        self.config, self.implementation = config, implementation
        self.rngs = rngs
        self._dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self._init = _truncated_normal(config.initializer_range)

    @property
    def options(self) -> dict[str, Any]:
        """What a model inside another one is constructed with."""
        return {**self._dtypes, "implementation": self.implementation, "rngs": self.rngs}

    def linear(self, in_features: int, out_features: int, *, use_bias: bool = True) -> nnx.Linear:
        """Returns a linear layer."""
        return nnx.Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=self._init,
            dot_general=flat_dot_general,
            rngs=self.rngs,
            **self._dtypes,
        )

    def halving_conv(self, in_features: int, out_features: int, *, use_bias: bool = True) -> nnx.Conv:
        """Returns the 3x3 convolution that halves height and width, rounding up."""
        return nnx.Conv(
            in_features,
            out_features,
            kernel_size=(3, 3),
            strides=2,
            padding=1,
            use_bias=use_bias,
            kernel_init=self._init,
            conv_general_dilated=conv3x3_s2,
            rngs=self.rngs,
            **self._dtypes,
        )

    def norm(self, features: int, epsilon: float = _STEM_EPS) -> nnx.LayerNorm:
        """Returns a LayerNorm over channels, with the two-pass variance of PyTorch's."""
        return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, rngs=self.rngs, **self._dtypes)

    def dropout(self, rate: float) -> nnx.Dropout:
        """Returns element-wise dropout."""
        return nnx.Dropout(rate, deterministic=True)

    def drop_path(self, rate: float) -> nnx.Dropout:
        """Returns stochastic depth: whole samples of a batch are dropped, the others rescaled."""
        return nnx.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=True)

    def table(self, *shape: int) -> nnx.Param:
        """Returns a bias table, initialised like the weights."""
        return nnx.Param(self._init(self.rngs.params(), shape, self._dtypes["param_dtype"]))

    def constant(self, value: float, *shape: int) -> nnx.Param:
        """Returns a parameter filled with one value."""
        return nnx.Param(jnp.full(shape, value, self._dtypes["param_dtype"]))


def _truncated_normal(stddev: float) -> nnx.initializers.Initializer:
    """Returns an initialiser that cuts at two standard deviations: JAX's, without compiling it for every shape of a model.

    JAX's random numbers depend on key and position only, so that the first of a longer row are the same as a shorter one's.
    """
    plain = nnx.initializers.truncated_normal(stddev)

    def init(key, shape, dtype=jnp.float32, **options):
        partitionable = jax.config.jax_threefry_partitionable  # ty: ignore[missing-attribute]
        if isinstance(key, jax.core.Tracer) or not partitionable:
            return plain(key, shape, dtype, **options)
        size = math.prod(shape)
        length = max(4 ** math.ceil(math.log(max(size, 1), 4)), 4**6)  # so few of them that most are compiled already
        row = np.asarray(_standard_row(key, length, dtype))
        return jnp.asarray(row[:size].reshape(shape) * np.asarray(stddev, row.dtype), dtype)

    return init


@functools.partial(jax.jit, static_argnums=(1, 2))
def _standard_row(key, length: int, dtype):
    return jax.random.truncated_normal(key, -2.0, 2.0, (length,), dtype)


class PatchEmbeddings(nnx.Module):
    """Two overlapping stride-2 convolutions, without activation between them (NAT section 3.3)."""

    def __init__(self, make: Builder):
        config = make.config
        half = config.embed_dim // 2
        self.projection = nnx.List(
            [make.halving_conv(config.num_channels, half), make.halving_conv(half, config.embed_dim)]
        )

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/4 W/4 C"]:
        """Embeds an image."""
        for conv in self.projection:
            x = conv(x)
        return x


class Embeddings(nnx.Module):
    """The stem: patch embeddings, LayerNorm, dropout."""

    def __init__(self, make: Builder):
        self.patch_embeddings = PatchEmbeddings(make)
        self.norm = make.norm(make.config.embed_dim)
        self.dropout = make.dropout(make.config.hidden_dropout_prob)

    def __call__(self, pixel_values: Float[Array, "B H W C"], *, rngs=None) -> Float[Array, "B H/4 W/4 C"]:
        """Embeds an image."""
        return self.dropout(self.norm(self.patch_embeddings(pixel_values)), rngs=rngs)


class NeighborhoodAttention(nnx.Module):
    """Multi-head neighborhood attention with relative positional bias on a map of any size.

    Maps smaller than the window are padded at the bottom and right, the padding is attended to like any token, and the
    result is cropped: the rule the published weights were trained with.
    """

    def __init__(self, make: Builder, dim: int, num_heads: int, dilation: int):
        config = make.config
        self.num_heads, self.kernel_size, self.dilation = num_heads, config.kernel_size, dilation
        self.implementation = make.implementation
        self.dropout_rate, self.deterministic = config.attention_probs_dropout_prob, True
        self.qkv = make.linear(dim, 3 * dim, use_bias=config.qkv_bias)
        self.rpb = make.table(num_heads, 2 * config.kernel_size - 1, 2 * config.kernel_size - 1)
        self.output = make.linear(dim, dim)
        self.dropout = make.dropout(config.attention_probs_dropout_prob)

    def set_view(self, deterministic: bool | None = None):
        """Args of `nnx.view`:
        deterministic: False drops attention weights.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(
        self, x: Float[Array, "B H W C"], *, rngs=None, output_attentions: bool = False
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B N H W K*K"] | None]:
        """Attends; the second result is the attention weights of the (padded) map where asked for."""
        _, height, width, channels = x.shape
        window = self.kernel_size * self.dilation
        padding = (max(0, window - height), max(0, window - width))
        if any(padding):
            x = jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))
        heads = (*x.shape[:3], self.num_heads, channels // self.num_heads)
        # Split rather than sliced: a split's gradient is one concatenation, those of slices are padded and summed.
        query, key, value = (y.reshape(heads) for y in jax.lax.split(self.qkv(x), (channels,) * 3, axis=3))
        options: dict[str, Any] = {"kernel_size": self.kernel_size, "dilation": self.dilation, "rpb": self.rpb[...]}
        dropout_rate = 0.0 if self.deterministic else self.dropout_rate
        weights = None
        with jax.named_scope("neighborhood_attention"):
            if output_attentions or dropout_rate:
                if self.implementation not in (None, "xla", "reference"):  # a named one is never replaced by another
                    raise NotImplementedError(
                        f"implementation={self.implementation!r} cannot run: it neither returns attention weights nor drops "
                        "them. With output_attentions or attention dropout, build the model with implementation='xla' or None."
                    )
                x, weights = neighborhood_attention_with_weights(
                    query,
                    key,
                    value,
                    dropout_rate=dropout_rate,
                    dropout_key=_dropout_key(rngs) if dropout_rate else None,
                    **options,
                )
            else:
                x = neighborhood_attention(query, key, value, implementation=self.implementation, **options)
        x = x[:, :height, :width].reshape(*x.shape[:1], height, width, channels)
        return self.dropout(self.output(x), rngs=rngs), weights if output_attentions else None


class NatLayer(nnx.Module):
    """One pre-norm layer: attention, then MLP, each with optional layer scale and stochastic depth."""

    def __init__(self, make: Builder, dim: int, num_heads: int, dilation: int, drop_path_rate: float):
        config = make.config
        hidden = int(config.mlp_ratio * dim)
        self.hidden_act = config.hidden_act
        self.layernorm_before = make.norm(dim, config.layer_norm_eps)
        self.attention = NeighborhoodAttention(make, dim, num_heads, dilation)
        self.layernorm_after = make.norm(dim, config.layer_norm_eps)
        self.intermediate = make.linear(dim, hidden)
        self.output = make.linear(hidden, dim)
        self.dropout = make.dropout(config.hidden_dropout_prob)
        self.drop_path = make.drop_path(drop_path_rate)
        if config.layer_scale_init_value > 0:
            self.layer_scale_parameters = make.constant(config.layer_scale_init_value, 2, dim)
        else:
            self.layer_scale_parameters = nnx.data(None)

    def _residual(self, x, branch, index, rngs):
        if self.layer_scale_parameters is not None:
            branch = self.layer_scale_parameters[index].astype(branch.dtype) * branch
        return x + self.drop_path(branch, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B H W C"], *, rngs=None, output_attentions: bool = False
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B N H W K*K"] | None]:
        """Returns the layer's output and, where asked for, its attention weights."""
        x, y = split_residual(x)
        attended, weights = self.attention(self.layernorm_before(y), rngs=rngs, output_attentions=output_attentions)
        x, y = split_residual(self._residual(x, attended, 0, rngs))
        with jax.named_scope("mlp"):
            hidden = _ACTIVATIONS[self.hidden_act](self.intermediate(self.layernorm_after(y)))
            x = self._residual(x, self.dropout(self.output(hidden), rngs=rngs), 1, rngs)
        return x, weights


class Downsampler(nnx.Module):
    """Overlapping downsampling between levels: half the size, twice the channels."""

    def __init__(self, make: Builder, dim: int):
        self.reduction = make.halving_conv(dim, 2 * dim, use_bias=False)
        self.norm = make.norm(2 * dim)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 2*C"]:
        """Downsamples a map."""
        return self.norm(self.reduction(x))


def _run_layer(layer: NatLayer, x: Array, rngs: nnx.Rngs | None, output_attentions: bool):
    return layer(x, rngs=rngs, output_attentions=output_attentions)


class Level(nnx.Module):
    """Layers of one resolution and the downsampler to the next, if there is one."""

    def __init__(self, make: Builder, index: int, drop_path_rates: list[float]):
        config, dim = make.config, make.config.level_dims[index]
        self.layers = nnx.List(
            [
                NatLayer(make, dim, config.num_heads[index], dilation, rate)
                for dilation, rate in zip(config.layer_dilations(index), drop_path_rates, strict=True)
            ]
        )
        self.downsample = Downsampler(make, dim) if index + 1 < config.num_levels else nnx.data(None)
        self.remat = False

    def set_view(self, remat: bool | None = None):
        """Args of `nnx.view`:
        remat: True computes every layer's activations again in the backward pass instead of keeping them.
        """
        if remat is not None:
            self.remat = remat

    def __call__(self, x: Float[Array, "B H W C"], *, rngs=None, output_attentions: bool = False):
        """Returns the map for the next level, the map before downsampling and the last layer's attention weights."""
        weights = None
        for i, layer in enumerate(self.layers):
            # As in Hugging Face, a level shows the weights of its last layer only.
            show = output_attentions and i + 1 == len(self.layers)
            run = nnx.remat(_run_layer, static_argnums=3) if self.remat else _run_layer
            x, weights = run(layer, x, rngs, show)
        return (x if self.downsample is None else self.downsample(x)), x, weights


class Encoder(nnx.Module):
    """All levels. Stochastic depth grows linearly over their layers."""

    def __init__(self, make: Builder):
        config = make.config
        rates = np.split(np.linspace(0, config.drop_path_rate, sum(config.depths)), np.cumsum(config.depths)[:-1])
        self.levels = nnx.List([Level(make, i, level_rates.tolist()) for i, level_rates in enumerate(rates)])

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


def _dropout_key(rngs: nnx.Rngs | None) -> Array:
    if rngs is None:
        raise ValueError(
            "Training with attention dropout needs random numbers: pass rngs=nnx.Rngs(...) or a jax.random.key."
        )
    return rngs.dropout()
