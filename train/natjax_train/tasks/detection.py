"""Object detection and instance segmentation with Mask R-CNN or Cascade Mask R-CNN.

The losses are mmdetection's; measured is COCO's average precision of boxes, which is the score, and of masks.

Letters: B batch, H W image, C channels, G places for the objects of an image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from natjax import run_files
from natjax.configuration import MaskRcnnConfig
from natjax.detection.inference import found_in
from natjax.detection.padding import DIVISOR
from natjax.image_processing import NatImageProcessor
from natjax.models import MaskRcnnForObjectDetection
from natjax.models.detection import DETECTORS
from natjax_train import start
from natjax_train.augment.device import normalize_within
from natjax_train.data import Batches, Source, check_splits
from natjax_train.data.box_batches import box_eval_loader, box_train_loader
from natjax_train.data.coco import has_split, open_coco
from natjax_train.data.coco_images import CocoImages, decode_annotated
from natjax_train.data.split import split_images
from natjax_train.evaluate import EXAMPLES
from natjax_train.examples import Example, Objects, draw_objects
from natjax_train.model_card import Card
from natjax_train.recipe import Recipe
from natjax_train.tasks.average_precision import Metrics, evaluate, gathered, numbered, results_of
from natjax_train.tasks.dense import DenseTask

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_SHOWN_SCORE, _SHOWN = 0.3, 20  # of examples.png: the least score, and the most objects, that are drawn


class Detection(DenseTask):
    """The task of one run.

    Args:
        recipe: the run's; None where a model is only evaluated.
        class_names: in the order of the model's classes.
        category_ids: COCO's numbers of the classes in the data, None for a class that these do not have; by default the data's
            own in their order.
        size_divisor: of evaluation, see `data.box_batches.box_eval_loader`.
        mask_threshold: of a model that is only evaluated: probability from which on a pixel is part of an object.
        keep_results: whether metrics have what was measured, which can be hundreds of megabytes.
    """

    curves: tuple[str, Mapping[str, str]] = ("Validation images", {"box_ap": "AP of boxes", "mask_ap": "AP of masks"})
    kind = "detection"
    fixed_height = False
    image_size = 800
    crop = False

    def __init__(
        self,
        recipe: Recipe | None,
        class_names: Sequence[str | int],
        category_ids: Sequence[int | None] | None = None,
        size_divisor: int | None = None,
        mask_threshold: float = 0.5,
        keep_results: bool = False,
    ):
        super().__init__(recipe, class_names)
        self._category_ids, self._divisor = category_ids, size_divisor
        self._mask_threshold, self._keep_results = mask_threshold, keep_results

    @classmethod
    def open_splits(cls, recipe: Recipe, data: str, report: Callable[[str], None]) -> tuple[Source, Source]:
        """Opens images and annotations of both splits, and looks for all images, see `data.coco`."""
        if recipe.val_fraction is None:
            training = open_coco(data, "train")
            parts = [training, open_coco(data, "val", training.class_names)]
        else:
            if has_split(data, "val"):
                raise ValueError(f"{data} has annotations for val: leave val_fraction out, which splits data without.")
            parts = list(split_images(open_coco(data, "train"), recipe.val_fraction, recipe.seed).values())
        for part in parts:
            part.inspect(report)
        return parts[0].learnable(keep_empty=recipe.keep_empty, max_objects=recipe.max_objects), parts[1]

    @classmethod
    def check(cls, training: Source, validation: Source) -> None:
        """Checks that validation images are others than the training images; one class is enough for a detector."""
        check_splits(training, validation)

    def model_class(self, config: Any) -> type[MaskRcnnForObjectDetection]:
        """Returns the class of the recipe's detector, by default that of the model that the run starts from."""
        own = config.model_type if isinstance(config, MaskRcnnConfig) else "mask_rcnn"
        return DETECTORS[self.recipe.detector or own]

    def check_model(self, config: MaskRcnnConfig) -> None:
        """Checks the run's model as every task does, and notes which pixels it takes for part of an object."""
        super().check_model(config)
        self._mask_threshold = config.mask_threshold

    def card(self) -> Card:
        """Returns what a model card says of the task."""
        return Card("object-detection", "detector", None, "coco")

    def train_loader(self, source: Any, *, height_divisor: int, **options: Any) -> Batches:
        """Returns an endless run's batches, see `data.box_batches.boxed_image`."""
        return box_train_loader(source, height_divisor=height_divisor, **options)

    def eval_loader(self, source: Any, **options: Any) -> Batches:
        """Returns the batches of one pass over a source, by size of the images."""
        return box_eval_loader(source, divisor=self._divisor, **options)

    def processor(self, recipe: Recipe, image_size: int) -> NatImageProcessor:
        """Returns how evaluation prepares images: within a box, as mmdetection's test."""
        within = NatImageProcessor.object_detection(recipe.longest_edge, image_size)
        return dataclasses.replace(within, image_mean=recipe.image_mean, image_std=recipe.image_std)

    def prepare(
        self, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[Float[Array, "B H W C"], dict[str, jax.Array]]:
        """Returns the pixel values that a training step sees, and objects and sizes of its images."""
        _, mean, std = start.resolved(self.recipe)
        pixel_values = normalize_within(batch["image"], batch["size"], mean, std)
        masks = jnp.unpackbits(batch["masks"], axis=-1).astype(bool)
        objects = {name: batch[name] for name in ("boxes", "class_labels", "valid")}
        return pixel_values, {**objects, "masks": masks, "size": batch["size"]}

    def training_loss(
        self, model: Any, pixel_values: Float[Array, "B H W C"], targets: dict[str, jax.Array], rngs: Array
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the sum of mmdetection's losses, and each of them by its name."""
        size = targets["size"]
        labels = {name: value for name, value in targets.items() if name != "size"}
        losses = model.losses(pixel_values, labels, size, -(-size // DIVISOR) * DIVISOR, rngs=rngs)
        return losses.pop("loss"), losses

    def inputs(
        self, batch: dict[str, jax.Array], mean: Sequence[float], std: Sequence[float]
    ) -> dict[str, Float[Array, "B ..."]]:
        """Returns the model's arguments: pixel values, sizes and scales of the images."""
        pixel_values = _normalized(batch["image"], batch["size"], tuple(mean), tuple(std))
        return {"pixel_values": pixel_values, "image_sizes": batch["size"], "scale_factors": batch["scale"]}

    def predict(self, model: Any, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns detections in pixels of the original images."""
        return found_in(model(**inputs))

    def judge(self, predictions: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the detections of a batch, and which images they are of."""
        of_images = {name: batch[name] for name in ("mask", "index", "size", "scale")}
        return jax.tree.map(lambda x: reshard(x, P()), {**predictions, **of_images})

    def kept(self, judged: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the detections of this process's share of a batch as COCO's results, see `average_precision.results_of`."""
        original = np.rint(judged["size"] / judged["scale"][:, 1::-1]).astype(int)
        sizes = [(height, width) for height, width in original.tolist()]
        results = results_of(judged, sizes, judged["index"].tolist(), self._mask_threshold)
        return {"results": np.array(results, object), "index": judged["index"]}

    def result(self, judged: dict[str, np.ndarray], images_per_second: float, source: CocoImages) -> Metrics:
        """Returns the metrics of all images that could be read."""
        results = gathered(judged["results"].tolist())
        shown = []
        if self._recipe:
            channels = len(start.resolved(self._recipe)[1])
            shown = [_example(source, index, results, channels) for index in judged["index"][:EXAMPLES].tolist()]
        ids = source.category_ids if self._category_ids is None else self._category_ids
        results = numbered(results, source.ids.tolist(), ids)
        looked_at = source.ids[np.sort(judged["index"])].tolist()
        options: dict[str, Any] = {"images_per_second": images_per_second, "examples": shown}
        metrics = evaluate(source.ground_truth(), results, looked_at, **options)
        return dataclasses.replace(metrics, results=results) if self._keep_results else metrics

    def plot(self, result: Metrics, directory: Path) -> None:
        """Draws a few images, with their objects and with those that the model finds."""
        draw_objects(result.examples, self._class_names, directory / run_files.EXAMPLES)


_normalized = functools.partial(jax.jit, static_argnames=("mean", "std"))(normalize_within)


def _example(source: CocoImages, index: int, results: Sequence[Mapping[str, Any]], num_channels: int) -> Example:
    """Returns an image with its objects and what was found in it, of results that have indices, see `results_of`."""
    item = source[index]
    found = [each for each in results if each["image_id"] == index and each["score"] >= _SHOWN_SCORE]
    found = sorted(found, key=lambda each: -each["score"])[:_SHOWN]
    corners = np.array([each["bbox"] for each in found], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    of_image = functools.partial(Objects.from_run_lengths, item["size"])
    truth = of_image(item["boxes"], [np.nan] * len(item["boxes"]), item["class_labels"], item["masks"])
    labels, scores, masks = ([each[name] for each in found] for name in ("category_id", "score", "segmentation"))
    image = decode_annotated(item["image"], item["size"], num_channels)
    return Example(image, truth, of_image(corners, scores, labels, masks)).reduced()
