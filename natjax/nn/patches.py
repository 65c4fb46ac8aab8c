"""Patches side by side, as in Swin (arXiv 2103.14030, section 3.1): the stem of DiNAT_s and isotropic models, and patch merging.

Both pad a map with zeros at the bottom and right to a multiple of the patch, so that sizes round up, as NAT's do.

Letters: B batch, H W height and width, C D channels, P side of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import NatConfig
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import Conv, layer_norm, linear
from natjax.nn.sizes import cut
from natjax.nn.spatial import gathered_unless
from natjax.nn.xla import as_matrix, flat_dot_general
from natjax_kernels.sharding import reshape, spec_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float


class PatchProjection(nnx.Module):
    """A linear layer on patches of the image, written as a convolution whose stride is its size."""

    def __init__(self, config: NatConfig, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.projection = Conv(
            config.num_channels,
            config.embed_dim,
            kernel_size=(config.patch_size,) * 2,
            strides=config.patch_size,
            padding=0,
            kernel_init=truncated_normal(config.initializer_range),
            conv_general_dilated=_conv_of_patches,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "B H W C"], *, sizes=None) -> Float[Array, "B h w D"]:
        """Embeds images of such sizes, [B, 2]; of that of the array where None."""
        return self.projection(cut(x, sizes))


class PatchMerging(nnx.Module):
    """Downsampling between levels: the norm of 2 x 2 tokens side by side, then a linear layer to twice the channels."""

    def __init__(self, config: NatConfig, dim: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        kernel_init = truncated_normal(config.initializer_range)
        self.norm = layer_norm(4 * dim, **options)
        self.reduction = linear(4 * dim, 2 * dim, use_bias=False, kernel_init=kernel_init, **options)

    def __call__(self, x: Float[Array, "B H W C"], *, sizes=None) -> Float[Array, "B h w 2*C"]:
        """Downsamples maps of such sizes, [B, 2]; of that of the array where None."""
        columns_first = jnp.swapaxes(patches(cut(x, sizes), 2), 3, 4)  # Swin's order of the four tokens
        return self.reduction(self.norm(jax.lax.collapse(columns_first, 3)))


def patches(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B h w P P C"]:
    """Returns the patches of a map, padded with zeros at the bottom and right to a multiple of their side."""
    ends = [(0, -size % side) for size in x.shape[1:3]]
    x = jnp.pad(gathered_unless(x, (side, side)), ((0, 0), *ends, (0, 0)))
    batch, rows, columns, channels = spec_of(x)
    shape = (x.shape[0], x.shape[1] // side, side, x.shape[2] // side, side, x.shape[3])
    return jnp.swapaxes(reshape(x, shape, (batch, rows, None, columns, None, channels)), 2, 3)


def _conv_of_patches(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "P P C D"],
    window_strides: Any,
    padding: Any,
    *,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    **_: Any,
) -> Float[Array, "B h w D"]:
    """Computes `jax.lax.conv_general_dilated` of a stride that is the kernel's size as one product of patches."""
    flat = jax.lax.collapse(patches(x, kernel.shape[0]), 3)
    dimensions = (((3,), (0,)), ((), ()))
    accuracy: dict[str, Any] = {"precision": precision, "preferred_element_type": preferred_element_type}
    return flat_dot_general(flat, as_matrix(kernel), dimensions, **accuracy)
