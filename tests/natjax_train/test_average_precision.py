"""Average precision: the figures of natjax's results beside an oracle of our own, written from COCO's description of them
(cocodataset.org/#detection-eval), on dense masks; gathering over processes."""

import copy
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from natjax.detection.coco import run_lengths
from natjax_train.tasks.average_precision import evaluate, gathered, numbered, results_of

pytestmark = pytest.mark.once
SIZES, CATEGORIES, OBJECTS = ((220, 260), (200, 150), (90, 240), (60, 50)), (7, 3, 12, 5), 9
AREAS = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
THRESHOLDS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)


def ellipse(box, size):
    """Returns the mask of an ellipse in a box x, y, width, height, of which the box is not tight."""
    (x, y, width, height), (rows, columns) = box, np.ogrid[: size[0], : size[1]]
    return np.hypot((columns - x - width / 2) / width, (rows - y - height / 2) / height) < 0.45


@pytest.fixture(scope="module")
def case():
    """Ground truth and results; ids out of order, objects of all areas, crowds, a class without objects, an empty image."""
    rng = np.random.default_rng(3)
    images, annotations, results = [], [], []
    for number, size in enumerate(SIZES):
        image_id = 100 - number
        images.append({"id": image_id, "height": size[0], "width": size[1]})
        for i in range(OBJECTS if number != 3 else 0):
            category_id = int(rng.choice(CATEGORIES[:3]))
            sides = np.minimum(rng.uniform((10, 40, 120)[i % 3], (30, 90, 200)[i % 3], 2), min(size) - 1)
            box = np.concatenate([rng.uniform(0, np.array(size[::-1]) - sides), sides])
            mask, is_crowd = ellipse(box, size), bool(rng.random() < 0.2)
            annotations.append({"id": len(annotations), "image_id": image_id, "category_id": category_id})
            annotations[-1] |= {"bbox": box.tolist(), "area": int(mask.sum()), "iscrowd": int(is_crowd), "mask": mask}
            for _ in range(rng.integers(0, 4) + 2 * is_crowd):
                moved = box + rng.normal(size=4) * sides[[0, 1, 0, 1]] * rng.choice([0.02, 0.1])
                moved[2:] = np.maximum(moved[2:], 2)
                label = category_id if rng.random() < 0.8 else int(rng.choice(CATEGORIES))
                results.append({"image_id": image_id, "category_id": label, "bbox": moved.tolist()})
                results[-1] |= {"score": float(rng.random()), "mask": ellipse(moved, size)}
    box = [5.0, 4.0, 40.0, 30.0]
    results.append({"image_id": 97, "category_id": 3, "bbox": box, "score": 0.4, "mask": ellipse(box, SIZES[3])})
    categories = [{"id": number, "name": str(number)} for number in CATEGORIES]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def written(annotations):
    """Returns annotations as they are in files: with run lengths in place of masks."""
    return [
        {name: value for name, value in each.items() if name != "mask"} | {"segmentation": run_lengths(each["mask"])}
        for each in annotations
    ]


def overlap(found, true, kind):
    """Intersection over union; over the detection's area where the truth is a crowd."""
    if kind == "mask":
        shared, areas = (found["mask"] & true["mask"]).sum(), [each["mask"].sum() for each in (found, true)]
    else:
        (x, y, width, height), (x2, y2, width2, height2) = found["bbox"], true["bbox"]
        sides = min(x + width, x2 + width2) - max(x, x2), min(y + height, y2 + height2) - max(y, y2)
        shared, areas = max(sides[0], 0) * max(sides[1], 0), [width * height, width2 * height2]
    return shared / (areas[0] if true["iscrowd"] else sum(areas) - shared)


def area(found, kind):
    return found["mask"].sum() if kind == "mask" else found["bbox"][2] * found["bbox"][3]


