"""Average precision of boxes and masks by faster-coco-eval, and what goes into it: COCO's results, of all processes.

AP is the mean over classes, IoU thresholds .50, .55, ... .95 and 101 recalls (cocodataset.org/#detection-eval). Crowds, and
objects beyond a range of areas, neither count nor are detections of them wrong.

Letters: B batch, K detections, S side of a mask, L classes, T thresholds, A ranges of areas, M numbers of detections.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from natjax.detection import coco
from natjax.detection.inference import each_image

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from natjax_train.examples import Example

_AREAS = ("", "_small", "_medium", "_large")  # all, below 32 x 32 pixels, up to 96 x 96, above
_DETECTIONS = (1, 10, 100)  # of an image and class, those with the highest scores


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """What was found of boxes, or of masks. NaN where there are no objects.

    Attributes:
        precision: mean over recalls, with 100 detections.
        recall: with 1, 10 and 100 detections.
    """

    precision: Float[np.ndarray, "T A L"]
    recall: Float[np.ndarray, "T A M L"]

    @property
    def per_class(self) -> Float[np.ndarray, "L"]:
        """AP of every class."""
        return self.precision[:, 0].mean(0)

    @property
    def per_class50(self) -> Float[np.ndarray, "L"]:
        """AP of every class at an IoU of .5."""
        return self.precision[0, 0]

    def summary(self) -> dict[str, float]:
        """Returns COCO's numbers by name: AP at all thresholds, at .5 and at .75, by area, and AR by number of detections."""
        found = {"ap": self.precision[:, 0], "ap50": self.precision[0, 0], "ap75": self.precision[5, 0]}
        found |= {f"ap{area}": self.precision[:, i] for i, area in enumerate(_AREAS) if area}
        found |= {f"ar{count}": self.recall[:, 0, i] for i, count in enumerate(_DETECTIONS)}
        return {name: _mean(values) for name, values in found.items()}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Attributes:
        boxes: AP of boxes.
        masks: AP of masks.
        objects: that count, per class; int64.
        images: how many.
        images_per_second: without the first batch, which is compiled for, where there are more.
        examples: of a few images, for pictures.
        results: what was measured, in COCO's form, where it is kept.
    """

    boxes: AveragePrecision
    masks: AveragePrecision
    objects: Int[np.ndarray, "L"]
    images: int
    images_per_second: float
    examples: Sequence[Example] = ()
    results: Sequence[Mapping[str, Any]] = ()

    @property
    def score(self) -> float:
        """AP of boxes; 0 where there are no objects."""
        return float(np.nan_to_num(self.summary()["box_ap"]))

    def summary(self) -> dict[str, float]:
        """Returns the scores by name: box_ap, box_ap50, ... mask_ar100."""
        boxes, masks = self.boxes.summary(), self.masks.summary()
        return {f"box_{name}": x for name, x in boxes.items()} | {f"mask_{name}": x for name, x in masks.items()}

    def row(self) -> dict[str, float]:
        """Returns the numbers for metrics.jsonl."""
        return self.summary()

    def text(self) -> str:
        """Returns the numbers for people."""
        scores = self.summary()
        if np.isnan(scores["box_ap"]):
            return f"no AP: no objects in {self.images} images  {self.images_per_second:.1f} images/s"
        parts = [
            f"{kind} AP {scores[f'{kind}_ap']:.2%} (50: {scores[f'{kind}_ap50']:.2%}, 75: {scores[f'{kind}_ap75']:.2%})"
            for kind in ("box", "mask")
        ]
        return "  ".join([*parts, f"of {self.images} images  {self.images_per_second:.1f} images/s"])

    def headline(self) -> str:
        """Returns the score for people."""
        found = self.summary()["box_ap"]
        return "no AP, as there are no objects" if np.isnan(found) else f"box AP {found:.2%}"

    def per_class(self) -> list[tuple[int, float, float, float, float]]:
        """Returns, per class: objects, AP of boxes, at an IoU of .5, and both of masks."""
        columns = (
            self.objects,
            *(x for found in (self.boxes, self.masks) for x in (found.per_class, found.per_class50)),
        )
        return list(zip(*(column.tolist() for column in columns), strict=True))


def results_of(
    found: Mapping[str, Any],
    sizes: Sequence[tuple[int, int]],
    indices: Sequence[int],
    mask_threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """Returns what a process makes of its share of a batch: COCO's results, with the indices of images and classes in place of
    COCO's numbers. `gathered` has those of all processes, `numbered` COCO's numbers.

    Args:
        found: what the model found in all images of the batch, see `natjax.detection.inference.each_image`.
        sizes: (height, width) of the original images.
        indices: of the images in their source.
        mask_threshold: probability from which on a pixel is part of an object.
    """
    own = slice(jax.process_index(), None, jax.process_count())
    detections = each_image(
        {name: None if x is None else x[own] for name, x in found.items()}, sizes[own], mask_threshold
    )
    results = []
    for index, objects in zip(indices[own], detections, strict=True):
        labels = range(int(objects.labels.max(initial=-1)) + 1)
        results += coco.results(objects, labels, int(index))
    return results


def gathered(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the results of all processes in the order of their images; all processes call it alike, with their own ones."""
    if jax.process_count() > 1:
        text = np.frombuffer(json.dumps(list(results)).encode(), np.uint8)
        lengths = multihost_utils.process_allgather(np.array([text.size], np.int32))[:, 0]
        rows = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - text.size)))
        results = [each for row, length in zip(rows, lengths, strict=True) for each in json.loads(bytes(row[:length]))]
    return sorted(results, key=lambda result: result["image_id"])


