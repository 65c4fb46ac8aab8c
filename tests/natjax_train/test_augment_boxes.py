"""What happens to an image and its objects, beside mmdetection's steps written out one by one."""

import dataclasses
import math

import numpy as np
import pytest

from natjax import opencv_resizing
from natjax_train.augment.boxes import draw, largest
from natjax_train.augment.settings import BoxSettings, HostSettings, MaskSettings

pytestmark = pytest.mark.once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(HostSettings, MaskSettings, BoxSettings):
    """What a recipe has of all this."""


AUTHORS = Settings(scale_range=(0.6, 1.0), longest_edge=1333)
CANVAS = (800, 1344)


def draws(size, count=400, settings=AUTHORS, image_size=800, canvas=CANVAS):
    return [draw(size, np.random.default_rng(seed), settings, image_size, canvas) for seed in range(count)]


def test_sizes_are_the_authors():
    found = draws((480, 640), 2000)
    whole = [one for one in found if one.crop == (0, 0, 480, 640)]
    cropped = [one for one in found if one.crop != (0, 0, 480, 640)]
    assert 900 < len(whole) < 1100
    assert 900 < sum(one.flip for one in found) < 1100
    assert {one.size[0] for one in whole} == set(range(480, 801, 32))
    assert all(one.size[1] == int(640 * one.size[0] / 480 + 0.5) for one in whole)
    assert {one.resized for one in cropped} == {(400, 533), (500, 667), (600, 800)}
    for one in cropped:
        for side, have in zip(one.crop[2:], one.resized, strict=True):
            assert min(have, 384) <= side <= min(have, 600)
        assert all(0 <= one.crop[i] <= one.resized[i] - one.crop[2 + i] for i in (0, 1))
    sides = np.array([one.crop[2:] for one in cropped if one.resized == (600, 800)])
    assert sides.min() < 390
    assert sides.max() > 594
    assert {min(one.size) for one in cropped if one.crop[3] > one.crop[2]} == set(range(480, 801, 32))


def test_everything_fits():
    for size in [(480, 640), (640, 640), (200, 900), (33, 5000)]:
        canvas = largest(size, AUTHORS, 800)
        for one in draws(size, 200, canvas=canvas):
            assert one.size[0] <= canvas[0]
            assert one.size[1] <= canvas[1]
            assert max(one.size) <= 1333
            assert min(one.size) >= 1


def test_crops_that_are_upright_keep_their_shape():
    found = [one for one in draws((480, 640), 2000) if one.crop[2] > one.crop[3]]
    assert any(one.size[0] == 800 and one.size[1] < 800 for one in found)
    for one in found:
        assert math.isclose(one.size[0] / one.size[1], one.crop[2] / one.crop[3], rel_tol=0.003)
        assert min(one.size) >= 480  # still one of the authors' scales


def test_a_scale_of_one_is_no_scale():
    settings = dataclasses.replace(AUTHORS, scale_range=(1.0, 1.0), crop_prob=0.0, horizontal_flip=0.0)
    (only,) = {(one.flip, one.size, one.crop) for one in draws((50, 60), settings=settings, image_size=50)}
    assert only == (False, (50, 60), (0, 0, 50, 60))


def nearest(mask, size):
    """Returns a mask as OpenCV resizes it, pixel by pixel."""
    (height, width), (rows, columns) = mask.shape, size
    by = 1 / (rows / height), 1 / (columns / width)
    at = [[(int(y * by[0]), int(x * by[1])) for x in range(columns)] for y in range(rows)]
    return np.array([[mask[place] for place in row] for row in at])


def mmdetection(pixels, boxes, mask, one):
    """Returns image, boxes, which of these are kept, and mask after flip, resize, crop and resize, one after the other."""
    if one.flip:
        width = pixels.shape[1]
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        boxes = [(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in boxes]
    kept = [True] * len(boxes)

    def resize(pixels, boxes, mask, size):
        (height, width), (rows, columns) = pixels.shape[:2], size
        by = (columns / width, rows / height) * 2
        boxes = [tuple(value * factor for value, factor in zip(box, by, strict=True)) for box in boxes]
        boxes = [
            tuple(min(max(value, 0), most) for value, most in zip(box, (columns, rows) * 2, strict=True))
            for box in boxes
        ]
        return opencv_resizing.resize(np.ascontiguousarray(pixels), size), boxes, nearest(mask, size)

    pixels, boxes, mask = resize(pixels, boxes, mask, one.resized)
    top, left, rows, columns = one.crop
    pixels, mask = (x[top : top + rows, left : left + columns] for x in (pixels, mask))
    moved = [(x1 - left, y1 - top, x2 - left, y2 - top) for x1, y1, x2, y2 in boxes]
    boxes = [
        tuple(min(max(value, 0), most) for value, most in zip(box, (columns, rows) * 2, strict=True)) for box in moved
    ]
    kept = [x2 > x1 and y2 > y1 for x1, y1, x2, y2 in boxes]
    return *resize(pixels, boxes, mask, one.size), kept


@pytest.mark.parametrize("size", [(48, 64), (70, 41), (33, 33)])
def test_steps_are_mmdetections(size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.asfortranarray(rng.integers(0, 2, size, dtype=np.uint8))
    corners = rng.uniform(-9, max(size) + 9, (12, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    canvas, dropped = largest(size, AUTHORS, 60), 0
    for one in draws(size, 12, image_size=60, canvas=canvas):
        want_pixels, want_boxes, want_mask, want_kept = mmdetection(pixels, boxes.tolist(), mask, one)
        np.testing.assert_array_equal(one.image(pixels), want_pixels)
        got, kept = one.boxes(boxes)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.array(want_boxes), atol=1e-4)
        assert kept.tolist() == want_kept
        packed = one.mask(mask)
        np.testing.assert_array_equal(np.unpackbits(packed, axis=1)[:, : one.size[1]], want_mask)
        dropped += kept.tolist().count(False)
    assert dropped


def test_boxes_and_masks_stay_together():
    """A rectangle's mask, after all of it, has the rectangle's box but for what rounding to pixels makes."""
    size, (x1, y1, x2, y2) = (480, 640), (100, 50, 420, 390)
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    for one in draws(size, 60):
        ((left, top, right, bottom),), (kept,) = one.boxes(np.array([[x1, y1, x2, y2]], np.float32))
        found = np.unpackbits(one.mask(mask), axis=1)
        rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
        assert kept
        np.testing.assert_allclose(
            (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), (left, top, right, bottom), atol=3
        )