def judged(truth, results, image_id, category_id, kind, threshold, bounds, most):
    """Returns (score, right or wrong) of the detections that count, and the number of objects that do."""
    objects = [each for each in truth if (each["image_id"], each["category_id"]) == (image_id, category_id)]
    found = [each for each in results if (each["image_id"], each["category_id"]) == (image_id, category_id)]
    counts = [not each["iscrowd"] and bounds[0] <= each["area"] <= bounds[1] for each in objects]
    taken, verdicts = set(), []
    for detection in sorted(found, key=lambda each: -each["score"])[:most]:
        overlaps = [overlap(detection, each, kind) for each in objects]
        free = [i for i, each in enumerate(objects) if (i not in taken or each["iscrowd"]) and overlaps[i] >= threshold]
        best = max(free, key=lambda i: (counts[i], overlaps[i]), default=None)
        if best is not None:
            taken.add(best)
            if counts[best]:
                verdicts.append((detection["score"], True))
        elif bounds[0] <= area(detection, kind) <= bounds[1]:
            verdicts.append((detection["score"], False))
    return verdicts, sum(counts)


def precision_and_recall(truth, results, category_id, kind, threshold, bounds, most=100):
    """Returns the mean of the precision over 101 recalls, and the recall; NaN without objects."""
    of_images = [
        judged(truth["annotations"], results, image["id"], category_id, kind, threshold, bounds, most)
        for image in truth["images"]
    ]
    objects = sum(count for _, count in of_images)
    if not objects:
        return np.nan, np.nan
    right = np.array([is_right for _, is_right in sorted((v for found, _ in of_images for v in found), reverse=True)])
    recalls = np.cumsum(right) / objects
    precisions = np.cumsum(right) / np.arange(1, len(right) + 1)
    best = [max((p for p, r in zip(precisions, recalls, strict=True) if r >= least), default=0) for least in RECALLS]
    return np.mean(best), recalls[-1] if len(right) else 0.0


def expected(truth, results, kind):
    def mean(which, thresholds, **options):
        found = [
            [precision_and_recall(truth, results, c, kind, t, **options)[which] for t in thresholds] for c in CATEGORIES
        ]
        return np.nanmean(found)

    scores = {f"{kind}_ap{name}": mean(0, THRESHOLDS, bounds=bounds) for name, bounds in AREAS.items()}
    scores |= {f"{kind}_ap{round(100 * t)}": mean(0, [t], bounds=AREAS[""]) for t in (THRESHOLDS[0], THRESHOLDS[5])}
    return scores | {f"{kind}_ar{most}": mean(1, THRESHOLDS, bounds=AREAS[""], most=most) for most in (1, 10, 100)}


@pytest.fixture(scope="module")
def metrics(case):
    truth, results = case
    truth = truth | {"annotations": written(truth["annotations"])}
    before = copy.deepcopy((truth, results))
    of_file = written(results)
    found = evaluate(truth, of_file, images_per_second=2.0)
    assert truth == before[0]  # COCO's evaluation writes into what it gets
    assert of_file == written(results)
    return found


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_the_oracles_figures(case, metrics, kind):
    scores = expected(*case, kind)
    found = metrics.summary()
    assert {name for name in found if name.startswith(kind)} == set(scores)
    assert len({round(score, 6) for score in scores.values()}) > 6  # they are no matter of course
    for name, score in scores.items():
        assert found[name] == pytest.approx(score, abs=1e-12), name


def test_classes_are_in_the_order_of_the_categories(case, metrics):
    truth, results = case
    assert metrics.objects.tolist() == [
        sum(each["category_id"] == number and not each["iscrowd"] for each in truth["annotations"])
        for number in CATEGORIES
    ]
    rows = metrics.per_class()
    for number, (_, *found) in zip(CATEGORIES, rows, strict=True):
        for kind, scores in (("box", found[:2]), ("mask", found[2:])):
            precisions = [precision_and_recall(truth, results, number, kind, t, AREAS[""])[0] for t in THRESHOLDS]
            np.testing.assert_allclose(scores, [np.mean(precisions), precisions[0]], atol=1e-12)
    assert rows[3][0] == 0
    assert np.isnan(rows[3][1:]).all()


def test_words(metrics):
    box, mask = (f"{metrics.summary()[name]:.2%}" for name in ("box_ap", "mask_ap"))
    assert metrics.headline() == f"box AP {box}"
    assert f"box AP {box} (50: " in metrics.text()
    assert f"mask AP {mask} (50: " in metrics.text()
    assert metrics.text().endswith("of 4 images  2.0 images/s")
    assert metrics.score == metrics.row()["box_ap"]


