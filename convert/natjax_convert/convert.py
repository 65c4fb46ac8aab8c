"""Converting checkpoint files: any dialect and container in, a Hugging Face directory or an original .pth out."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from natjax.atomic import staging
from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.errors import CheckpointError
from natjax_convert.checkpoint import Checkpoint, Dilations
from natjax_convert.config_texts import meta_of
from natjax_convert.names import DIALECTS, NAMES
from natjax_convert.params import from_flax
from natjax_convert.safetensors_file import write_safetensors
from natjax_convert.shapes import Kind, count_parameters
from natjax_convert.state_dict import StateDict
from natjax_convert.torch_zip import write_torch

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor

_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_OTHER_SUFFIXES = (".safetensors", ".npz", ".h5", ".hdf5", ".onnx", ".msgpack", ".pkl", ".zip", ".json")
_OTHER_SUFFIXES += (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
Origin = Literal["given", "source", "default", "none"]
_ARCHITECTURES = {
    "classifier": "{}ForImageClassification",
    "model": "{}Model",
    "backbone": "{}Backbone",
    "segmentation": "UperNetForSemanticSegmentation",
    "detection": "{}ForObjectDetection",
}
_FILES: dict[Kind, str] = {
    "segmentation": "mmseg",
    "detection": "mmdet",
}  # dialects of one file; "shilabs" of the others


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: dialect of the source, "hf", "shilabs", "mmseg" or "mmdet".
        to: dialect that was written.
        kind: "classifier", "model", "backbone", "segmentation" or "detection".
        config: the model's configuration.
        tensors: number of tensors written.
        parameters: number of parameters.
        seconds: time taken.
        processor: the image processor that was written: "given", that of the "source", the "default" where there is none
            beside the source, or "none", as in a .pth and for models that take neither 1 nor 3 channels.
    """

    source: str
    to: str
    kind: Kind
    config: Any
    tensors: int
    parameters: int
    seconds: float
    processor: Origin


def convert(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    config: Any = None,
    dilations: Dilations | None = None,
    processor: NatImageProcessor | None = None,
    to: str | None = None,
    overwrite: bool = False,
) -> Report:
    """Converts a checkpoint.

    Args:
        src: directory or file in any format that `read_state_dict` takes.
        dst: directory to make ("hf": config.json, model.safetensors, preprocessor_config.json) or file ("shilabs", or "mmseg" for
            a segmentation model, "mmdet" for a detection model: a .pth of weights alone, to which "mmseg" and "mmdet" add the
            classes and, where it can say all of the model, a config text). A name that ends in a slash is that of a directory.
        config: the model's configuration, for sources without a config.json beside them.
        dilations: of every layer by level, or "none" for NAT, instead of a configuration: all else follows from the shapes.
        processor: prepares images for the model; by default the one beside the source, or else that of the preset of this
            architecture, or ImageNet's (224 pixels, crop 0.875).
        to: dialect to write, "hf", "shilabs", "mmseg" or "mmdet"; by default what the name of the destination says.
        overwrite: whether an existing destination may be replaced (file by file; other files in it stay).

    Raises:
        CheckpointError: the source is unusable or does not fit its configuration, or the destination exists, has a name that does
            not fit what is to be written or cannot be written; it is left as it was.
    """
    start, named_folder = time.perf_counter(), os.fspath(dst).endswith(("/", os.sep))
    src, dst = Path(src), Path(dst)
    if to is None:
        as_directory = named_folder or dst.is_dir() or dst.suffix.lower() not in _TORCH_SUFFIXES
    elif to in NAMES:
        as_directory = any(dialect.directory for dialect in DIALECTS if dialect.name == to)
    else:
        raise CheckpointError(f"Checkpoints are converted to {' or '.join(map(repr, NAMES))}; got {to!r}.")
    if os.path.exists(dst) and not overwrite and not (as_directory and dst.is_dir() and not any(dst.iterdir())):
        raise CheckpointError(f"{dst}: exists. Choose another destination, or overwrite (--overwrite).")
    if dst.exists() and dst.is_dir() != as_directory:
        raise CheckpointError(
            f"{dst}: expected a {'directory' if as_directory else 'file'} to write {to or 'hf'!r} format to."
        )
    if named_folder and not as_directory:
        raise CheckpointError(
            f"{dst}{os.sep}: a folder, and the format {to!r} is one file; leave out the last {os.sep}."
        )
    if not dst.exists() and not named_folder:
        _check_name(dst, to or "hf", as_directory)
    checkpoint = Checkpoint.open(src, config=config, dilations=dilations)
    config, kind = checkpoint.config, checkpoint.kind
    to = to or ("hf" if as_directory else _FILES.get(kind, "shilabs"))
    params = checkpoint.to_flax(lazy=True)
    origin, preprocessing = _preprocessing(checkpoint, processor) if as_directory else ("none", None)
    converted = from_flax(params, config, kind=kind, dialect=to)
    if as_directory:
        with staging(dst) as directory:
            write_model(directory, converted, config, kind)
            if preprocessing is not None:
                (directory / PROCESSOR_NAME).write_text(preprocessing, encoding="utf-8")
    else:
        with staging(dst.parent) as directory:
            write_torch(directory / dst.name, converted, meta_of(config) if to in _FILES.values() else None)
    return Report(
        source=checkpoint.dialect.name,
        kind=kind,
        config=config,
        tensors=len(converted),
        parameters=count_parameters(config, kind),
        seconds=time.perf_counter() - start,
        to=to,
        processor=origin,
    )


