"""COCO's results: run lengths as pycocotools writes them, boxes, and the numbers of classes."""

import itertools
import json

import numpy as np
import pytest

from natjax.detection.coco import category_ids, results, run_lengths
from natjax.detection.inference import Detections
from natjax.labels import coco

pytestmark = pytest.mark.once
GRID = np.meshgrid(np.arange(70) - 30, np.arange(50) - 20)
# What pycocotools 2.0.11 writes.
MASKS = {
    "<": np.zeros((3, 4), bool),
    "0<": np.ones((3, 4), bool),
    "013000": np.eye(3, dtype=bool),
    "id0;T16L2M4M2N2N2O0O2N2O000O2O00000000000000000001N10001N2N101N2N2N3L3N4JPR1": np.hypot(*GRID) < 18,
}


def decoded(encoded):
    """Reads run lengths: the opposite of what is tested, number by number."""
    counts, characters = [], iter(encoded["counts"])
    for first in characters:
        number = shift = 0
        for character in itertools.chain([first], characters):
            bits = ord(character) - 48
            number |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                break
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    height, width = encoded["size"]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


@pytest.mark.parametrize("text", MASKS)
def test_run_lengths_are_pycocotools(text):
    encoded = run_lengths(MASKS[text])
    assert encoded == {"size": list(MASKS[text].shape), "counts": text}
    np.testing.assert_array_equal(decoded(encoded), MASKS[text])


def masks():
    """Yields masks whose counts have one character, and several."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(rng.integers(1, 20, 2)) < rng.choice([0.03, 0.5, 0.97])
        yield np.kron(mask, np.ones(rng.integers(1, 90, 2), bool))


def test_run_lengths_of_any_mask():
    for mask in masks():
        np.testing.assert_array_equal(decoded(run_lengths(mask)), mask)


def test_run_lengths_of_a_part():
    rng = np.random.default_rng(0)
    for mask in masks():
        (top, bottom), (left, right) = (sorted(rng.integers(0, side + 1, 2).tolist()) for side in mask.shape)
        alone = np.zeros_like(mask)
        alone[top:bottom, left:right] = mask[top:bottom, left:right]
        assert run_lengths(mask[top:bottom, left:right], (top, left), mask.shape) == run_lengths(alone)


def test_run_lengths_beside_cocos_tools():
    coco_masks = pytest.importorskip("faster_coco_eval").mask
    for mask in masks():
        expected = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert run_lengths(mask)["counts"] == expected["counts"].decode()


def test_results():
    found = Detections(
        boxes=np.array([[2, 1, 6.5, 3], [0, 0, 8, 4]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
        labels=np.array([1, 0], np.int32),
        size=(4, 8),
        mask_probabilities=np.ones((2, 28, 28), np.float32),
    )
    first, second = json.loads(json.dumps(results(found, [3, 5], 7)))
    assert first["segmentation"]["size"] == [4, 8]
    np.testing.assert_array_equal(decoded(first.pop("segmentation")), found.mask(0))
    assert first == {"image_id": 7, "category_id": 5, "bbox": [2, 1, 4.5, 2], "score": 0.75}
    assert second["category_id"] == 3


def test_categories_of_coco_have_its_numbers():
    names = dict(enumerate(coco()))
    ids = dict(zip(names.values(), category_ids(names), strict=True))
    known = {"person": 1, "fire hydrant": 11, "stop sign": 13, "dining table": 67, "toilet": 70, "toothbrush": 90}
    assert {name: ids[name] for name in known} == known
    assert category_ids({0: "person", 1: "bicycle"}) == [0, 1]
    assert category_ids({i: f"LABEL_{i}" for i in range(80)}) == list(range(80))