def numbered(
    results: Iterable[dict[str, Any]], image_ids: Sequence[int], category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Returns results with COCO's numbers in place of indices.

    Args:
        results: of `gathered`.
        image_ids: COCO's numbers of the source's images.
        category_ids: COCO's numbers of the model's classes; None for one that the data do not have, whose results are left out.
    """
    return [
        result | {"image_id": int(image_ids[result["image_id"]]), "category_id": category_id}
        for result in results
        if (category_id := category_ids[result["category_id"]]) is not None
    ]


def evaluate(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int] | None = None,
    *,
    images_per_second: float = float("nan"),
    examples: Sequence[Example] = (),
) -> Metrics:
    """Returns the metrics of results.

    Args:
        ground_truth: in COCO's form: `images` with id, height and width; `categories` with id; `annotations` with id, image_id,
            category_id, bbox, area, iscrowd and segmentation. Classes are in the order of its categories.
        results: in COCO's form: image_id, category_id, bbox, score, and segmentation as run lengths.
        image_ids: of the images that were looked at; by default all.
        images_per_second: for the metrics.
        examples: for the metrics.

    Raises:
        ValueError: a result is of none of these images, or its mask is not of the image's size.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in ground_truth["images"]}
    images = list(sizes) if image_ids is None else list(image_ids)
    looked_at = set(images)
    for result in results:
        if result["image_id"] not in looked_at:
            raise ValueError(f"A result is of image {result['image_id']}, which is none of the {len(images)} images.")
        if list(result["segmentation"]["size"]) != sizes[result["image_id"]]:
            raise ValueError(
                f"A mask of image {result['image_id']} has the size {result['segmentation']['size']}, the image "
                f"{sizes[result['image_id']]} (height, width)."
            )
    truth = dict(ground_truth) | {
        "annotations": [each for each in ground_truth["annotations"] if each["image_id"] in looked_at]
    }
    counts = collections.Counter(each["category_id"] for each in truth["annotations"] if not each.get("iscrowd"))
    return Metrics(
        boxes=_measured(truth, results, images, "bbox"),
        masks=_measured(truth, results, images, "segm"),
        objects=np.array([counts[category["id"]] for category in truth["categories"]], np.int64),
        images=len(images),
        images_per_second=images_per_second,
        examples=examples,
    )


def _measured(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: list[int], kind: Literal["bbox", "segm"]
) -> AveragePrecision:
    from faster_coco_eval import COCOeval_faster

    key = {"bbox": "bbox", "segm": "segmentation"}[kind]
    found = [{name: result[name] for name in ("image_id", "category_id", "score", key)} for result in results]
    for result, area in zip(found, _areas(found, key), strict=True):
        result["area"] = area
    evaluation = COCOeval_faster(_indexed(truth, truth["annotations"]), _indexed(truth, found), kind)
    evaluation.params.imgIds = image_ids
    evaluation.params.catIds = [category["id"] for category in truth["categories"]]
    evaluation.evaluate()
    evaluation.accumulate()
    order = np.argsort(np.argsort([category["id"] for category in truth["categories"]]))  # it sorts them
    scores: dict[str, Any] = evaluation.eval
    precision, recall = (np.where(scores[name] < 0, np.nan, scores[name]) for name in ("precision", "recall"))
    return AveragePrecision(
        precision=np.moveaxis(precision[..., -1][:, :, order].mean(1), 1, -1),
        recall=np.moveaxis(recall[:, order], 1, -1),
    )


def _areas(found: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Returns the areas that say whether what was found is small, medium or large: of the boxes, or of the masks."""
    from faster_coco_eval import mask

    if key == "bbox":
        return [each["bbox"][2] * each["bbox"][3] for each in found]
    return [float(mask.area(each[key])) for each in found]


def _indexed(truth: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]]) -> Any:
    """Returns an index of annotations: of copies, as evaluation writes into them, with ids from 1, as its 0 means no match."""
    from faster_coco_eval import COCO

    index = COCO()
    copies = [{"iscrowd": 0, **each, "id": number} for number, each in enumerate(annotations, 1)]
    index.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": copies}
    index.createIndex()
    return index


def _mean(values: np.ndarray) -> float:
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")
