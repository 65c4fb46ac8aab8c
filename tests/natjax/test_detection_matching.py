"""Matches, samples and losses against mmdetection's (tests/goldens/mm_ops), and against their definitions in NumPy."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.detection import losses
from natjax.detection.boxes import iou
from natjax.detection.matching import match, sample

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz")
BOXES, GT = GOLDEN["assign/boxes"], GOLDEN["assign/gt"]
RPN = {"positive": 0.7, "negative": 0.3, "minimum": 0.3, "low_quality": True}
SETTINGS = {
    "rpn": RPN,
    "rcnn": {"positive": 0.5, "negative": 0.5, "minimum": 0.5, "low_quality": True},
    "cascade2": {"positive": 0.7, "negative": 0.7, "minimum": 0.7, "low_quality": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_matches_are_mmdetections(name):
    settings = functools.partial(match, **SETTINGS[name])
    every, some = np.ones(len(BOXES), bool), np.arange(len(BOXES)) % 3 > 0
    np.testing.assert_array_equal(
        settings(BOXES, GT, valid=every, gt_valid=np.ones(len(GT), bool)), GOLDEN[f"assign/{name}"]
    )
    # Padded rows are copies of ground truth, and padded boxes of the rest: neither changes anything.
    padded_boxes, padded_gt = np.repeat(BOXES[some], 2, axis=0), np.repeat(GT, 2, axis=0)
    valid, gt_valid = np.arange(len(padded_boxes)) % 2 == 0, np.arange(len(padded_gt)) % 2 == 1
    got = np.asarray(jax.jit(settings)(padded_boxes, padded_gt, valid=valid, gt_valid=gt_valid))
    alone = np.asarray(settings(BOXES[some], GT, valid=every[some], gt_valid=np.ones(len(GT), bool)))
    np.testing.assert_array_equal(got[valid], np.where(alone > 0, 2 * alone, alone))
    np.testing.assert_array_equal(got[~valid], -1)


def test_matches_of_several_images():
    """Boxes on a grid, so that many overlap equally; the last image has no ground truth."""
    rng = np.random.default_rng(0)
    corner, side = rng.integers(0, 12, (3, 200, 2)), rng.integers(1, 5, (3, 200, 2))
    boxes = 8 * np.concatenate([corner, corner + side], axis=-1).astype(np.float32)
    gt, gt_valid = boxes[:, ::20] + np.float32(2), rng.uniform(size=(3, 10)) < 0.8
    gt_valid[2] = False
    valid = rng.uniform(size=(3, 200)) < 0.8
    one = functools.partial(match, **RPN)
    got = jax.jit(jax.vmap(lambda b, g, v, w: one(b, g, valid=v, gt_valid=w)))(boxes, gt, valid, gt_valid)
    for i in range(3):
        np.testing.assert_array_equal(got[i], matched_of_numpy(boxes[i], gt[i], valid[i], gt_valid[i], **RPN))
    assert set(np.unique(got[2])) == {-1, 0}
    assert len(np.unique(got[0])) > 5


def matched_of_numpy(boxes, gt, valid, gt_valid, *, positive, negative, minimum, low_quality):
    matched = np.where(valid, 0, -1)
    rows, columns = np.flatnonzero(valid), np.flatnonzero(gt_valid)
    if not len(columns):
        return matched
    overlaps = np.asarray(iou(boxes[rows], gt[columns]))
    for row, each in zip(rows, overlaps, strict=True):
        best = each.max()
        if best >= np.float32(negative):
            matched[row] = columns[each.argmax()] + 1 if best >= np.float32(positive) else -1
    for column, each in zip(columns, overlaps.T, strict=True):
        if low_quality and each.max() >= np.float32(minimum):
            matched[rows[each == each.max()]] = column + 1
    return matched


MATCHED = np.random.default_rng(0).choice([-1, 0, 0, 0, 1, 2], 300).astype(np.int32)


def test_a_sample_with_places_for_all_is_all():
    for count in (300, 10**6):
        indices, chosen = sample(jax.random.key(0), MATCHED, count=count, positive_fraction=1.0)
        want = [*np.flatnonzero(MATCHED > 0), *np.flatnonzero(MATCHED == 0)]
        np.testing.assert_array_equal(indices[chosen], want)
        np.testing.assert_array_equal(chosen, np.arange(300) < len(want))


def test_a_sample_is_random_within_its_places():
    draw = jax.jit(functools.partial(sample, count=40, positive_fraction=0.25))
    drawn = [draw(jax.random.key(seed), MATCHED) for seed in (0, 0, 1)]
    for indices, chosen in drawn:
        assert np.all(chosen)
        for group, flags in ((indices[:10], MATCHED > 0), (indices[10:], MATCHED == 0)):
            assert np.all(flags[group])
            assert np.all(np.diff(group) > 0)
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert not np.array_equal(drawn[0][0], drawn[2][0])


def test_negatives_take_the_places_that_positives_leave():
    few = np.where(np.arange(300) < 3, 1, np.minimum(MATCHED, 0))
    indices, chosen = sample(jax.random.key(0), few, count=40, positive_fraction=0.5)
    np.testing.assert_array_equal(indices[:3], [0, 1, 2])
    assert np.all(few[indices[3:]] == 0)
    assert np.all(chosen)
    indices, chosen = sample(jax.random.key(0), np.where(np.arange(300) < 10, few, -1), count=40, positive_fraction=0.5)
    np.testing.assert_array_equal(indices[chosen], [0, 1, 2, *(3 + np.flatnonzero(few[3:10] == 0))])


def test_every_box_is_chosen_equally_often():
    keys = jax.random.split(jax.random.key(0), 2000)
    indices, _ = jax.vmap(lambda key: sample(key, MATCHED[:60], count=16, positive_fraction=0.25))(keys)
    for flags, places in ((MATCHED[:60] > 0, 4), (MATCHED[:60] == 0, 12)):
        often = np.bincount(np.ravel(indices), minlength=60)[flags] / 2000
        np.testing.assert_allclose(often, places / flags.sum(), atol=0.05)


PREDICTIONS, TARGETS, WEIGHTS = (GOLDEN[f"loss/{name}"] for name in ("pred", "target", "weight"))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("l1", lambda x: losses.l1_loss(x, TARGETS, WEIGHTS)),
        ("smooth", lambda x: losses.l1_loss(x, TARGETS, WEIGHTS, beta=1 / 9)),
        ("giou", lambda x: 10 * losses.giou_loss(x, TARGETS, np.mean(WEIGHTS, axis=1))),
    ],
)
def test_losses_of_boxes_are_mmdetections(name, loss):
    value, gradient = jax.value_and_grad(lambda x: loss(x) / 37)(PREDICTIONS)
    np.testing.assert_allclose(value, GOLDEN[f"loss/{name}"], rtol=1e-6)
    np.testing.assert_allclose(gradient, GOLDEN[f"loss/{name}_grad"], rtol=0, atol=1e-7)


def test_small_differences_are_squared():
    x = jnp.array([0.05, -0.05, 0.5])
    value, gradient = jax.value_and_grad(lambda x: losses.l1_loss(x, jnp.zeros(3), jnp.ones(3), beta=0.1))(x)
    np.testing.assert_allclose(value, 0.0125 + 0.0125 + 0.45, rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.5, -0.5, 1], rtol=1e-6)


def test_cross_entropies_and_their_gradients():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(0, 3, (30, 5)).astype(np.float32), rng.uniform(size=30).astype(np.float32)
    labels = rng.integers(0, 5, 30)
    exponentials = np.exp(logits.astype(np.float64))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    value, gradient = jax.value_and_grad(losses.cross_entropy)(logits, labels, weights)
    np.testing.assert_allclose(value, -(np.log(softmax[np.arange(30), labels]) * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, (softmax - np.eye(5)[labels]) * weights[:, None], atol=1e-6)
    assert np.isnan(losses.cross_entropy(logits, np.where(np.arange(30) == 3, 5, labels), weights))
    targets = (rng.uniform(size=(30, 5)) < 0.5).astype(np.float32)
    sigmoid = exponentials / (1 + exponentials)
    value, gradient = jax.value_and_grad(losses.binary_cross_entropy)(logits, targets, weights[:, None])
    each = np.where(targets > 0, -np.log(sigmoid), -np.log(1 - sigmoid))
    np.testing.assert_allclose(value, (each * weights[:, None]).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, (sigmoid - targets) * weights[:, None], atol=1e-6)
    assert losses.binary_cross_entropy(jnp.array([200.0, -200.0]), jnp.array([0.0, 1.0]), jnp.ones(2)) == 400