def test_images_that_were_not_looked_at_do_not_count(case):
    truth, results = case
    truth = truth | {"annotations": written(truth["annotations"])}
    seen = [image["id"] for image in truth["images"][1:]]
    results = [each for each in written(results) if each["image_id"] in seen]
    part = {name: [each for each in values if name == "categories" or each.get("image_id", each["id"]) in seen]
            for name, values in truth.items()}  # fmt: skip
    found = evaluate(truth, results, seen)
    assert found.images == 3
    assert found.summary() == evaluate(part, results).summary() != evaluate(truth, results).summary()


def test_nothing_found_and_nothing_to_find(case):
    truth = case[0] | {"annotations": written(case[0]["annotations"])}
    nothing = evaluate(truth, [])
    assert (nothing.score, nothing.summary()["mask_ar100"]) == (0, 0)
    no_objects = evaluate(truth | {"annotations": []}, written(case[1]), images_per_second=2.0)
    assert no_objects.score == 0
    assert (no_objects.headline(), no_objects.text()) == (
        "no AP, as there are no objects",
        "no AP: no objects in 4 images  2.0 images/s",
    )
    assert all(np.isnan(x) for x in no_objects.summary().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "A result is of image 5, which is none of the 4 images"),
        ({"segmentation": {"size": [3, 4], "counts": "<"}}, r"image 97 has the size \[3, 4\], the image \[60, 50\]"),
    ],
)
def test_results_of_other_images(case, change, message):
    truth, results = case
    with pytest.raises(ValueError, match=message):
        evaluate(truth | {"annotations": written(truth["annotations"])}, [written(results)[-1] | change])


def batch(size):
    """Returns what a model may have found in a batch of images of a size: of the first three objects two count."""
    boxes = np.array([[4, 6, 30, 40], [1.5, 0, 50, 44], [0, 0, 9, 9]], np.float32)
    return {
        "boxes": np.tile(boxes, (size, 1, 1)),
        "scores": np.linspace(0.9, 0.1, 3 * size, dtype=np.float32).reshape(size, 3),
        "labels": np.tile(np.array([2, 0, -1], np.int32), (size, 1)),
        "valid": np.tile(np.array([True, True, False]), (size, 1)),
        "masks": np.random.default_rng(0).random((size, 3, 28, 28), np.float32),
    }


def test_results_of_a_batch():
    found = results_of(batch(2), [(60, 70), (48, 52)], [5, 3])
    assert [(each["image_id"], each["category_id"]) for each in found] == [(5, 2), (5, 0), (3, 2), (3, 0)]
    assert found[3]["segmentation"]["size"] == [48, 52]
    ordered = gathered(found)
    assert ordered == [*found[2:], *found[:2]]
    named = numbered(ordered, range(100, 110), (12, 7, None))
    assert [(each["image_id"], each["category_id"]) for each in named] == [(103, 12), (105, 12)]
    assert [each["bbox"] for each in named] == [[1.5, 0, 48.5, 44]] * 2
    broken = batch(2)
    broken["boxes"][0, 0] = np.nan
    assert results_of(broken, [(60, 70), (48, 52)], [5, 3]) == found[1:]
    assert "segmentation" not in results_of(batch(1) | {"masks": None}, [(60, 70)], [0])[0]


def test_two_processes_have_the_results_of_one():
    """Of nine images in batches of four, four and one, by processes that take every other one."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command, environment = [sys.executable, __file__, address], {**os.environ, "JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for i in range(2)
    ]
    outputs = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    expected = json.dumps(gathered(results_of_all()))
    assert [out.splitlines()[-1] for out, _ in outputs] == [expected, expected]


def results_of_all():
    indices = [7, 2, 0, 5], [1, 8, 3, 6], [4]
    return [each for part in indices for each in results_of(batch(len(part)), [(60, 70)] * len(part), part)]


if __name__ == "__main__":
    import jax

    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    print(json.dumps(gathered(results_of_all())))
