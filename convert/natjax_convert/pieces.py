"""What the declaration of a model's parameters is made of: pieces, which are nested dicts of shapes, and parameters at paths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from natjax.configuration import NatConfig

ParameterPath = tuple[str | int, ...]
Piece = Mapping[Any, Any]  # names to shapes or to further pieces
Shape = Callable[[ParameterPath], tuple[int, ...]]  # of a parameter by its path; a LookupError where there is none

# Dtypes of batch statistics by their names: buffers, which are no parameters.
BUFFERS = {"mean": "float32", "var": "float32", "num_batches_tracked": "int32"}
_CLASSIFIERS = {"classifier", "fc_cls", "fc_reg", "conv_logits"}  # modules


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a model.

    Attributes:
        path: in the nested dict of `nnx.to_pure_dict`.
        shape: its shape.
        part: of the model: "stem", "level1" ..., "head"; "decode_head" and "auxiliary_head" of a UPerNet; "neck", "rpn_head",
            "box_head" and "mask_head" of a detection model.
        depth: what layer-wise decay of the learning rate counts: stem 0, layers 1, 2 ..., a downsampler that of the layer
            before it, last norms and classifier the top.
        stride: pixels between the tokens of the map that its layer returns, the finest of several; 0 where that is one vector per
            image, or the map of a region of it.
        trained: whether it is a parameter; else a buffer, such as a running mean, which is kept with them in files.
    """

    path: ParameterPath
    shape: tuple[int, ...]
    part: str
    depth: int
    stride: int
    trained: bool = True

    @property
    def size(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def of_classifier(self) -> bool:
        """Whether its layer's shape follows the number of classes."""
        return is_of_classifier(self.path)


def is_of_classifier(path: ParameterPath) -> bool:
    """Returns whether the shape of the layer of a parameter follows the number of classes."""
    return not _CLASSIFIERS.isdisjoint(path)


def layer(config: NatConfig, dim: int, num_heads: int) -> Piece:
    """A pre-norm layer of attention and MLP, with layer scale where the configuration has it."""
    hidden = int(config.mlp_ratio * dim)
    scale = {"layer_scale_parameters": (2, dim)} if config.layer_scale_init_value > 0 else {}
    return {
        "layernorm_before": norm(dim),
        "attention": attention(dim, num_heads, config.kernel_size, qkv_bias=config.qkv_bias),
        "layernorm_after": norm(dim),
        "intermediate": linear(dim, hidden),
        "output": linear(hidden, dim),
        **scale,
    }


def attention(dim: int, num_heads: int, kernel_size: int, *, qkv_bias: bool) -> Piece:
    """Neighborhood attention with relative positional bias."""
    offsets = 2 * kernel_size - 1
    return {
        "qkv": linear(dim, 3 * dim, bias=qkv_bias),
        "rpb": (num_heads, offsets, offsets),
        "output": linear(dim, dim),
    }


def overlapping_downsampler(dim: int) -> Piece:
    """The overlapping convolution between two levels, and its norm."""
    return {"reduction": conv(dim, 2 * dim, bias=False), "norm": norm(2 * dim)}


def patch_merging(dim: int) -> Piece:
    """The norm of 2 x 2 tokens between two levels, and the linear layer to twice their channels."""
    return {"reduction": linear(4 * dim, 2 * dim, bias=False), "norm": norm(4 * dim)}


def linear(inputs: int, outputs: int, *, bias: bool = True) -> Piece:
    """A linear layer."""
    return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if bias else {})


def conv(inputs: int, outputs: int, *, side: int = 3, bias: bool = True) -> Piece:
    """A convolution with a square kernel."""
    return {"kernel": (side, side, inputs, outputs)} | ({"bias": (outputs,)} if bias else {})


def conv_block(inputs: int, outputs: int, *, side: int = 3) -> Piece:
    """A convolution without bias and its batch normalisation."""
    statistics = {"mean": (outputs,), "var": (outputs,), "num_batches_tracked": ()}
    return {"conv": conv(inputs, outputs, side=side, bias=False), "batch_norm": norm(outputs) | statistics}


def norm(dim: int) -> dict[str, tuple[int, ...]]:
    """A LayerNorm."""
    return {"scale": (dim,), "bias": (dim,)}


def at(path: ParameterPath, piece: Piece, part: str, depth: int, stride: int) -> Iterator[Parameter]:
    """Returns the parameters of a piece at a path, in the piece's order; the other arguments are `Parameter`'s."""
    for name, inner in piece.items():
        if isinstance(inner, tuple):
            yield Parameter((*path, name), inner, part, depth, stride, trained=name not in BUFFERS)
        else:
            yield from at((*path, name), inner, part, depth, stride)


def has(shape: Shape, *path: str | int) -> bool:
    """Returns whether there is a parameter at a path."""
    try:
        return bool(shape(path))
    except LookupError:
        return False
