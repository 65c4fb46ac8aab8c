"""What all configurations share: copies with changes, and the text and the files of a config.json."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar, cast

from natjax.configuration.checks import check_fields
from natjax.errors import CheckpointError

CONFIG_NAME = "config.json"
PROCESSOR_NAME = "preprocessor_config.json"

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configuration:
    """A configuration: a frozen dataclass that a config.json holds.

    A subclass that is a dataclass of its own repeats `__hash__`, which `dataclasses` would replace.
    """

    model_types: ClassVar[tuple[str, ...]]  # of the config.json files that the class reads

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed; fields that follow from a changed one follow it.

        Raises:
            ValueError: there is no such field, or the changes are impossible.
        """
        check_fields(type(self), changes)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**{**fields, **dict.fromkeys(self._following(changes)), **changes})

    def _following(self, changes: Mapping[str, Any]) -> Iterable[str]:
        """Returns the fields that follow from changed ones, and are None until they do."""
        raise NotImplementedError

    def classifier_range(self, layer: str) -> float:
        """Returns the standard deviation of the initial kernel of a layer with outputs per class, by the layer's name."""
        return cast("Any", self).initializer_range  # which all of them have

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a config.json."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a configuration from the content of a config.json.

        Raises:
            ValueError: it is of another architecture, or a value is impossible.
        """
        raise NotImplementedError

    def to_json(self) -> str:
        """Returns the text of a config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> Self:
        """Reads the config.json of this class; `natjax.configuration.read_config` reads any.

        Raises:
            natjax.CheckpointError: the file is missing, is not JSON or describes an impossible model.
        """
        return read_json(path, cls.from_dict)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def model_type_of(values: Any) -> Any:
    """Returns the model_type of the content of a config.json: that of a NAT or DiNAT where it says none.

    Raises:
        ValueError: it is no JSON object.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"A configuration is a JSON object; got {type(values).__name__}.")
    return values.get("model_type", "dinat" if values.get("dilations") else "nat")


def read_json(path: str | os.PathLike, make: Callable[[Any], Config]) -> Config:
    """Returns what `make` makes of the JSON in a file.

    Raises:
        natjax.CheckpointError: the file is missing, is not JSON or describes an impossible model.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return make(json.load(file))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the configuration: {error.strerror or error}.") from error
    except ValueError as error:  # also JSON and text decoding errors
        raise CheckpointError(f"{path}: not a usable configuration: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: not a usable configuration: JSON nested too deeply.") from error
