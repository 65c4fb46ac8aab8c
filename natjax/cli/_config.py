"""Architectures, image processors and sizes of models named on the command line, without their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, overload

from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.errors import CheckpointError
from natjax.hub import locate
from natjax.presets import PRESETS, get_config

if TYPE_CHECKING:
    from natjax.configuration import NatConfig
    from natjax.image_processing import NatImageProcessor
    from natjax.presets import Preset

_IMAGENET_SIDE = 224  # of images whose size nothing says


def find_preset(model: str) -> Preset | None:
    """Returns the preset that an argument names, or None where it names something else."""
    return None if Path(model).exists() else PRESETS.get(model)


@overload
def read_config(model: str) -> NatConfig: ...
@overload
def read_config(model: None) -> None: ...
def read_config(model: str | None) -> NatConfig | None:
    """Returns the configuration that an argument names; None for None.

    Args:
        model: a preset, a config.json, or what `natjax.hub.locate` takes.

    Raises:
        ValueError: there is none.
    """
    from natjax.configuration import NatConfig

    if model is None:
        return None
    if find_preset(model):
        return get_config(model)
    path = Path(model) if (Path(model) / CONFIG_NAME).is_file() else locate(model)
    if path.is_dir() or path.suffix != ".json":
        path = _folder(path) / CONFIG_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{model}: there is no {CONFIG_NAME}, and weights alone do not say their architecture. Name a preset of "
                f"`natjax list`, or a {CONFIG_NAME}."
            )
    return NatConfig.from_json_file(path)


def read_processor(model: str | None, *, for_weights: str | os.PathLike | None = None) -> NatImageProcessor | None:
    """Returns the image processor of what an argument of `read_config` names, or None where there is none.

    Args:
        model: see `read_config`; a preset has the processor of its published figures.
        for_weights: weights that the argument says the architecture of. Where they have a processor beside them, None is
            returned for a preset.

    Raises:
        ValueError: there is no such model, or its processor cannot be read.
    """
    from natjax.image_processing import NatImageProcessor

    if model is None:
        return None
    if preset := find_preset(model):
        if for_weights is not None and (_folder(Path(for_weights)) / PROCESSOR_NAME).is_file():
            return None
        return NatImageProcessor.imagenet(preset.image_size, preset.crop_pct)
    folder = _folder(Path(model) if (Path(model) / PROCESSOR_NAME).is_file() else locate(model))
    return NatImageProcessor.from_pretrained(folder) if (folder / PROCESSOR_NAME).is_file() else None


def input_size(model: str) -> tuple[int, int]:
    """Returns height and width in pixels of the images that a model is used with: as its image processor makes them.

    Raises:
        ValueError: see `read_processor`.
    """
    processor = read_processor(model)
    if processor is None or not (processor.do_resize or processor.do_center_crop):
        return _IMAGENET_SIDE, _IMAGENET_SIDE
    size = processor.crop_size if processor.do_center_crop else processor.size
    return size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
