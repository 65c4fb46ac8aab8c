"""A checkpoint opened once: its tensors, dialect, kind and configuration, and the image processor beside it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME, UNDILATED, DinatSConfig, read_config
from natjax.errors import CheckpointError
from natjax.presets import ALL_PRESETS
from natjax.text import shortened
from natjax_convert.config_texts import config_of, with_classes
from natjax_convert.dialect import Dialect, Found
from natjax_convert.inference import DENSE_PRESETS, fitting_presets, infer_config
from natjax_convert.names import detect
from natjax_convert.params import to_flax
from natjax_convert.reader import read_state_dict
from natjax_convert.shapes import DENSE, Kind
from natjax_convert.state_dict import FileTensors, StateDict

Dilations = Sequence[Sequence[int]] | Literal["none"]
_LIBRARIES: dict[Kind, str] = {"segmentation": "mmsegmentation", "detection": "mmdetection"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint, which `Checkpoint.open` opens. It may be given where a path is expected.

    Attributes:
        path: directory or file that it was opened from.
        tensors: its state dict.
        found: its dialect and kind, as its keys say.
        config: its configuration: a `NatConfig` or that of its family, a `UperNetConfig` of a segmentation model, a
            `MaskRcnnConfig` or `CascadeMaskRcnnConfig` of a detection model.
    """

    path: Path
    tensors: StateDict
    found: Found
    config: Any

    @property
    def dialect(self) -> Dialect:
        """The dialect of its names."""
        return self.found.dialect

    @property
    def kind(self) -> Kind:
        """What it is a checkpoint of: "classifier", "model", "backbone", "segmentation" or "detection"."""
        return self.found.kind

    @classmethod
    def open(cls, path: str | os.PathLike, *, config: Any = None, dilations: Dilations | None = None) -> Checkpoint:
        """Opens a checkpoint.

        Args:
            path: directory or file in any format that `read_state_dict` takes.
            config: its configuration, for one without a config.json beside it.
            dilations: of every layer by level, or "none" for NAT, instead of a configuration: all else follows from the shapes.

        Raises:
            CheckpointError: it is missing, damaged, unsafe, of no NAT or DiNAT, or has no configuration.
        """
        path = Path(path)
        tensors = read_state_dict(path)
        found = detect(tensors)
        return cls(path, tensors, found, find_config(path, tensors, config=config, dilations=dilations, found=found))

    def to_flax(self, *, config: Any = None, kind: Kind | None = None, **options: Any) -> dict:
        """Returns the parameters, by default of its own configuration and kind; see `natjax_convert.to_flax`."""
        return to_flax(self.tensors, config or self.config, kind=kind or self.kind, found=self.found, **options)

    def processor_json(self) -> str | None:
        """Returns the text of the preprocessor_config.json beside it, or None where there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        beside = _folder(self.path) / PROCESSOR_NAME
        if not os.path.isfile(beside):
            return None
        try:
            return beside.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{beside}: cannot be read: {error}.") from error


def find_config(
    src: str | os.PathLike,
    state_dict: StateDict,
    *,
    config: Any = None,
    dilations: Dilations | None = None,
    found: Found | None = None,
) -> Any:
    """Returns the configuration of a checkpoint: the one given, that of the config.json beside it, or the inferred one.

    Of mmsegmentation's and mmdetection's files, the one that is inferred is that of the config text in them, which is parsed and
    never run; the names of the classes are those that they have.

    Args:
        src: the checkpoint's directory or file.
        state_dict: its tensors by name.
        config: the one given.
        dilations: of every layer by level, or "none" for NAT: all else is inferred, whatever is beside the checkpoint.
        found: what `natjax_convert.names.detect` says of the state dict, where that is known already.

    Raises:
        CheckpointError: there is none and it cannot be inferred for certain.
    """
    if config is not None:
        return config
    beside = _folder(Path(src)) / CONFIG_NAME
    if dilations is None and os.path.isfile(beside):
        return read_config(beside)
    found = found or detect(state_dict)
    if dilations is None and found.kind in DENSE:
        return _config_in_file(src, state_dict, found)
    if dilations is None and found.model_type not in UNDILATED:
        presets = fitting_presets(state_dict, found)
        fit = f"; they fit {', '.join(presets)}" if presets else ""
        untold, flag = "NAT from DiNAT", "--dilations none for NAT"
        if found.model_types == DinatSConfig.model_types:
            untold, flag = "its dilations", "--dilations '[[1, 8], ...]', a list for each level"
        config_name = presets[0] if presets else CONFIG_NAME
        raise CheckpointError(
            f"{src}: has no {CONFIG_NAME} beside it, and its tensors do not tell {untold} (dilations are in none of "
            f"them{fit}). Say which it is: convert it first, `natjax convert FILE DIR --config {config_name}` (or another name "
            f"of `natjax list`, or {flag}), and use DIR. In Python, give config=."
        )
    inferred = infer_config(state_dict, dilations=None if dilations == "none" else dilations, found=found)
    return with_classes(inferred, _meta(state_dict)) if found.kind in DENSE else inferred


def _config_in_file(src: str | os.PathLike, state_dict: StateDict, found: Found) -> Any:
    """Returns the configuration that the config text of mmsegmentation or mmdetection describes.

    Raises:
        CheckpointError: there is no such text, or it describes no model of natjax; dilations are nowhere else.
    """
    why = f"no text of {_LIBRARIES[found.kind]}'s config"
    tensors = dict(state_dict)  # errors about them do not name the file, as the one below does
    try:
        config = config_of(found.kind, _meta(state_dict), lambda said: infer_config(tensors, fields=said, found=found))
        if config is not None:
            return config
    except ValueError as error:
        why = f"the text of its config is not usable: {shortened(str(error).rstrip('.'), 500)}"
    presets = fitting_presets(state_dict, found)
    fit = f"; they fit {', '.join(presets)}" if presets else ""
    raise CheckpointError(
        f"{src}: has no {CONFIG_NAME} beside it, and {why}. Its tensors do not tell the dilations{fit}; those of {found.kind} "
        f"are not those of classification ({_published_dilations(found.kind, presets)}). Convert it first, "
        f"`natjax convert FILE DIR --config {[*presets, CONFIG_NAME][0]}` (or another name of `natjax list`, or --dilations none "
        "for NAT), and use DIR. In Python, give config=."
    )


def _published_dilations(kind: Kind, presets: Sequence[str]) -> str:
    """Returns the dilations of those presets that have any, as the command line takes them, or else the largest of all."""
    given = ((name, ALL_PRESETS[name].config.trunk.dilations) for name in presets)
    if said := "; ".join(f"{name} has --dilations '{json.dumps(levels)}'" for name, levels in given if levels):
        return said
    every = (preset.config.trunk.dilations or () for preset in DENSE_PRESETS[kind].values())
    largest = (max(map(max, levels)) for levels in zip(*filter(None, every), strict=True))
    return (
        f"published models have at most {', '.join(map(str, largest))} by level, as in --dilations '[[1, 8], ...]', "
        "a list for each level"
    )


def _meta(state_dict: StateDict) -> Mapping[str, Any]:
    """Returns what a file of mmcv's says beside the weights."""
    return state_dict.meta if isinstance(state_dict, FileTensors) else {}


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
