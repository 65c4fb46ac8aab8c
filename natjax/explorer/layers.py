"""The attention weights of all layers of a model on one image, beside the window of every token."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from natjax.nn.xla import compiler_options
from natjax_kernels import neighbors

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from natjax.models import NatModel


@dataclasses.dataclass(frozen=True)
class LayerAttention:
    """What a layer attends to.

    Attributes:
        level: which level it is in, from 1.
        layer: which layer of its level it is, from 1.
        size: height and width of the level's map, in tokens.
        kernel_size: of the window, along height and width.
        dilation: likewise.
        weights: of every token's neighbours, in the order of `natjax.neighbors`; every token's sum to 1. A map smaller than
            the dilated window is padded at its bottom and right, and is shown with its padding: H >= size[0], W >= size[1].
    """

    level: int
    layer: int
    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    weights: Float[np.ndarray, "N H W K"]

    def windows(self) -> tuple[Int[np.ndarray, "H k"], Int[np.ndarray, "W k"]]:
        """Returns the rows that a token of every row attends to, and the columns that a token of every column does.

        Windows of several axes are a product: neighbour `a * kernel_size[1] + b` is in the a-th row and in the b-th column.
        """
        sides = zip(self.weights.shape[1:3], self.kernel_size, self.dilation, strict=True)
        rows, columns = (neighbors((length,), kernel, dilation=dilation) for length, kernel, dilation in sides)
        return rows, columns


def layers_of(model: NatModel, pixel_values: Float[np.ndarray, "1 H W C"]) -> list[LayerAttention]:
    """Returns the attention of every layer on an image, in the order in which it passes them.

    A model's `output_attentions` has every level's last layer alone, as in Hugging Face; here are all of them.

    Args:
        model: the bare model.
        pixel_values: one normalised image.
    """
    graphdef, state = nnx.split(model)

    @jax.jit(compiler_options=compiler_options())
    def attend(state: Any, pixel_values: Array):
        return _weights(nnx.merge(graphdef, state), pixel_values)

    found, attended = [], iter(jax.device_get(attend(state, pixel_values)))
    for i, level in enumerate(model.encoder.levels, 1):
        for j, layer in enumerate(level.layers, 1):
            size, weights = next(attended)
            size = tuple(map(int, size))
            window = layer.attention.kernel_size, layer.attention.dilation
            found.append(LayerAttention(i, j, size, *window, np.asarray(weights[0], np.float32)))
    return found


def _weights(model: NatModel, pixel_values: Array) -> list[tuple[tuple[int, int], Array]]:
    """Returns the size of every layer's map and its weights, [1, N, H, W, K]."""
    x, found = model.embeddings(pixel_values), []
    for level in model.encoder.levels:
        for layer in level.layers:
            x, weights = layer(x, output_attentions=True)
            found.append((x.shape[1:3], weights))
        if level.downsample is not None:
            x = level.downsample(x)
    return found
