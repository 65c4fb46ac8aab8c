"""Converting checkpoint files: any dialect and container in, a Hugging Face directory or an original .pth out."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import numpy as np

from natjax.atomic import staging
from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME, NatConfig
from natjax.errors import CheckpointError
from natjax_convert.checkpoint import Checkpoint, Dilations
from natjax_convert.names import DIALECTS
from natjax_convert.params import from_flax
from natjax_convert.safetensors_file import write_safetensors
from natjax_convert.shapes import Kind, count_parameters
from natjax_convert.state_dict import StateDict
from natjax_convert.torch_zip import write_torch

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
        default_processor: whether ImageNet's image processor was written, as there is none beside the source.
    """

    source: str
    kind: Kind
    config: NatConfig
    tensors: int
    parameters: int
    seconds: float
    default_processor: bool = False


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    config: NatConfig | None = None,
    dilations: Dilations | None = None,
    to: str = "hf",
    overwrite: bool = False,
) -> Report:
    """Converts a checkpoint.

    Args:
        src: directory or file in any format that `read_state_dict` takes.
        dst: directory to make ("hf": config.json, model.safetensors, preprocessor_config.json) or file ("shilabs": a .pth).
        config: the model's configuration, for sources without a config.json beside them.
        dilations: of every layer by level, or "none" for NAT, instead of a configuration: all else follows from the shapes.
        to: dialect to write, "hf" or "shilabs".
        overwrite: whether an existing destination may be replaced (file by file; other files in it stay).

    Raises:
        CheckpointError: the source is unusable or does not fit its configuration, or the destination exists or cannot be
            written; it is left as it was.
    """
    start, src, dst = time.perf_counter(), Path(src), Path(dst)
    if to not in DIALECTS:
        raise CheckpointError(f"Checkpoints are converted to {' or '.join(map(repr, DIALECTS))}; got {to!r}.")
    as_directory = DIALECTS[to].directory
    if os.path.exists(dst) and not overwrite and not (as_directory and dst.is_dir() and not any(dst.iterdir())):
        raise CheckpointError(f"{dst}: exists. Choose another destination, or overwrite (--overwrite).")
    if dst.exists() and dst.is_dir() != as_directory:
        raise CheckpointError(f"{dst}: expected a {'directory' if as_directory else 'file'} to write {to!r} format to.")
    checkpoint = Checkpoint.open(src, config=config, dilations=dilations)
    config, kind = checkpoint.config, checkpoint.kind
    params = checkpoint.to_flax(lazy=True)
    processor = checkpoint.processor_json()
    converted = from_flax(params, config, kind=kind, dialect=to)
    if as_directory:
        with staging(dst) as directory:
            write_model(directory, converted, config, kind)
            (directory / PROCESSOR_NAME).write_text(processor or _imagenet_json(config), encoding="utf-8")
    else:
        with staging(dst.parent) as directory:
            write_torch(directory / dst.name, converted)
    return Report(
        source=checkpoint.dialect.name,
        kind=kind,
        config=config,
        tensors=len(converted),
        parameters=count_parameters(config, kind),
        seconds=time.perf_counter() - start,
        default_processor=as_directory and processor is None,
    )


def write_model(directory: Path, tensors: StateDict, config: NatConfig, kind: Kind) -> None:
    """Writes model.safetensors and a config.json with the name of Hugging Face's class and the tensors' dtype."""
    write_safetensors(directory / "model.safetensors", tensors)
    architecture = config.model_type.capitalize() + _ARCHITECTURES[kind]
    dtypes = {np.dtype(tensor.dtype).name for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    config = config.replace(extra={**config.extra, "architectures": [architecture], "torch_dtype": dtype})
    (directory / CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")


def _imagenet_json(config: NatConfig) -> str:
    from natjax.image_processing import NatImageProcessor

    processor = NatImageProcessor.imagenet(num_channels=1 if config.num_channels == 1 else 3)
    return json.dumps(processor.to_dict(), indent=2, sort_keys=True) + "\n"