def _preprocessing(checkpoint: Checkpoint, given: NatImageProcessor | None) -> tuple[Origin, str | None]:
    """Returns where the image processor of a conversion is from, and its text."""
    from natjax.processors import default_processor

    if given is not None:
        return "given", given.to_json()
    if (text := checkpoint.processor_json()) is not None:
        return "source", text
    default = default_processor(checkpoint.config)
    return ("none", None) if default is None else ("default", default.to_json())


def write_model(directory: Path, tensors: StateDict, config: Any, kind: Kind) -> None:
    """Writes model.safetensors and a config.json with the name of Hugging Face's class and the tensors' dtype."""
    write_safetensors(directory / "model.safetensors", tensors)
    family = "".join(word.capitalize() for word in config.model_type.split("_"))
    architecture = _ARCHITECTURES[kind].format(family)
    dtypes = {np.dtype(tensor.dtype).name for tensor in tensors.values()} - {"int64"}  # counters of batch norms
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    config = config.replace(extra={**config.extra, "architectures": [architecture], "torch_dtype": dtype})
    (directory / CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")


def _check_name(dst: Path, to: str, as_directory: bool) -> None:
    """Checks that the name of a new destination is that of what is to be written there.

    Raises:
        CheckpointError: it is not.
    """
    suffix = dst.suffix.lower()
    if dst.name.lower() in _TORCH_SUFFIXES + _OTHER_SUFFIXES:
        raise CheckpointError(f"{dst}: an ending without a name; give a file such as nat{dst.name} or a folder.")
    if as_directory and suffix in _TORCH_SUFFIXES:
        raise CheckpointError(
            f"{dst}: the name of a file, and the format {to!r} is a folder. Give a folder, or leave out the format for a file of "
            "the original one."
        )
    if as_directory and suffix in _OTHER_SUFFIXES:
        raise CheckpointError(
            f"{dst}: natjax writes no such file by itself. Give a folder, into which model.safetensors and its "
            f"{CONFIG_NAME} are written, or a file of the original format: {_stem(dst)}.pth."
        )
    if not as_directory and suffix not in _TORCH_SUFFIXES:
        raise CheckpointError(f"{dst}: the format {to!r} is one file; give a name such as {dst.name}.pth.")


def _stem(path: Path) -> str:
    while path.suffix.lower() in _TORCH_SUFFIXES + _OTHER_SUFFIXES:
        path = path.with_suffix("")
    return path.name
