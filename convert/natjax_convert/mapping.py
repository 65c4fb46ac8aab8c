"""Which Flax parameter is which tensor of a PyTorch checkpoint, in either dialect and both directions.

`entries` is the one table. Dialects: "hf", Hugging Face's NatForImageClassification and DinatForImageClassification of
transformers 4.40.2 (names here without the model's own prefix), and "shilabs", the authors' classification/nat.py and dinat.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from natjax.configuration import NatConfig

Kind = Literal["classifier", "model", "backbone"]
Dialect = Literal["hf", "shilabs"]

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}  # axes of a kernel by its rank: linear, convolution
_TO_FLAX = {2: (1, 0), 4: (2, 3, 1, 0)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A Flax parameter and the tensors it is made of.

    Attributes:
        path: of the parameter in the nested dict.
        shape: of the parameter.
        hf: names of its tensors in Hugging Face's dialect; several are joined along their first axis.
        shilabs: names in the authors' dialect; empty where it has none.
    """

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    hf: tuple[str, ...]
    shilabs: tuple[str, ...]

    def names(self, dialect: Dialect) -> tuple[str, ...]:
        """Returns the names of its tensors."""
        return self.hf if dialect == "hf" else self.shilabs

    def tensor_shape(self, dialect: Dialect) -> tuple[int, ...]:
        """Returns the shape of each of its tensors."""
        shape = self.shape
        if self.path[-1] == "kernel":
            shape = tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
        first = shape[0] // len(self.names(dialect))
        return shape[1:] if self._stacked(dialect) else (first, *shape[1:])

    def join(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Makes the parameter of its tensors: a view where one is enough."""
        if tensors[0].ndim < len(self.shape):
            tensors = [tensor[None] for tensor in tensors]
        joined = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        return joined.transpose(_TO_FLAX[joined.ndim]) if self.path[-1] == "kernel" else joined

    def split(self, parameter: np.ndarray, dialect: Dialect) -> list[np.ndarray]:
        """Makes its tensors of the parameter; undoes `join`."""
        if self.path[-1] == "kernel":
            parameter = parameter.transpose(_TO_TORCH[parameter.ndim])
        pieces = np.split(parameter, len(self.names(dialect)))
        return [piece[0] for piece in pieces] if self._stacked(dialect) else pieces

    def _stacked(self, dialect: Dialect) -> bool:
        return self.path[-1] == "layer_scale_parameters" and len(self.names(dialect)) == 2


def entries(config: NatConfig, kind: Kind = "classifier") -> list[Entry]:
    """Returns all parameters of a model: `NatForImageClassification`, `NatModel` or `NatBackbone` by `kind`."""
    found = list(_trunk(config))
    if kind == "backbone":
        dims = (config.embed_dim, *config.level_dims)
        for stage, index in zip(config.out_features or (), config.out_indices or (), strict=True):
            name = f"hidden_states_norms.{stage}"
            found += _norm(("hidden_states_norms", stage), dims[index], name, None)
        return found
    found += _norm(("layernorm",), config.hidden_size, "layernorm", "norm")
    if kind == "model":
        return found
    found = [dataclasses.replace(entry, path=("nat", *entry.path)) for entry in found]
    if config.num_labels:
        found += _linear(("classifier",), config.hidden_size, config.num_labels, ("classifier",), ("head",))
    return found


def parameter_count(found: list[Entry]) -> int:
    """Returns the number of parameters in a table."""
    return sum(math.prod(entry.shape) for entry in found)


def _trunk(config: NatConfig) -> Iterator[Entry]:
    half, dim = config.embed_dim // 2, config.embed_dim
    for i, (inputs, outputs) in enumerate(((config.num_channels, half), (half, dim))):
        name = f"embeddings.patch_embeddings.projection.{i}"
        path = ("embeddings", "patch_embeddings", "projection", i)
        yield from _conv(path, inputs, outputs, name, f"patch_embed.proj.{i}", bias=True)
    yield from _norm(("embeddings", "norm"), dim, "embeddings.norm", "patch_embed.norm")
    for i, dim in enumerate(config.level_dims):
        for j in range(config.depths[i]):
            path = ("encoder", "levels", i, "layers", j)
            yield from _layer(config, i, dim, path, f"encoder.levels.{i}.layers.{j}.", f"levels.{i}.blocks.{j}.")
        if i + 1 < config.num_levels:
            path, hf, shi = (
                ("encoder", "levels", i, "downsample"),
                f"encoder.levels.{i}.downsample",
                f"levels.{i}.downsample",
            )
            yield from _conv((*path, "reduction"), dim, 2 * dim, f"{hf}.reduction", f"{shi}.reduction", bias=False)
            yield from _norm((*path, "norm"), 2 * dim, f"{hf}.norm", f"{shi}.norm")


def _layer(config: NatConfig, level: int, dim: int, path: tuple, hf: str, shi: str) -> Iterator[Entry]:
    yield from _norm((*path, "layernorm_before"), dim, f"{hf}layernorm_before", f"{shi}norm1")
    attention = tuple(f"{hf}attention.self.{part}" for part in ("query", "key", "value"))
    yield from _linear((*path, "attention", "qkv"), dim, 3 * dim, attention, (f"{shi}attn.qkv",), bias=config.qkv_bias)
    offsets = 2 * config.kernel_size - 1
    rpb = (config.num_heads[level], offsets, offsets)
    yield Entry((*path, "attention", "rpb"), rpb, (f"{hf}attention.self.rpb",), (f"{shi}attn.rpb",))
    yield from _linear((*path, "attention", "output"), dim, dim, (f"{hf}attention.output.dense",), (f"{shi}attn.proj",))
    yield from _norm((*path, "layernorm_after"), dim, f"{hf}layernorm_after", f"{shi}norm2")
    hidden = int(config.mlp_ratio * dim)
    yield from _linear((*path, "intermediate"), dim, hidden, (f"{hf}intermediate.dense",), (f"{shi}mlp.fc1",))
    yield from _linear((*path, "output"), hidden, dim, (f"{hf}output.dense",), (f"{shi}mlp.fc2",))
    if config.layer_scale_init_value > 0:
        gammas = (f"{shi}gamma1", f"{shi}gamma2")
        yield Entry((*path, "layer_scale_parameters"), (2, dim), (f"{hf}layer_scale_parameters",), gammas)


def _norm(path: tuple, dim: int, hf: str, shi: str | None) -> Iterator[Entry]:
    for leaf in ("scale", "bias"):
        yield _entry((*path, leaf), (dim,), (hf,), () if shi is None else (shi,))


def _linear(path: tuple, inputs: int, outputs: int, hf: tuple, shi: tuple, *, bias: bool = True) -> Iterator[Entry]:
    yield _entry((*path, "kernel"), (inputs, outputs), hf, shi)
    if bias:
        yield _entry((*path, "bias"), (outputs,), hf, shi)


def _conv(path: tuple, inputs: int, outputs: int, hf: str, shi: str, *, bias: bool) -> Iterator[Entry]:
    yield _entry((*path, "kernel"), (3, 3, inputs, outputs), (hf,), (shi,))
    if bias:
        yield _entry((*path, "bias"), (outputs,), (hf,), (shi,))


def _entry(path: tuple, shape: tuple[int, ...], hf: tuple, shi: tuple) -> Entry:
    leaf = _LEAVES[path[-1]]
    return Entry(path, shape, tuple(f"{name}.{leaf}" for name in hf), tuple(f"{name}.{leaf}" for name in shi))
