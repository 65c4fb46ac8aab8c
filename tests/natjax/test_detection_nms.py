"""Non-maximum suppression against mmcv's (tests/goldens/mm_ops), and against a loop in NumPy."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from natjax.detection.nms import classwise_nms, nms

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz")
BOXES, SCORES = GOLDEN["nms/boxes"], GOLDEN["nms/scores"]


@pytest.mark.parametrize(
    ("threshold", "groups", "keep"),
    [
        (0.5, None, "keep_0.5"),
        (0.7, None, "keep_0.7"),
        (0.5, "ids", "batched_keep_0.5"),
        (0.7, "ids", "batched_keep_0.7"),
        (0.5, "few_ids", "few_keep"),
    ],
)
def test_kept_boxes_are_mmcvs(threshold, groups, keep):
    want = GOLDEN[f"nms/{keep}"]
    groups = None if groups is None else GOLDEN[f"nms/{groups}"]
    indices, kept = nms(BOXES, SCORES, iou_threshold=threshold, max_kept=len(BOXES), groups=groups)
    np.testing.assert_array_equal(indices[kept], want)
    assert np.sum(kept) == len(want)
    fewer, kept = nms(BOXES, SCORES, iou_threshold=threshold, max_kept=40, groups=groups)
    np.testing.assert_array_equal(fewer, want[:40])
    assert np.all(kept)


def test_detections_of_every_class_are_mmdetections():
    scores = GOLDEN["multiclass/scores"][:, :-1]  # without the background's
    boxes = GOLDEN["multiclass/boxes"].reshape(*scores.shape, 4)
    proposals, labels, kept = classwise_nms(boxes, scores, score_threshold=0.05, iou_threshold=0.5, max_kept=50)
    assert np.all(kept)
    np.testing.assert_array_equal(labels, GOLDEN["multiclass/labels"])
    detections = np.concatenate([boxes[proposals, labels], scores[proposals, labels][:, None]], axis=1)
    np.testing.assert_array_equal(detections, GOLDEN["multiclass/dets"])
    valid = np.arange(60) < 20
    proposals, labels, kept = classwise_nms(
        boxes, scores, score_threshold=0.05, iou_threshold=0.5, max_kept=300, valid=valid
    )
    alone = classwise_nms(boxes[:20], scores[:20], score_threshold=0.05, iou_threshold=0.5, max_kept=300)
    for ours, want in zip((proposals, labels, kept), alone, strict=True):
        np.testing.assert_array_equal(ours, want)
    assert 20 < np.sum(kept) < 100


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(
        functools.partial(nms, max_kept=1500, iou_threshold=0.6)  # more than ever are kept of 3000
    )


def scene(seed, *, objects, groups=1, integers=False):
    """3000 boxes around objects, with equal scores, equal boxes and boxes without an area, of which some are invalid."""
    rng = np.random.default_rng(seed)
    centre, side = rng.uniform(0, 1000, (objects, 2)), np.exp(rng.uniform(2, 6, (objects, 2)))
    of = rng.integers(0, objects, 3000)
    centre, side = (
        centre[of] + 0.1 * side[of] * rng.standard_normal((3000, 2)),
        side[of] * rng.uniform(0.8, 1.2, (3000, 2)),
    )
    side[::17] = 0
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1).astype(np.float32)
    boxes = np.round(boxes / 20) * 20 if integers else boxes
    scores = rng.uniform(size=3000).astype(np.float32).round(2)
    return boxes, scores, rng.integers(0, groups, 3000, np.int32), rng.uniform(size=3000) < 0.9


@pytest.mark.parametrize(
    "case", [{"objects": 5}, {"objects": 60, "groups": 7}, {"objects": 30, "integers": True}], ids=str
)
def test_thousands_of_boxes(compiled, case):
    boxes, scores, groups, valid = scene(0, **case)
    want = greedy(boxes, scores, groups, valid, 0.6)
    assert 20 < len(want) < 1500
    indices, kept = compiled(boxes, scores, groups=groups, valid=valid)
    np.testing.assert_array_equal(indices[: len(want)], want)
    np.testing.assert_array_equal(kept, np.arange(1500) < len(want))


def test_several_images_at_once(compiled):
    scenes = [scene(1, objects=5), scene(2, objects=150, groups=3), scene(3, objects=1)]
    boxes, scores, groups, valid = (np.stack(x) for x in zip(*scenes, strict=True))
    valid[2] = False
    indices, kept = jax.vmap(lambda *x: compiled(*x[:2], groups=x[2], valid=x[3]))(boxes, scores, groups, valid)
    for i in range(2):
        np.testing.assert_array_equal(indices[i][kept[i]], greedy(boxes[i], scores[i], groups[i], valid[i], 0.6))
    assert not np.any(kept[2])


def test_a_chain_of_boxes_of_which_each_overlaps_the_next(compiled):
    """Every second one stays: the longest dependence that there is."""
    boxes = np.tile(np.array([0, 0, 100, 10], np.float32), (3000, 1))
    boxes[:, ::2] += 20 * np.arange(3000, dtype=np.float32)[:, None]
    scores = np.linspace(1, 0, 3000, dtype=np.float32)
    indices, kept = compiled(boxes, scores, groups=np.zeros(3000, np.int32), valid=np.ones(3000, bool))
    np.testing.assert_array_equal(indices, np.arange(0, 3000, 2))
    assert np.all(kept)


def greedy(boxes, scores, groups, valid, threshold):
    """Returns the kept indices: box by box, in float32."""
    valid = np.flatnonzero(valid)
    boxes = boxes + (groups * (boxes[valid].max() + np.float32(1))).astype(np.float32)[:, None]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = valid[np.argsort(-scores[valid], kind="stable")]
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        sides = np.minimum(boxes[order, 2:], boxes[first, 2:]) - np.maximum(boxes[order, :2], boxes[first, :2])
        intersection = np.clip(sides, 0, None).prod(axis=1)
        union = areas[order] + areas[first] - intersection
        overlaps = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
        order = order[~(overlaps > np.float32(threshold))]
    return kept
