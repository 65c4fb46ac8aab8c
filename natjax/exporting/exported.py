"""An exported model, as pipelines run it: a program of StableHLO or ONNX with the configuration and image processor beside it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME, UperNetConfig, read_config
from natjax.errors import CheckpointError
from natjax.exporting import onnx_files, stablehlo
from natjax.image_processing import NatImageProcessor

FILES = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
_PROGRAMS: dict[str, Any] = {".stablehlo": stablehlo.Program, ".onnx": onnx_files.Program}


def find_exported(path: Path) -> Path | None:
    """Returns the exported program that a path means, or None where it means something else.

    A folder means one if it holds a program and no weights; of two programs, that of StableHLO.
    """
    if path.is_dir():
        if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
            return None
        return next((path / name for name in FILES.values() if (path / name).is_file()), None)
    return path if path.suffix in _PROGRAMS else None


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """An exported model. It is called as a model of natjax is, and keeps its configuration.

    Attributes:
        path: of the program.
        config: of the model that was exported.
        processor: prepares images for it.
        program: see `natjax.exporting.stablehlo.Program`.
    """

    path: Path
    config: Any
    processor: NatImageProcessor
    program: Any

    @classmethod
    def open(
        cls, path: str | os.PathLike, *, config: Any = None, processor: NatImageProcessor | None = None
    ) -> ExportedModel:
        """Opens a program.

        Args:
            path: of `model.stablehlo` or `model.onnx`.
            config: instead of the config.json beside it.
            processor: instead of the preprocessor_config.json beside it.

        Raises:
            CheckpointError: it is missing or damaged, or does not fit what is beside it.
            ImportError: onnxruntime is missing.
        """
        path = Path(path)
        for name, given in ((CONFIG_NAME, config), (PROCESSOR_NAME, processor)):
            if given is None and not (path.parent / name).is_file():
                raise CheckpointError(f"{path}: has no {name} beside it, which `natjax export` writes.")
        config = config or read_config(path.parent / CONFIG_NAME)
        processor = processor or NatImageProcessor.from_pretrained(path.parent)
        try:
            program = _PROGRAMS[path.suffix](path)
        except ImportError:
            raise
        except Exception as error:  # of flatbuffers, MLIR, protobuf and onnxruntime, which have no common base
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"{path}: cannot be loaded as an exported model: {said}") from error
        if len(program.shape) != 4 or {program.shape[-1], processor.num_channels} != {config.num_channels}:
            raise CheckpointError(
                f"{path}: takes images {program.shape}; its {CONFIG_NAME} says {config.num_channels} channels, its "
                f"{PROCESSOR_NAME} {processor.num_channels}."
            )
        return cls(path, config, processor, program)

    @property
    def task(self) -> str:
        """The task that it was exported for."""
        if "logits" not in self.program.outputs:
            return "image-feature-extraction"
        return "image-segmentation" if isinstance(self.config, UperNetConfig) else "image-classification"

    @property
    def batch(self) -> int | None:
        """Images per call; None means any number."""
        return self.program.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that it takes."""
        return self.program.shape[1:3]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns its outputs by name, [B, ...] each, of images [B, H, W, C].

        Raises:
            ValueError: images are of another shape.
        """
        if images.shape[1:] != self.program.shape[1:]:
            raise ValueError(
                f"{self.path}: takes images {self.program.shape[1:]}, got {images.shape[1:]}. natjax.export writes one for "
                "another size (`natjax export --image-size`)."
            )
        images = np.asarray(images).astype(self.program.dtype)
        count, size = len(images), self.batch or len(images)
        filled = np.pad(images, [(0, -count % size), (0, 0), (0, 0), (0, 0)])
        parts = [self.program(filled[start : start + size]) for start in range(0, len(filled), size)]
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in self.program.outputs}

    def decode(self, images: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
        """Returns logits as `UperNetForSemanticSegmentation.decode` does."""
        return self(images)["logits"], None
