"""Architectures and image processors of models named on the command line, without their weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.errors import CheckpointError
from natjax.hub import locate
from natjax.presets import ALL_PRESETS, get_config

if TYPE_CHECKING:
    from natjax.detection_presets import DetectionPreset
    from natjax.image_processing import NatImageProcessor
    from natjax.presets import Preset
    from natjax.segmentation_presets import SegmentationPreset

MODEL_HELP = (
    "a name of `natjax list`, a folder or a run with a config.json, that file, a .pth that holds the text of its config, or an "
    "id of the Hugging Face Hub"
)
ACCURACIES = ("top1", "miou", "miou_multi_scale", "box_ap", "mask_ap")  # attributes of presets, some each


def find_preset(model: str) -> Preset | SegmentationPreset | DetectionPreset | None:
    """Returns the preset that an argument names, or None where it names something else."""
    return None if Path(model).exists() else ALL_PRESETS.get(model)


def read_model(model: str) -> tuple[Any, NatImageProcessor | None]:
    """Returns the configuration of the model that an argument names, and the image processor beside it, if there is one.

    Args:
        model: a preset, a config.json, or what `natjax.hub.locate` takes.

    Raises:
        ValueError: there is no such model, or one of its files cannot be read.
    """
    from natjax.configuration import read_config
    from natjax.image_processing import NatImageProcessor
    from natjax_convert import Checkpoint

    if find_preset(model):
        return get_config(model), None
    path = Path(model)
    if not (path / CONFIG_NAME).is_file() or (path / "model").is_dir():  # but that of a run without a model yet
        path = locate(model, weights=False)
    config = path if path.suffix == ".json" and path.is_file() else _folder(path) / CONFIG_NAME
    if not config.is_file() and path.is_file() and path.suffix != ".json":
        return Checkpoint.open(path).config, None  # some files hold the text of their config
    if not config.is_file():
        raise CheckpointError(
            f"{model}: there is no {CONFIG_NAME}, and weights alone do not say their architecture. Name a preset of "
            f"`natjax list`, or a {CONFIG_NAME}."
        )
    beside = config.parent / PROCESSOR_NAME
    return read_config(config), NatImageProcessor.from_pretrained(beside) if beside.is_file() else None


def read_given(config: str | None) -> tuple[Any, NatImageProcessor | None]:
    """Returns what `read_model` returns of the argument of --config, where it is given."""
    return (None, None) if config is None else read_model(config)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
