"""Image classification: classes of images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from natjax import models
from natjax.checks import check_count
from natjax.image_processing import NatImageProcessor
from natjax.pipelines.base import ImagePipeline


class ImageClassification(ImagePipeline):
    """Classes of images, the likeliest first: a list of {"label": name, "score": probability} per image.

    `stream` yields the probabilities of all classes, float64 [L]. They sum to 1, but for a model of several labels at a time.
    """

    def __init__(
        self,
        model: models.NatForImageClassification,
        processor: NatImageProcessor,
        *,
        batch_size: int = 8,
        top_k: int | None = 5,
        report: Callable[[str], None] | None = None,
        sharding: NamedSharding | None = None,
    ):
        """Makes a pipeline of a model in memory.

        Args:
            model: a classifier.
            processor: prepares images for it: of `model.config.num_channels` channels.
            batch_size: images per step, 8 by default.
            top_k: classes per image, 5 by default; None means all.
            report: receives warnings; by default they are Python's.
            sharding: see `pipeline`.

        Raises:
            CheckpointError: the processor makes another number of channels.
            ValueError: `batch_size` or `top_k` is no integer, or less than 1.
        """
        super().__init__(model, processor, batch_size=batch_size, report=report, sharding=sharding)
        self.top_k = None if top_k is None else check_count("top_k", top_k, " or None")

    def __call__(self, images: Any, *, top_k: Any = ..., skip_unreadable: bool = False) -> Any:
        """Returns the classes of an image, or of several; see `pipeline`.

        Args:
            images: an image; a list, tuple or array [B, H, W, C] of images; or an iterator of them, which is read batch by batch.
            top_k: classes per image, None for all; by default what the pipeline was made with.
            skip_unreadable: whether images that cannot be read are reported and have the result None, instead of ending the call.

        Raises:
            ImageError: an image cannot be read.
            ValueError: `top_k` is less than 1.
        """
        if top_k is ...:
            top_k = self.top_k
        elif top_k is not None:
            top_k = check_count("top_k", top_k, " or None")
        return self._call(images, functools.partial(self._result, top_k=top_k), skip_unreadable)

    def best(self, probabilities: np.ndarray) -> list[int]:
        """Returns the `top_k` likeliest classes."""
        return _best(probabilities, self.top_k)

    def _select(self, outputs: Any) -> Any:
        return outputs["logits"]

    def _finish(self, output: np.ndarray) -> np.ndarray:
        if self.model.config.problem_type == "multi_label_classification":
            return 1 / (1 + np.exp(-output.astype(np.float64)))
        probabilities = np.exp(output - output.max(), dtype=np.float64)
        return probabilities / probabilities.sum()

    def _result(self, output: np.ndarray, top_k: int | None = None) -> list[dict[str, Any]]:
        names = self.model.config.id2label
        return [{"label": names[i], "score": float(output[i])} for i in _best(output, top_k)]


def _best(probabilities: np.ndarray, top_k: int | None) -> list[int]:
    return np.argsort(-probabilities, kind="stable")[:top_k].tolist()
