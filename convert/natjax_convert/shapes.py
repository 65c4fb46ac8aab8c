"""The one declaration of which parameters a model has, in pure Python.

Name tables, counts, FLOPs and layer-wise learning rates follow from `parameters`; `config_from_shapes` is its inverse. A model
puts pieces (see `natjax_convert.pieces`) at paths. Families differ in the pieces of stem and downsamplers; the heads of
segmentation and detection models are in `natjax_convert.heads`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from natjax.configuration import (
    DenseConfig,
    DinatSConfig,
    MaskRcnnConfig,
    NatConfig,
    NatIsotropicConfig,
    UperNetConfig,
    VitRpbConfig,
)
from natjax_convert.heads import detection, upernet
from natjax_convert.pieces import (
    Parameter,
    Shape,
    at,
    conv,
    has,
    layer,
    linear,
    norm,
    overlapping_downsampler,
    patch_merging,
)

Kind = Literal["classifier", "model", "backbone", "segmentation", "detection"]
DENSE: dict[Kind, tuple[type[DenseConfig], Callable[[Any], Iterator[Parameter]]]] = {
    "segmentation": (UperNetConfig, upernet),
    "detection": (MaskRcnnConfig, detection),
}

_PROJECTION = ("embeddings", "patch_embeddings", "projection")


def parameters(config: NatConfig | DenseConfig, kind: Kind = "classifier") -> list[Parameter]:
    """Returns all parameters of a model, and its buffers.

    Args:
        config: of the model; where it is that of a segmentation or detection model, the other kinds are those of its backbone.
        kind: `NatForImageClassification`, `NatModel`, `NatBackbone`, `UperNetForSemanticSegmentation`, or one of
            `MaskRcnnForObjectDetection` and `CascadeMaskRcnnForObjectDetection`.

    Raises:
        ValueError: the configuration is not that of a model of this kind.
    """
    if kind in DENSE:
        family, heads = DENSE[kind]
        if not isinstance(config, family):
            raise ValueError(f"a {kind} model needs a {family.__name__}; got {type(config).__name__}.")
        trunk = parameters(config.trunk, "backbone")
        return [*(dataclasses.replace(each, path=("backbone", *each.path)) for each in trunk), *heads(config)]
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


def kind_of(config: NatConfig | DenseConfig) -> Kind:
    """Returns what a configuration is of: "segmentation" or "detection", or else "classifier"."""
    return next((kind for kind, (family, _) in DENSE.items() if isinstance(config, family)), "classifier")


def count_parameters(config: NatConfig | DenseConfig, kind: Kind = "classifier") -> int:
    """Returns the number of values in all parameters of a model, without buffers."""
    return sum(parameter.size for parameter in parameters(config, kind) if parameter.trained)


def config_from_shapes(shape: Shape, dilations: Any = None, *, family: type[NatConfig] | None = None) -> NatConfig:
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

    depths: list[int] = []
    while has(shape, "encoder", "levels", len(depths), "layers", 0, "attention", "rpb"):
        layers = ("encoder", "levels", len(depths), "layers")
        depths.append(next(i for i in itertools.count(1) if not has(shape, *layers, i, "attention", "rpb")))
    firsts = [("encoder", "levels", i, "layers", 0) for i in range(len(depths))]
    biases = [shape((*first, "attention", "rpb")) for first in firsts]
    widths = [shape((*first, "intermediate", "kernel")) for first in firsts]
    kernel_size = (biases[0][1] + 1) // 2
    if has(shape, *_PROJECTION, "kernel"):
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
        qkv_bias=has(shape, *firsts[0], "attention", "qkv", "bias"),
        layer_scale_init_value=1e-5 if has(shape, *firsts[0], "layer_scale_parameters") else 0.0,
        num_labels=shape(("classifier", "kernel"))[1] if has(shape, "classifier", "kernel") else 0,
        **fields,
    )


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
