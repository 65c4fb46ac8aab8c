"""Intersection over union of class maps: mmsegmentation's `intersect_and_union`, counted exactly, and its scores.

Letters: N images, L classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from natjax_train.data.masks import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Integer, UInt8


def count(
    predicted: Integer[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"], num_classes: int
) -> Int[np.ndarray, "3 L"]:
    """Returns per class the pixels where prediction and truth agree, those predicted and those true; int64.

    Pixels that are ignored, truth 255, do not count.
    """
    valid = truth != IGNORED
    predicted, truth = predicted[valid].astype(np.int64), truth[valid]
    arrays = (truth[predicted == truth], predicted, truth)
    return np.stack([np.bincount(array, minlength=num_classes)[:num_classes] for array in arrays])


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Attributes:
        counts: pixels per class: agreed, predicted, true; int64 [3, L].
        loss: mean cross entropy of the pixels that count; NaN where it was not measured.
        images: how many.
        images_per_second: without the first batch, which is compiled for, where there are more.
        examples: of a few images, for pictures: image, truth and predicted.
    """

    counts: Int[np.ndarray, "3 L"]
    loss: float
    images: int
    images_per_second: float
    examples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def iou(self) -> Float[np.ndarray, "L"]:
        """Intersection over union of every class; NaN where it is neither in the masks nor predicted."""
        agreed, predicted, true = self.counts
        return _ratio(agreed, predicted + true - agreed)

    @property
    def accuracy(self) -> Float[np.ndarray, "L"]:
        """Part of every class's pixels that was found; NaN where there are none."""
        return _ratio(self.counts[0], self.counts[2])

    @property
    def precision(self) -> Float[np.ndarray, "L"]:
        """Part of the pixels taken for a class that are of it; NaN where none was."""
        return _ratio(self.counts[0], self.counts[1])

    @property
    def miou(self) -> float:
        """Mean of the classes' intersection over union, of those that have one."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean of the classes' accuracies, of those that have one."""
        return _mean(self.accuracy)

    @property
    def pixel_accuracy(self) -> float:
        """Part of the pixels that are right."""
        return float(_ratio(self.counts[0].sum(), self.counts[2].sum()))

    @property
    def score(self) -> float:
        """Mean IoU; 0 where there are no pixels to count."""
        return float(np.nan_to_num(self.miou))

    def summary(self) -> dict[str, float]:
        """Returns the scores by name."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, "mean_accuracy": self.mean_accuracy}

    def row(self) -> dict[str, float]:
        """Returns the numbers for metrics.jsonl."""
        return {"val_loss": self.loss} | self.summary()

    def text(self) -> str:
        """Returns the numbers for people."""
        return (
            f"mIoU {self.miou:.2%}  pixel accuracy {self.pixel_accuracy:.2%}  mean accuracy {self.mean_accuracy:.2%}  "
            f"loss {self.loss:.4f}  of {self.images} images  {self.images_per_second:.1f} images/s"
        )

    def headline(self) -> str:
        """Returns the score for people."""
        return f"mIoU {self.miou:.2%}"

    def per_class(self) -> list[tuple[int, float, float, float]]:
        """Returns, per class: pixels, IoU, accuracy, precision."""
        columns = (self.counts[2], self.iou, self.accuracy, self.precision)
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole, dtype=np.float64)


def _mean(values: np.ndarray) -> float:
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")
