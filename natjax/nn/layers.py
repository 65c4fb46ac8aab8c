"""Flax NNX's primitive layers as all models take them: their initial weights, precision and what XLA compiles well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.nn.spatial import conv_over_parts
from natjax.nn.xla import conv1x1, conv3x3_s2, conv_general_dilated, flat_dot_general
from natjax_kernels.problem import accumulator
from natjax_kernels.sharding import beside, laid_out, spec_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike

EPSILON = 1e-5  # PyTorch's default, which stem, downsampler and backbone norms keep, whatever `layer_norm_eps` says


class Linear(nnx.Linear):
    """A linear layer over channels; the gradient of its bias may be summed over devices later, see `is_summed_later`."""

    def __call__(self, inputs: Any) -> jax.Array:  # ty: ignore[incompatible-method-override]
        """Applies the layer to any tokens: [..., C] to [..., D]."""
        return self.columns(inputs, 0)

    def columns(self, x: Any, start: int, stop: int | None = None) -> jax.Array:
        """Returns those output channels of tokens [..., C] that go from `start` to `stop`: [..., stop - start]."""
        kernel, bias = self.kernel[...][:, start:stop], None if self.bias is None else self.bias[...][start:stop]
        x, kernel, bias = self.promote_dtype((x, kernel, bias), dtype=self.dtype)
        y = self.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision=self.precision)
        return y if bias is None else add_bias(y, bias)


class Conv(nnx.Conv):
    """A convolution of maps with square strides and padding, as `conv` and `downsampling_conv` make it.

    The gradient of its bias may be summed over devices later, see `is_summed_later`.
    """

    def __call__(self, inputs: Any) -> jax.Array:  # ty: ignore[incompatible-method-override]
        """Applies the layer to maps: [B, H, W, C] to [B, h, w, D]."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        strides, ends = (self.strides,) * 2, ((self.padding, self.padding),) * 2
        more: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": self.precision}
        y = self.conv_general_dilated(x, kernel, strides, ends, **more)
        return y if bias is None else add_bias(y, bias)


class LayerNorm(nnx.LayerNorm):
    """A LayerNorm (arXiv 1607.06450) over channels, with the two-pass variance of PyTorch's.

    It has both weights, whose gradients may be summed over devices later, see `is_summed_later`.
    """

    def __call__(self, x: Any) -> jax.Array:  # ty: ignore[incompatible-method-override]
        """Normalises tokens [..., C], in float32 at least."""
        weights = self.scale[...], self.bias[...]  # ty: ignore[not-subscriptable]
        x, scale, bias = self.promote_dtype((x, *weights), dtype=self.dtype)
        wide = x.astype(accumulator(x))
        y = wide - jnp.mean(wide, axis=-1, keepdims=True)
        return add_bias(_normalised(y, scale, self.epsilon), bias).astype(x.dtype)


class RMSNorm(nnx.RMSNorm):
    """An RMSNorm (arXiv 1910.07467) over channels.

    The gradient of its scale may be summed over devices later, see `is_summed_later`.
    """

    def __call__(self, x: Any) -> jax.Array:  # ty: ignore[incompatible-method-override]
        """Normalises tokens [..., C], in float32 at least."""
        x, scale = self.promote_dtype((x, self.scale[...]), dtype=self.dtype)  # ty: ignore[not-subscriptable]
        return _normalised(x.astype(accumulator(x)), scale, self.epsilon).astype(x.dtype)


def _normalised(y: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Returns tokens [..., C] that are divided by the root of their mean square and multiplied by a scale [C]."""
    mean_square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    return y * (jax.lax.rsqrt(mean_square + epsilon) * beside(scale.astype(y.dtype), y))


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [C] to tokens [..., C]."""
    return x + _at_all_tokens(bias, x)


def multiply(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiplies tokens [..., C] with a scale [C]."""
    return x * _at_all_tokens(scale, x)


def _at_all_tokens(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a parameter [C] beside each of the tokens [..., C], in their dtype.

    Its gradient is a sum over all of them, in float32 at least: 16 bits do not hold it.
    """
    parameter = beside(parameter.astype(accumulator(x)), x)
    return jnp.broadcast_to(parameter, x.shape, out_sharding=laid_out(x, spec_of(x))).astype(x.dtype)


def linear(
    in_features: int,
    out_features: int,
    *,
    use_bias: bool = True,
    kernel_init: nnx.initializers.Initializer,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Linear:
    """Returns a linear layer over channels."""
    return Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dot_general=flat_dot_general,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def downsampling_conv(
    in_features: int,
    out_features: int,
    *,
    use_bias: bool = True,
    kernel_init: nnx.initializers.Initializer,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Conv:
    """Returns the 3 x 3 convolution of stride 2, which halves height and width, rounding up."""
    return Conv(
        in_features,
        out_features,
        kernel_size=(3, 3),
        strides=2,
        padding=1,
        use_bias=use_bias,
        kernel_init=kernel_init,
        conv_general_dilated=conv_over_parts(conv3x3_s2),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def conv(
    in_features: int,
    out_features: int,
    kernel_size: int,
    *,
    use_bias: bool = True,
    kernel_init: nnx.initializers.Initializer,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Conv:
    """Returns a convolution that keeps height and width, with a kernel of 1 x 1 or another odd side."""
    return Conv(
        in_features,
        out_features,
        kernel_size=(kernel_size, kernel_size),
        padding=kernel_size // 2,
        conv_general_dilated=conv1x1 if kernel_size == 1 else conv_over_parts(conv_general_dilated),
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def layer_norm(
    features: int, *, epsilon: float = EPSILON, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> LayerNorm:
    """Returns a LayerNorm over channels."""
    return LayerNorm(features, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def rms_norm(
    features: int, *, epsilon: float, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> RMSNorm:
    """Returns an RMSNorm over channels."""
    return RMSNorm(features, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def dropout(rate: float) -> nnx.Dropout:
    """Returns element-wise dropout, off until `nnx.view(model, deterministic=False)`."""
    return nnx.Dropout(rate, deterministic=True)


class SharedDropout(nnx.Dropout):
    """Dropout that keeps or drops all along its `broadcast_dims`, which may be split over devices, unlike those of Flax's."""

    def __call__(self, inputs: jax.Array, **options: Any) -> jax.Array:
        """Drops parts of the inputs, and scales the others. Options are those of `nnx.Dropout`."""
        if self.deterministic or not self.rate:
            return inputs
        ones = jnp.ones([1 if a in self.broadcast_dims else side for a, side in enumerate(inputs.shape)], inputs.dtype)
        return jnp.where(super().__call__(ones, **options) > 0, inputs / (1 - self.rate), 0)


def channel_dropout(rate: float) -> nnx.Dropout:
    """Returns dropout of whole channels of a map, torch's Dropout2d."""
    return SharedDropout(rate, broadcast_dims=(1, 2), deterministic=True)


def drop_path(rate: float) -> nnx.Dropout:
    """Returns stochastic depth (arXiv 1603.09382): whole samples of a batch are dropped, the others rescaled."""
    return SharedDropout(rate, broadcast_dims=(1, 2, 3), deterministic=True)


def as_rngs(rngs: nnx.Rngs | jax.Array | None) -> nnx.Rngs | None:
    """Returns the random streams of what models and layers take as `rngs`: streams, a `jax.random.key` or None."""
    return nnx.Rngs(dropout=rngs) if isinstance(rngs, jax.Array) else rngs
