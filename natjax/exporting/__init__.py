"""Trained models as files that run without natjax: StableHLO for JAX, ONNX for onnxruntime.

    natjax.export("digits", "exported")  # exported/model.stablehlo, config.json, preprocessor_config.json
    natjax.export("digits", "exported", format="onnx")  # exported/model.onnx

    exported = jax.export.deserialize(Path("exported/model.stablehlo").read_bytes())  # with jax alone
    exported.call(images)["logits"]  # [B, H, W, C] to [B, num_labels]

Images go in as [B, H, W, C]. Windows of neighborhood attention are settled when a model is traced, so an exported model takes
images of one height and width. It takes any number of them, unless it was exported for one number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.atomic import staging
from natjax.configuration import CONFIG_NAME
from natjax.errors import CheckpointError
from natjax.exporting import onnx_files, stablehlo
from natjax.exporting.exported import FILES, ExportedModel
from natjax.exporting.functions import Function, load
from natjax.exporting.options import Options

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor
    from natjax.models.base import NatPreTrainedModel
    from natjax_convert import Checkpoint

__all__ = ["ExportedModel", "export"]

_WRITERS = {"stablehlo": stablehlo.serialized, "onnx": onnx_files.serialized}


def export(
    model: str | os.PathLike | Checkpoint | NatPreTrainedModel,
    out: str | os.PathLike,
    *,
    format: str = "stablehlo",  # noqa: A002 (the word of the field)
    task: str | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    input_dtype: str = "float32",
    dtype: Any = None,
    config: Any = None,
    processor: NatImageProcessor | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model as a program with its parameters inside, beside its configuration and image processor.

    The program computes neighborhood attention by "xla_autodiff", which runs on every platform: fused kernels for GPUs cannot be
    written into such a file.

    Args:
        model: a checkpoint, see `natjax.hub.locate`, or a model in memory.
        out: folder to write; made where it does not exist. `natjax.pipeline` and the command line take it for a checkpoint.
        format: "stablehlo", `model.stablehlo` for `jax.export.deserialize`, or "onnx", `model.onnx` of opset 21.
        task: "image-classification" gives logits [B, num_labels]; "image-feature-extraction" pooler_output [B, C] and
            last_hidden_state [B, H/32, W/32, C]; "image-segmentation" logits [B, H/4, W/4, num_labels]. By default what the
            checkpoint is of.
        platforms: of StableHLO: "cpu", "cuda", "rocm" or "tpu". ONNX has none.
        batch: images per call; None takes any number.
        image_size: side of the images or (height, width) in pixels; by default that of the image processor, of segmentation 512,
            which is what windows that slide over an image have.
        input_dtype: "float32" takes what `NatImageProcessor` gives. "uint8" takes pixels of 0..255: the program rescales and
            normalises, and the image processor that is written does so no more.
        dtype: compute dtype, None for float32; ONNX is float32. Outputs are float32.
        config: the architecture, where there is none beside the weights.
        processor: prepares images; by default the one beside the checkpoint or the default one.
        overwrite: whether files of these names in `out` may be replaced.

    Returns:
        the path of the program.

    Raises:
        CheckpointError: there is no such checkpoint, it does not fit the task, or `out` exists or cannot be written.
        ImportError: a package is missing.
        ValueError: an argument is impossible.
    """
    options = Options(format, platforms, batch, image_size, input_dtype, dtype)
    name, out = FILES[format], Path(out)
    _check_destination(out, overwrite)
    if format == "onnx":
        onnx_files.check_installed("jax2onnx")
    function: Function = load(model, task, options, config=config, processor=processor)
    content = _WRITERS[format](function, options)
    with staging(out) as temporary:
        (temporary / name).write_bytes(content)
        (temporary / CONFIG_NAME).write_text(function.config.to_json(), encoding="utf-8")
        function.processor.save_pretrained(temporary)
    return out / name


def _check_destination(out: Path, overwrite: bool) -> None:
    """Refuses a destination before any work.

    Raises:
        CheckpointError: it is a file, or a folder that holds something which may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; give a folder to write.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise CheckpointError(f"{out}: exists. Choose another folder, or overwrite (--overwrite).")
