"""Architectures named on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from natjax.configuration import NatConfig


@overload
def read_config(model: str) -> NatConfig: ...
@overload
def read_config(model: None) -> None: ...
def read_config(model: str | None) -> NatConfig | None:
    """Returns the configuration that an argument names: a preset, a config.json, or a folder with one; None for None.

    Raises:
        ValueError: there is no such preset or file.
    """
    from natjax.configuration import CONFIG_NAME, NatConfig
    from natjax.presets import get_config

    if model is None:
        return None
    path = Path(model)
    if path.exists():
        return NatConfig.from_json_file(path / CONFIG_NAME if path.is_dir() else path)
    return get_config(model)
