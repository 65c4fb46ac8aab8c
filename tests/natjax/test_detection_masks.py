"""Targets of mask heads and masks at full size against mmdetection's (tests/goldens/mm_ops) and the definition in NumPy."""

import pathlib

import jax
import numpy as np
import pytest

from natjax.detection.masks import mask_targets, paste_masks

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz")


def test_targets_are_mmdetections():
    """Of two images, whose masks are not the same."""
    masks, boxes, indices, want = (GOLDEN[f"mask_target/{name}"] for name in ("masks", "boxes", "inds", "targets"))
    masks = np.stack([masks, masks[::-1]]).astype(bool)
    indices = np.stack([indices, len(masks[0]) - 1 - indices])
    targets = jax.jit(mask_targets)(masks, np.stack([boxes] * 2), indices)
    assert targets.dtype == bool
    for image in targets:
        np.testing.assert_array_equal(image, want)


def test_a_bin_that_is_half_covered_is_the_objects():
    masks = np.zeros((1, 1, 8, 8), bool)
    masks[..., :3, :] = True
    boxes = np.float32([[[0, 0, 8, 6], [0, 1, 8, 8], [0, 0, 8, 0]]])
    targets = mask_targets(masks, boxes, np.zeros((1, 3), np.int32), size=2)
    np.testing.assert_array_equal(targets[0, :, :, 0], [[True, False], [True, False], [False, False]])


def test_pasted_masks_are_mmdetections():
    labels, shape = GOLDEN["paste/labels"], tuple(GOLDEN["paste/shape"].tolist())
    probabilities = 1 / (1 + np.exp(-GOLDEN["paste/logits"][np.arange(len(labels)), labels]))
    want = np.unpackbits(GOLDEN["paste/packed"])[: np.prod(shape)].reshape(shape)
    np.testing.assert_array_equal(paste_masks(probabilities, GOLDEN["paste/boxes"], shape[1:]), want)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_pasted_masks_are_the_definitions(threshold):
    """A pixel has the probability at its centre, linear between the mask's pixels, and zero outside of them."""
    rng = np.random.default_rng(0)
    size = (50, 70)
    boxes = np.float32(
        [[-30, -20, 200, 90], [10.2, 20.1, 11.9, 45], [0, 0, 70, 50], [90, 10, 120, 30], [3, 3, 60, 4.5]]
    )
    probabilities = rng.random((len(boxes), 9, 9)).astype(np.float32)
    masks = paste_masks(probabilities, boxes, size, threshold)
    assert (masks.dtype, masks.shape) == (bool, (len(boxes), *size))
    for mask, probability, (x1, y1, x2, y2) in zip(masks, probabilities, boxes.astype(float), strict=True):
        padded = np.pad(probability, 1)
        for y, x in np.ndindex(size):
            near = y1 - 1 <= y + 0.5 <= y2 + 1 and x1 - 1 <= x + 0.5 <= x2 + 1
            row = np.clip((y + 0.5 - y1) / (y2 - y1) * 9 + 0.5, 0, 9.999)
            column = np.clip((x + 0.5 - x1) / (x2 - x1) * 9 + 0.5, 0, 9.999)
            (i, a), (j, b) = divmod(row, 1), divmod(column, 1)
            corners = padded[int(i) : int(i) + 2, int(j) : int(j) + 2]
            value = [1 - a, a] @ corners @ [1 - b, b]
            if near and abs(value - threshold) > 1e-5:
                assert mask[y, x] == (value >= threshold)
            if not (y1 - 2 <= y + 0.5 <= y2 + 2 and x1 - 2 <= x + 0.5 <= x2 + 2):
                assert not mask[y, x]


def test_a_box_of_no_size_and_no_boxes():
    ones = np.ones((2, 4, 4), np.float32)
    masks = paste_masks(ones, np.float32([[5, 5, 5, 9], [2.5, 2.5, 2.5, 2.5]]), (12, 12))
    assert masks.sum() < 30  # of what is next to them
    assert paste_masks(ones[:0], np.zeros((0, 4), np.float32), (12, 10)).shape == (0, 12, 10)
