"""Pictures of validation images: objects, what is true of them beside what was found."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from natjax.detection.inference import Detections
from natjax.segmentation.palettes import generated
from natjax_train.examples import Example, Objects, draw_objects

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version


def of(scores, boxes, size):
    pixels = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(pixels, boxes, strict=True):
        mask[top:bottom, left:right] = True
    found = Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.arange(len(boxes), dtype=np.int32),
        size=size,
    )
    return Objects(found, pixels)


@pytest.mark.parametrize(
    ("size", "drawn"), [((100, 160), (320, 512)), ((1000, 800), (400, 320)), ((60, 600), (64, 640))]
)
def test_images_are_drawn_at_one_size(size, drawn):
    height, width = size
    truth = of([np.nan], [(0, 0, width // 2, height)], size)
    example = Example(PIL.Image.new("RGB", (width, height)), truth, of([], [], size)).reduced()
    truth, found = example.truth.detections, example.found.detections
    assert (example.image.height, example.image.width) == truth.size == found.size == drawn
    np.testing.assert_allclose(truth.boxes, [[0, 0, drawn[1] / 2, drawn[0]]], atol=0.5)
    assert example.truth.masks.shape == (1, *drawn)
    assert example.truth.masks.mean() == pytest.approx(0.5, abs=0.01)
    assert example.found.masks.shape == (0, *drawn)


def test_truth_is_left_and_what_was_found_right(tmp_path):
    size, colours = (320, 400), [tuple(colour) for colour in generated(2).tolist()]
    image = PIL.Image.new("RGB", (400, 320), (200, 200, 200))
    example = Example(
        image, of([np.nan], [(100, 100, 200, 200)], size), of([0.9, 0.4], [(0, 0, 50, 50), (300, 200, 380, 300)], size)
    )
    draw_objects([example, example], ["ant", "bee"], tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (56 + 2 * (320 + 16), 2 * 400 + 3 * 16, 3)
    of_ant, of_bee = ((pixels == colour).all(-1) for colour in colours)
    assert of_ant[:, :416].sum() > 1000  # the box and the border of the mask
    assert of_ant[:, 432:].sum() > 1000
    assert not of_bee[:, :416].any()
    assert of_bee[:, 432:].sum() > 1000
    np.testing.assert_array_equal(pixels[56:376], pixels[392:712])


def test_nothing_to_show(tmp_path):
    draw_objects([], ["ant"], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
