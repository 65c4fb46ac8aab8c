"""Pictures of detections: what is drawn where, at which size, and labels that stay inside."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from natjax.detection import pictures
from natjax.detection.inference import Detections
from natjax.detection.pictures import draw

pytestmark = pytest.mark.once
NAMES = {0: "cat", 1: "a name " * 5000, 2: "\u72ac"}
PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def found(size, boxes, labels=None, masks=True):
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        scores=np.linspace(0.99, 0.6, count).astype(np.float32),
        labels=np.array(labels or [0] * count, np.int32),
        size=size,
        mask_probabilities=np.ones((count, 28, 28), np.float32) if masks else None,
    )


def picture(size, *args, grey=100, **options):
    image = PIL.Image.new("RGB", size[::-1], (grey,) * 3)
    return np.asarray(draw(image, found(size, *args, **options), NAMES, PALETTE))


def test_masks_boxes_and_labels_are_drawn():
    drawn = picture((400, 600), [[100, 100, 301, 301]])
    assert drawn.shape == (400, 600, 3)
    assert drawn[200, 200].tolist() == [170, 55, 55]  # 45 percent red
    assert (drawn[200, 100:102] == [255, 0, 0]).all()  # its left side
    assert (drawn[300, 200] == [255, 0, 0]).all()
    assert drawn[350, 200].tolist() == drawn[200, 400].tolist() == [100, 100, 100]
    label = drawn[80:99, 100:160].reshape(-1, 3)
    assert (label == [255, 0, 0]).all(1).mean() > 0.4
    assert (label.min(1) > 200).sum() > 20  # light on red
    without = picture((400, 600), [[100, 100, 301, 301]], masks=False)
    assert without[200, 200].tolist() == [100, 100, 100]


@pytest.mark.parametrize("own", [True, False])
def test_masks_of_pixels_are_drawn_in_place_of_the_detections_own(own):
    image, boxes = PIL.Image.new("RGB", (600, 400), (100,) * 3), [[100, 100, 301, 301], [0, 0, 600, 400]]
    detections, masks = found((400, 600), boxes, labels=[0, 1], masks=own), np.zeros((2, 400, 600), bool)
    masks[0, :, 150:250], masks[1, 350:] = True, True
    drawn = np.asarray(draw(image, detections, NAMES, PALETTE, masks=masks))
    assert drawn[200, 200].tolist() == drawn[50, 200].tolist() == [170, 55, 55]
    assert drawn[200, 280].tolist() == [100, 100, 100]
    assert drawn[375, 400].tolist() == [55, 170, 55]
    with pytest.raises(ValueError, match=r"masks must have the shape \(2, 400, 600\), .*; got \(1, 400, 600\)"):
        draw(image, detections, NAMES, PALETTE, masks=masks[:1])


def test_objects_without_scores_have_names_alone(monkeypatch):
    texts = []
    original = pictures._Label.draw
    monkeypatch.setattr(
        pictures._Label, "draw", lambda self, *where: texts.append(self._text) or original(self, *where)
    )
    detections = found((400, 600), [[100, 100, 301, 301], [0, 0, 50, 50]])
    detections.scores[:] = np.nan, 0.5
    draw(PIL.Image.new("RGB", (600, 400)), detections, NAMES, PALETTE)
    assert texts == ["cat 50%", "cat"]


def test_the_highest_score_is_on_top():
    drawn = picture((400, 600), [[100, 100, 300, 300], [50, 50, 350, 350]], labels=[0, 2])
    assert drawn[200, 101].tolist() == [255, 0, 0]
    red, _, blue = drawn[200, 200].tolist()
    assert red > blue


@pytest.mark.parametrize("size", [(8, 6), (40, 30), (400, 30), (30, 400), (300, 500), (1500, 900)])
def test_labels_stay_inside_and_are_large_enough(size, monkeypatch):
    labels = []
    original = pictures._Label.draw
    monkeypatch.setattr(
        pictures._Label,
        "draw",
        lambda self, pen, place, colour: labels.append(place) or original(self, pen, place, colour),
    )
    height, width = size
    boxes = [[0, 0, width, height], [width - 2, height - 2, width, height], [0, 0, 2, 2], [0, height / 2, 3, height]]
    drawn = picture(size, boxes, labels=[1, 0, 2, 1])
    assert len(labels) == 4
    factor = drawn.shape[0] / height
    assert drawn.shape == (factor * height, factor * width, 3)
    assert factor == int(factor)
    assert factor == 1 or min(drawn.shape[:2]) < 320 + min(size)
    for place in labels:
        assert 0 <= place.left < place.right <= drawn.shape[1]
        assert 0 <= place.top < place.bottom <= drawn.shape[0]
        assert place.bottom - place.top >= 14


def test_labels_do_not_hide_each_other_where_there_is_room():
    pen = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (1, 1)))
    labels = [pictures._Label(pen, "potted plant", "98%", 16, 500) for _ in range(4)]
    box = pictures._Box(150.0, 150.0, 350.0, 350.0)
    places = pictures._places(labels, [box] * 4, (500, 500))
    assert sum(a.shared(b) for a in places for b in places if a is not b) == 0


def test_large_pictures_of_many_pixels_are_not_enlarged():
    assert pictures._factor(PIL.Image.new("L", (20000, 300))) == 1
    assert pictures._factor(PIL.Image.new("L", (1, 2**22 + 1))) == 1


def test_boxes_of_no_width_and_beyond_the_image_are_drawn():
    drawn = picture((400, 400), [[50, 50, 50, 50], [-20, -20, 700, 700]])
    assert drawn.shape == (400, 400, 3)


def test_nothing_found_leaves_the_image():
    assert (picture((400, 400), []) == 100).all()


def test_sizes_must_agree():
    image = PIL.Image.new("RGB", (30, 20))
    with pytest.raises(ValueError, match=r"of one size; got 20 x 30 and 30 x 20 \(height x width\)"):
        draw(image, found((30, 20), []), NAMES)
