"""Image feature extraction: pooled features or feature maps of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import NamedSharding

from natjax import models
from natjax.image_processing import NatImageProcessor
from natjax.pipelines.base import ImagePipeline


class ImageFeatureExtraction(ImagePipeline):
    """Features of images, float32: pooled ones [C], or a feature map [H_i, W_i, C_i] of every stage asked for, by name."""

    def __init__(
        self,
        model: models.NatModel | models.NatBackbone,
        processor: NatImageProcessor,
        *,
        batch_size: int = 8,
        stages: Sequence[str] | None = None,
        report: Callable[[str], None] | None = None,
        sharding: NamedSharding | None = None,
    ):
        """Makes a pipeline of a model in memory.

        Args:
            model: a `NatModel` for pooled features, or a `NatBackbone` for feature maps.
            processor: prepares images for it: of `model.config.num_channels` channels.
            batch_size: images per step, 8 by default.
            stages: of a `NatBackbone`: the names of its feature maps, its `config.out_features`; None, the default, for a
                `NatModel`.
            report: receives warnings; by default they are Python's.
            sharding: see `pipeline`.

        Raises:
            CheckpointError: the processor makes another number of channels.
            ValueError: `batch_size` is no integer, or less than 1.
        """
        super().__init__(model, processor, batch_size=batch_size, report=report, sharding=sharding)
        self.stages = stages

    def _select(self, outputs: Any) -> Any:
        return outputs["pooler_output"] if self.stages is None else tuple(outputs.feature_maps)

    def _finish(self, output: Any) -> Any:
        return output if self.stages is None else dict(zip(self.stages, output, strict=True))
