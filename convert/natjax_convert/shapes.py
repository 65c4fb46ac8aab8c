"""The one declaration of which parameters a model has, in pure Python.

Name tables, counts, FLOPs and layer-wise learning rates follow from `parameters`; `config_from_shapes` is its inverse. Small
pieces (`linear`, `norm`, `conv`, `attention`, ...) are nested dicts of shapes; a model puts them at paths. Families differ in the
pieces of stem and downsamplers.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from natjax.configuration import DinatSConfig, NatConfig, NatIsotropicConfig, UperNetConfig, VitRpbConfig
from natjax.configuration.upernet import AUXILIARY_FEATURE

Kind = Literal["classifier", "model", "backbone", "segmentation"]
ParameterPath = tuple[str | int, ...]
Piece = Mapping[str, Any]  # names to shapes or to further pieces

# Dtypes of batch statistics by their names: buffers, which are no parameters.
BUFFERS = {"mean": "float32", "var": "float32", "num_batches_tracked": "int32"}
_POOL_SCALES = (1, 2, 3, 6)  # of all published models

_PROJECTION = ("embeddings", "patch_embeddings", "projection")


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a model.

    Attributes:
        path: in the nested dict of `nnx.to_pure_dict`.
        shape: its shape.
        part: of the model: "stem", "level1" ..., "head"; "decode_head" and "auxiliary_head" of a UPerNet.
        depth: what layer-wise decay of the learning rate counts: stem 0, layers 1, 2 ..., a downsampler that of the layer
            before it, last norms and classifier the top.
        stride: pixels between the tokens of the map that its layer returns; 0 where that is one vector per image.
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
        """Whether it is part of a classifier, whose shape follows the number of classes."""
        return "classifier" in self.path


def parameters(config: NatConfig | UperNetConfig, kind: Kind = "classifier") -> list[Parameter]:
    """Returns all parameters of a model, and its buffers.

    Args:
        config: of the model; where it is a UPerNet's, the other kinds are those of its backbone.
        kind: `NatForImageClassification`, `NatModel`, `NatBackbone` or `UperNetForSemanticSegmentation`.

    Raises:
        ValueError: a segmentation model's configuration is not a UPerNet's.
    """
    if kind == "segmentation":
        if not isinstance(config, UperNetConfig):
            raise ValueError(f"a segmentation model needs a UperNetConfig; got {type(config).__name__}.")
        return _upernet(config)
    config = config.trunk
    found = list(_trunk(config))
    top, stride = sum(config.depths) + 1, config.patch_size * 2 ** (config.num_levels - 1)
    if kind == "backbone":
        dims = (config.embed_dim, *config.level_dims)
        for stage, index in zip(config.out_features or (), config.out_indices or (), strict=True):
            stride = config.patch_size * 2 ** max(index - 1, 0)
            found += at(("hidden_states_norms", stage), norm(dims[index]), "head", top, stride)
        return found
    found += at(("layernorm",), norm(config.hidden_size), "head", top, stride)
    if kind == "model":
        return found
    found = [dataclasses.replace(parameter, path=("nat", *parameter.path)) for parameter in found]
    if config.num_labels:
        found += at(("classifier",), linear(config.hidden_size, config.num_labels), "head", top, 0)
    return found


def _upernet(config: UperNetConfig) -> list[Parameter]:
    trunk, channels = config.trunk, config.hidden_size
    *lower, last = dims = trunk.level_dims
    top, stride = sum(trunk.depths) + 1, trunk.patch_size
    found = [dataclasses.replace(each, path=("backbone", *each.path)) for each in parameters(trunk, "backbone")]

    def put(module: ParameterPath, piece: Piece, stride: int) -> None:
        found.extend(at(module, piece, str(module[0]), top, stride))

    for i in range(len(config.pool_scales)):
        put(("decode_head", "psp_modules", i), conv_block(last, channels, side=1), 0)
    pooled = last + len(config.pool_scales) * channels
    put(("decode_head", "bottleneck"), conv_block(pooled, channels), stride * 2 ** len(lower))
    for i, dim in enumerate(lower):
        put(("decode_head", "lateral_convs", i), conv_block(dim, channels, side=1), stride * 2**i)
    for i in range(len(lower)):
        put(("decode_head", "fpn_convs", i), conv_block(channels, channels), stride * 2**i)
    put(("decode_head", "fpn_bottleneck"), conv_block(len(dims) * channels, channels), stride)
    classes = config.num_labels or 0
    put(("decode_head", "classifier"), conv(channels, classes, side=1), stride)
    if config.use_auxiliary_head:
        dim, inner, stride = dims[AUXILIARY_FEATURE], config.auxiliary_channels, stride * 2**AUXILIARY_FEATURE
        for i in range(config.auxiliary_num_convs):
            put(("auxiliary_head", "convs", i), conv_block(inner if i else dim, inner), stride)
        if config.auxiliary_concat_input:
            put(("auxiliary_head", "conv_cat"), conv_block(dim + inner, inner), stride)
        put(("auxiliary_head", "classifier"), conv(inner, classes, side=1), stride)
    return found


def count_parameters(config: NatConfig | UperNetConfig, kind: Kind = "classifier") -> int:
    """Returns the number of values in all parameters of a model, without buffers."""
    return sum(parameter.size for parameter in parameters(config, kind) if parameter.trained)


def config_from_shapes(
    shape: Callable[[ParameterPath], tuple[int, ...]], dilations: Any = None, *, family: type[NatConfig] | None = None
) -> NatConfig:
    """Returns the configuration of a classifier, model or backbone whose parameters have these shapes.

    Args:
        shape: returns the shape of a parameter by its path, without the classifier's "nat"; a LookupError where there is none.
        dilations: of every layer, by level, which are in no shape. None means none.
        family: class of the configuration, where that is known. Else it is told by the shapes: patches side by side are those of
            DiNAT_s or, where there is one level, of NAT-iso.

    Raises:
        LookupError: a parameter is missing.
        ValueError: the shapes are those of no model of natjax.
    """

    def has(*path: str | int) -> bool:
        try:
            return bool(shape(path))
        except LookupError:
            return False

    depths: list[int] = []
    while has("encoder", "levels", len(depths), "layers", 0, "attention", "rpb"):
        layers = ("encoder", "levels", len(depths), "layers")
        depths.append(next(i for i in itertools.count(1) if not has(*layers, i, "attention", "rpb")))
    firsts = [("encoder", "levels", i, "layers", 0) for i in range(len(depths))]
    biases = [shape((*first, "attention", "rpb")) for first in firsts]
    widths = [shape((*first, "intermediate", "kernel")) for first in firsts]
    kernel_size = (biases[0][1] + 1) // 2
    if has(*_PROJECTION, "kernel"):
        patch_size, _, num_channels, embed_dim = shape((*_PROJECTION, "kernel"))
        isotropic = NatIsotropicConfig if kernel_size % 2 else VitRpbConfig
        family = family or (DinatSConfig if len(depths) > 1 else isotropic)
    else:
        *_, num_channels, half = shape((*_PROJECTION, 0, "kernel"))
        patch_size, embed_dim, family = 4, 2 * half, family or NatConfig
    fields: dict[str, Any] = {"image_size": kernel_size * patch_size} if family is VitRpbConfig else {}
    return family(
        patch_size=patch_size,
        num_channels=num_channels,
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(heads for heads, *_ in biases),
        kernel_size=kernel_size,
        dilations=dilations,
        mlp_ratio=_ratio(widths),
        qkv_bias=has(*firsts[0], "attention", "qkv", "bias"),
        layer_scale_init_value=1e-5 if has(*firsts[0], "layer_scale_parameters") else 0.0,
        num_labels=shape(("classifier", "kernel"))[1] if has("classifier", "kernel") else 0,
        **fields,
    )


def upernet_from_shapes(
    shape: Callable[[ParameterPath], tuple[int, ...]], trunk: NatConfig, pool_scales: Any = None
) -> UperNetConfig:
    """Returns the configuration of a UPerNet over a backbone, whose parameters have these shapes.

    Args:
        shape: returns the shape of a parameter by its path; a LookupError where there is none.
        trunk: the backbone's configuration.
        pool_scales: sides of the pooled maps, which are in no shape. None means those of all published models, if there are four.

    Raises:
        LookupError: a parameter is missing.
        ValueError: the shapes are those of no UPerNet, or the pool scales are not as many as they have or are not known.
    """

    def count(*path: str | int) -> int:
        return next(i for i in itertools.count() if not has(*path, i, "conv", "kernel"))

    def has(*path: str | int) -> bool:
        try:
            return bool(shape(path))
        except LookupError:
            return False

    scales = count("decode_head", "psp_modules")
    if pool_scales is None and scales != len(_POOL_SCALES):
        raise ValueError(f"the heads pool to {scales} maps of unknown scales; give a configuration, with pool_scales.")
    fields: dict[str, Any] = {}
    if has("auxiliary_head", "classifier", "kernel"):
        fields["auxiliary_channels"] = shape(("auxiliary_head", "classifier", "kernel"))[2]
        fields["auxiliary_num_convs"] = count("auxiliary_head", "convs")
        fields["auxiliary_concat_input"] = has("auxiliary_head", "conv_cat", "conv", "kernel")
    *_, hidden_size, num_labels = shape(("decode_head", "classifier", "kernel"))
    config = UperNetConfig(
        backbone_config=trunk,
        hidden_size=hidden_size,
        num_labels=num_labels,
        pool_scales=_POOL_SCALES if pool_scales is None else pool_scales,
        use_auxiliary_head=bool(fields),
        **fields,
    )
    if len(config.pool_scales) != scales:
        raise ValueError(f"the heads pool to {scales} maps, and pool_scales are {config.pool_scales}.")
    return config


def _ratio(widths: Sequence[tuple[int, ...]]) -> float:
    """Returns the ratio of which int(ratio * dim) is hidden, for all levels' (dim, hidden): the largest of their quotients."""
    hidden, dim = max(((hidden, dim) for dim, hidden in widths), key=lambda pair: pair[0] / pair[1])
    ratio = hidden / dim
    return ratio if int(ratio * dim) == hidden else math.nextafter(ratio, math.inf)  # 61 / 14 * 14 is less than 61


def _trunk(config: NatConfig) -> Iterator[Parameter]:
    half, dim, stride = config.embed_dim // 2, config.embed_dim, config.patch_size
    if config.overlapping:
        yield from at((*_PROJECTION, 0), conv(config.num_channels, half), "stem", 0, 2)
        yield from at((*_PROJECTION, 1), conv(half, dim), "stem", 0, 4)
    else:
        yield from at(_PROJECTION, conv(config.num_channels, dim, side=config.patch_size), "stem", 0, stride)
    yield from at(("embeddings", "norm"), norm(dim), "stem", 0, stride)
    depth, downsampler = 0, overlapping_downsampler if config.overlapping else patch_merging
    for i, dim in enumerate(config.level_dims):
        part, path, stride = f"level{i + 1}", ("encoder", "levels", i), config.patch_size * 2**i
        piece = layer(config, dim, config.num_heads[i])
        for j in range(config.depths[i]):
            depth += 1
            yield from at((*path, "layers", j), piece, part, depth, stride)
        if i + 1 < config.num_levels:
            yield from at((*path, "downsample"), downsampler(dim), part, depth, 2 * stride)


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
