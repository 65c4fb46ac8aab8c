"""What a checkpoint dialect is: a table from parameters to tensors, and the keys by which its files are recognised.

The dialects themselves are in `natjax_convert.names`, one file each.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from natjax.configuration import MaskRcnnConfig, NatConfig
from natjax_convert.pieces import Parameter, ParameterPath
from natjax_convert.shapes import Kind
from natjax_convert.state_dict import LazyTensor

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var", "num_batches_tracked": "num_batches_tracked"}
_WITHIN = ("nat", "backbone")  # first steps of paths that say which module the trunk is
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}  # axes of a kernel by its rank: linear, convolution
_TO_FLAX = {2: (1, 0), 4: (2, 3, 1, 0)}


class Joined(tuple[str, ...]):
    """Tensors that make up one parameter, one behind the other along their first axis."""


class Stacked(tuple[str, ...]):
    """Tensors that make up one parameter along a new first axis."""


class Signature(NamedTuple):
    """How the files of one kind of model are recognised.

    Attributes:
        keys: regular expressions; a file has a tensor for each of them. `{model_type}` stands for one of the dialect's.
        prefix: of all names but the heads', in which `{model_type}` is filled in.
    """

    keys: tuple[str, ...]
    prefix: str = ""


class Found(NamedTuple):
    """What the keys of a state dict say.

    Attributes:
        dialect: the dialect.
        kind: "classifier", "model", "backbone", "segmentation" or "detection".
        prefix: of all names but the heads'.
        model_type: such as "nat" or "dinat", or None where the keys do not tell.
    """

    dialect: Dialect
    kind: Kind
    prefix: str
    model_type: str | None

    @property
    def model_types(self) -> tuple[str, ...]:
        """The model types that it may be."""
        return self.dialect.model_types if self.model_type is None else (self.model_type,)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter and the tensors of a dialect that it is made of.

    Attributes:
        path: of the parameter in the nested dict.
        shape: of the parameter.
        names: of its tensors; none where the dialect has no name for it.
        stacked: whether they are joined along a new axis.
    """

    path: ParameterPath
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool = False

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each of its tensors."""
        shape = self.shape
        if not shape:
            return shape
        if self.path[-1] == "kernel":
            shape = tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
        return shape[1:] if self.stacked else (shape[0] // len(self.names), *shape[1:])

    def join(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Makes the parameter of its tensors: a view where one is enough."""
        if self.stacked:
            return np.stack(tensors)
        joined = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)
        return joined.transpose(_TO_FLAX[joined.ndim]) if self.path[-1] == "kernel" else joined

    def split(self, parameter: np.ndarray) -> list[np.ndarray]:
        """Makes its tensors of the parameter; undoes `join`."""
        if self.path[-1] == "kernel":
            parameter = parameter.transpose(_TO_TORCH[parameter.ndim])
        if self.stacked:
            return list(parameter)
        return [parameter] if len(self.names) == 1 else np.split(parameter, len(self.names))


@dataclasses.dataclass(frozen=True, eq=False)
class Dialect:
    """A way to name the tensors of a checkpoint.

    Attributes:
        name: what the dialect is called in arguments.
        title: whose it is.
        example: a key of it, for messages.
        model_types: of the configurations of the backbones, or bare models, that it names.
        kinds: the kinds of models it can express, in the order in which they are tried.
        table: from layers (for their kernel, scale and bias) and other parameters to the names of their tensors.
            Placeholders such as `{level}` stand for one step of a path.
        heads: first steps of the paths whose tensors have no prefix.
        directory: whether it is written as a directory with config.json and safetensors, else as one file of torch.save.
        family: class of the configurations of the models with heads that it names, where those of others have other names.
        buffers: returns the tensors beside the parameters that follow from the configuration, by name.
    """

    name: str
    title: str
    example: str
    model_types: tuple[str, ...]
    kinds: Mapping[Kind, Signature]
    table: Mapping[str, str | Joined | Stacked]
    heads: tuple[str, ...] = ("classifier",)
    directory: bool = False
    family: type[MaskRcnnConfig] | None = None
    buffers: Callable[[NatConfig], Mapping[str, LazyTensor]] = lambda _: {}

    def recognise(self, names: Iterable[str]) -> Found | None:
        """Returns what a state dict with such keys is, or None where it is not of this dialect."""
        for kind, (keys, prefix) in self.kinds.items():
            matches = [self._first_match(key, names) for key in keys]
            if all(matches):
                model_type = next((match["model_type"] for match in matches if match and match.groupdict()), None)
                if len(self.model_types) == 1:
                    [model_type] = self.model_types
                return Found(self, kind, prefix.format(model_type=model_type), model_type)
        return None

    def entry(self, parameter: Parameter, prefix: str) -> Entry:
        """Returns the tensors of a parameter."""
        names = self.names(parameter.path, prefix)
        return Entry(parameter.path, parameter.shape, tuple(names), isinstance(names, Stacked))

    def names(self, path: ParameterPath, prefix: str) -> Joined | Stacked:
        """Returns the names of the tensors that the parameter at a path is made of; none where the table has no row for it."""
        path = path[1:] if path[0] in _WITHIN else path
        prefix = "" if path[0] in self.heads else prefix
        leaf = _LEAVES.get(str(path[-1]))
        wanted = ".".join(map(str, path[:-1] if leaf else path))
        for pattern, names in self._rows:
            if match := pattern.fullmatch(wanted):
                ending = f".{leaf}" if leaf else ""
                return type(names)(f"{prefix}{name.format(**match.groupdict())}{ending}" for name in names)
        return Joined()

    def beginnings(self, module: str, prefix: str) -> list[str]:
        """Returns what the names of all tensors of a module of the model begin with."""
        prefix = "" if module in self.heads else prefix
        templates = (name for row, names in self.table.items() if row.split(".")[0] == module for name in _tuple(names))
        return [prefix + f"{name}.".split("{")[0] for name in templates]

    @functools.cached_property
    def start(self) -> re.Pattern:
        """Finds where, behind a prefix, the names of a model start in that of one of its tensors."""
        keys = "|".join(signature.keys[0] for signature in self.kinds.values())
        keys = keys.replace("{model_type}", f"(?:{'|'.join(self.model_types)})")
        return re.compile(rf"(?:\A|(?<=\.))(?:{keys})")

    def _first_match(self, key: str, names: Iterable[str]) -> re.Match | None:
        pattern = re.compile(key.replace("{model_type}", f"(?P<model_type>{'|'.join(self.model_types)})"))
        return next((match for name in names if (match := pattern.match(name))), None)

    @functools.cached_property
    def _rows(self) -> list[tuple[re.Pattern, Joined | Stacked]]:
        return [
            (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(row))), _tuple(names))
            for row, names in self.table.items()
        ]


def parameter_shape(path: ParameterPath, names: Joined | Stacked, tensor_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a parameter whose tensors have this shape; undoes `Entry.tensor_shape`.

    Raises:
        LookupError: a kernel cannot have this shape.
    """
    if isinstance(names, Stacked):
        return (len(names), *tensor_shape)
    shape = (tensor_shape[0] * len(names), *tensor_shape[1:])
    return tuple(shape[axis] for axis in _TO_FLAX[len(shape)]) if path[-1] == "kernel" else shape


def _tuple(names: str | Joined | Stacked) -> Joined | Stacked:
    return Joined([names]) if isinstance(names, str) else names
