"""Converting checkpoint files: any dialect and container in, a Hugging Face directory or an original .pth out."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from natjax.atomic import staging
from natjax.configuration import CONFIG_NAME, NatConfig
from natjax.errors import CheckpointError
from natjax_convert.files import write_safetensors
from natjax_convert.flax_params import detect, detect_kind, from_flax, infer_config, to_flax
from natjax_convert.mapping import Dialect, Kind, entries, parameter_count
from natjax_convert.tensors import StateDict, read_state_dict
from natjax_convert.torch_zip import write_torch

PROCESSOR_NAME = "preprocessor_config.json"
WEIGHTS_NAME = "model.safetensors"
_ARCHITECTURES = {"classifier": "ForImageClassification", "model": "Model", "backbone": "Backbone"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: dialect of the source, "hf" or "shilabs".
        kind: "classifier", "model" or "backbone".
        config: the model's configuration.
        tensors: number of tensors written.
        parameters: number of parameters.
        seconds: time taken.
    """

    source: Dialect
    kind: Kind
    config: NatConfig
    tensors: int
    parameters: int
    seconds: float


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    config: NatConfig | None = None,
    dilations: Sequence[Sequence[int]] | Literal["none"] | None = None,
    to: Dialect = "hf",
    overwrite: bool = False,
) -> Report:
    """Converts a checkpoint.

    Args:
        src: directory or file in any format that `read_state_dict` takes.
        dst: directory to make ("hf": config.json, model.safetensors, preprocessor_config.json) or file ("shilabs": a .pth).
        config: the model's configuration, for sources without a config.json beside them.
        dilations: of every layer by level, or "none" for NAT, instead of a configuration: all else follows from the shapes.
        to: dialect to write.
        overwrite: whether an existing destination may be replaced (file by file; other files in it stay).

    Raises:
        CheckpointError: the source is unusable or does not fit its configuration, or the destination exists or cannot be
            written; it is left as it was.
    """
    start, src, dst = time.perf_counter(), Path(src), Path(dst)
    if to not in ("hf", "shilabs"):
        raise CheckpointError(f"Checkpoints are converted to 'hf' or 'shilabs'; got {to!r}.")
    if os.path.exists(dst) and not overwrite and not (to == "hf" and dst.is_dir() and not any(dst.iterdir())):
        raise CheckpointError(f"{dst}: exists. Choose another destination, or overwrite (--overwrite).")
    if dst.exists() and dst.is_dir() != (to == "hf"):
        raise CheckpointError(f"{dst}: expected a {'directory' if to == 'hf' else 'file'} to write {to!r} format to.")
    try:
        state_dict = read_state_dict(src)
        config = find_config(src, state_dict, config=config, dilations=dilations)
        kind = detect_kind(state_dict)
        params = to_flax(state_dict, config, kind=kind, lazy=True)
        processor = _processor_json(src, config)
    except CheckpointError as error:
        raise error if str(error).startswith(str(src)) else CheckpointError(f"{src}: {error}") from error
    converted = from_flax(params, config, kind=kind, dialect=to)
    if to == "hf":
        with staging(dst) as directory:
            write_safetensors(directory / WEIGHTS_NAME, converted)
            (directory / CONFIG_NAME).write_text(config_json(config, kind, converted), encoding="utf-8")
            (directory / PROCESSOR_NAME).write_text(processor, encoding="utf-8")
    else:
        write_file(dst, converted)
    return Report(
        source=detect(state_dict)[0],
        kind=kind,
        config=config,
        tensors=len(converted),
        parameters=parameter_count(entries(config, kind)),
        seconds=time.perf_counter() - start,
    )


def find_config(
    src: Path,
    state_dict: StateDict,
    *,
    config: NatConfig | None = None,
    dilations: Sequence[Sequence[int]] | Literal["none"] | None = None,
) -> NatConfig:
    """Returns the configuration of a checkpoint: the one given, that of the config.json beside it, or the inferred one.

    Raises:
        CheckpointError: there is none and it cannot be inferred for certain.
    """
    if config is not None:
        return config
    beside = (src if src.is_dir() else src.parent) / CONFIG_NAME
    if dilations is None and os.path.isfile(beside):
        return NatConfig.from_json_file(beside)
    if dilations is None and detect(state_dict)[1] != "nat.":
        raise CheckpointError(
            "has no config.json beside it, and its tensors do not tell NAT from DiNAT (dilations are in none of them). "
            "Give the configuration (--config nat_mini, --config dinat_mini, --config FILE) or the dilations "
            "(--dilations none for NAT)."
        )
    return infer_config(state_dict, dilations=None if dilations == "none" else dilations)


def config_json(config: NatConfig, kind: Kind, tensors: StateDict) -> str:
    """Returns the config.json of a saved model, with the name of Hugging Face's class for it and its tensors' dtype."""
    architecture = config.model_type.capitalize() + _ARCHITECTURES[kind]
    dtypes = {np.dtype(tensor.dtype).name for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return config.replace(extra={**config.extra, "architectures": [architecture], "torch_dtype": dtype}).to_json()


def write_file(path: Path, tensors: StateDict) -> None:
    """Writes a state dict as torch.save does, whole or not at all."""
    with staging(path.parent) as directory:
        write_torch(directory / path.name, tensors)


def _processor_json(src: Path, config: NatConfig) -> str:
    beside = (src if src.is_dir() else src.parent) / PROCESSOR_NAME
    if os.path.isfile(beside):
        try:
            return beside.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{beside}: cannot be read: {error}.") from error
    from natjax.image_processing import NatImageProcessor

    processor = NatImageProcessor.imagenet().to_dict()
    if config.num_channels == 1:
        processor |= {"image_mean": [0.5], "image_std": [0.5]}
    return json.dumps(processor, indent=2, sort_keys=True) + "\n"
