"""Pipelines of exported models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from natjax.errors import CheckpointError
from natjax.exporting.exported import ExportedModel
from natjax.pipelines.classification import ImageClassification
from natjax.pipelines.features import ImageFeatureExtraction
from natjax.pipelines.segmentation import ImageSegmentation


def exported_pipeline(
    task: str,
    program: Path,
    *,
    config: Any,
    processor: Any,
    settled: dict[str, Any],
    windows: dict[str, Any],
    top_k: int | None,
    batch_size: int,
    report: Callable[[str], None] | None,
) -> Any:
    """Returns the pipeline of an exported model.

    Args:
        task: see `natjax.pipeline`, as for what is not listed here.
        program: path of the model.
        config: instead of the one beside it.
        processor: likewise.
        settled: arguments that an exported model leaves no choice of, with None where they were not given.
        windows: those of segmentation. By default windows of the size that was exported slide over images.
        top_k: classes per image.
        batch_size: images per step.
        report: receives warnings.

    Raises:
        CheckpointError: the model cannot be opened, or was exported for another task.
        ValueError: an argument is settled.
    """
    for name, value in settled.items():
        if value is not None:
            raise ValueError(
                f"{name} was settled when {program} was exported; got {value!r}. Leave it out, or export anew."
            )
    model = ExportedModel.open(program, config=config, processor=processor)
    if model.task != task:
        raise CheckpointError(f"{program}: was exported for {model.task}; got {task}.")
    net: Any = model
    if task == "image-classification":
        return ImageClassification(net, model.processor, top_k=top_k, batch_size=batch_size, report=report)
    if task == "image-feature-extraction":
        return ImageFeatureExtraction(net, model.processor, batch_size=batch_size, report=report)
    if windows["mode"] is None and windows["crop_size"] is None:
        windows = {**windows, "crop_size": model.image_size}
    return ImageSegmentation(net, model.processor, batch_size=batch_size, report=report, **windows)
