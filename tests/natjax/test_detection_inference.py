"""Detections of images: how they are prepared and padded, how many programs are compiled, and what comes back."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from fake_model import FakeDetector

from natjax.configuration import MaskRcnnConfig
from natjax.detection.inference import Detections, Detector
from natjax.detection.padding import paddings
from natjax.image_processing import NatImageProcessor

pytestmark = pytest.mark.once
GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops"
CONFIG = MaskRcnnConfig(id2label={0: "scene", 1: "lamp"})
PROCESSOR = NatImageProcessor.object_detection(133, 80)


@pytest.fixture(scope="module")
def detector():
    return Detector(FakeDetector(CONFIG), PROCESSOR)


def photo(height, width, box=None):
    """Returns an image that is black but for a white box x1, y1, x2, y2."""
    pixels = np.zeros((height, width, 3), np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    return PIL.Image.fromarray(pixels)


def test_images_are_prepared_as_mmdetection_does():
    golden, said = np.load(GOLDENS / "expected.npz"), json.loads((GOLDENS / "provenance.json").read_text())
    said = said["pipeline"]["det"]
    image = PIL.Image.fromarray(golden["pipeline/bgr"][..., ::-1].copy())
    exact = Detector(FakeDetector(CONFIG), PROCESSOR, size_divisor=32).prepare(image)
    np.testing.assert_allclose(exact.pixels, golden["pipeline/det"].transpose(1, 2, 0), rtol=0, atol=1e-6)
    assert exact.size == tuple(said["ori_shape"][:2])
    assert exact.image_size == tuple(said["img_shape"][:2])
    np.testing.assert_array_equal(exact.scale_factors, np.array(said["scale_factor"], np.float32), strict=True)


def test_sides_are_filled_up_to_five_lengths(detector):
    assert paddings(NatImageProcessor.object_detection().size) == (416, 608, 800, 1088, 1344)
    assert detector.paddings == (64, 96, 128, 160)  # some of them are the same
    prepared = detector.prepare(photo(61, 97, (0, 0, 97, 61)))
    assert prepared.pixels.shape == (96, 128, 3)
    assert prepared.image_size == (80, 127)
    assert prepared.pixels[:80, :127].all()
    assert not prepared.pixels[80:].any()
    assert not prepared.pixels[:, 127:].any()


def test_a_folder_of_photographs_compiles_five_programs_and_any_other_nine():
    detector = Detector(FakeDetector(CONFIG), NatImageProcessor.object_detection())

    def padded(height, width):
        return detector.prepare(np.zeros((height, width, 3), np.uint8)).pixels.shape[:2]

    usual = [(480, 640), (600, 900), (90, 160), (500, 500), (370, 500), (427, 640)]
    shapes = {padded(*size) for size in usual} | {padded(*size[::-1]) for size in usual}
    assert shapes == {(800, 800), (800, 1088), (1088, 800), (800, 1344), (1344, 800)}
    all_shapes = {padded(100, width) for width in (100, 115, 150, 200, 250, 400)}
    all_shapes |= {shape[::-1] for shape in all_shapes}
    assert all_shapes == shapes | {(608, 1344), (1344, 608), (416, 1344), (1344, 416)}


@pytest.mark.parametrize(
    ("processor", "shape"),
    [
        (NatImageProcessor(size=40, size_divisor=16), (64, 64)),  # no box: multiples of 32
        (NatImageProcessor(do_resize=False, size={"shortest_edge": 80, "longest_edge": 133}), (32, 64)),
    ],
)
def test_without_a_box_sides_are_multiples_of_32(processor, shape):
    prepared = Detector(FakeDetector(CONFIG), processor).prepare(photo(20, 50))
    assert prepared.pixels.shape == (*shape, 3)


def test_boxes_and_masks_are_in_pixels_of_the_original_image(detector):
    image = photo(120, 200, (40, 30, 140, 90))
    (found,) = detector([detector.prepare(image)])
    assert (len(found), found.size, found.labels.tolist()) == (2, (120, 200), [1, 0])
    np.testing.assert_allclose(found.scores, [0.9, 0.3])
    np.testing.assert_allclose(
        found.boxes, [[40, 30, 140, 90], [0, 0, 200, 120]], atol=1.6
    )  # a pixel of the prepared one
    mask = found.mask(0)
    assert mask.shape == (120, 200)
    assert mask[32:88, 42:86].all()
    assert not mask[:, 94:].any()
    assert found.mask(1).mean() > 0.98
    np.testing.assert_array_equal(found.masks(), [mask, found.mask(1)])


def test_photographs_are_turned_upright(detector, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    photo(40, 64, (0, 0, 64, 10)).save(tmp_path / "turned.png", exif=exif)
    (found,) = detector([detector.prepare(tmp_path / "turned.png")])
    assert found.size == (64, 40)
    np.testing.assert_allclose(found.boxes[0], [30, 0, 40, 64], atol=0.6)


def test_one_program_per_padded_size_and_batch():
    detector = Detector(FakeDetector(CONFIG), PROCESSOR)
    before = FakeDetector.traces
    images = [photo(60, 80, (10, 10, 30, 40)), photo(60, 81, (20, 10, 30, 40)), photo(60, 79), photo(80, 60)]
    prepared = [detector.prepare(image) for image in images]
    found = detector(prepared[:2]) + detector(prepared[2:3], batch_size=2)
    assert FakeDetector.traces == before + 1
    assert [len(each) for each in found] == [2, 2, 1]
    assert found[0].boxes[0, 0] < 11 < 18 < found[1].boxes[0, 0]
    assert found[2].labels.tolist() == [0]
    detector(prepared[3:])
    assert FakeDetector.traces == before + 2
    assert detector([], batch_size=2) == []
    with pytest.raises(ValueError, match="of one padded size; got 96 x 128, 128 x 96"):
        detector(prepared)


def test_the_best(detector):
    (found,) = detector([detector.prepare(photo(40, 40, (0, 0, 9, 9)))])
    assert found.best(0.5).labels.tolist() == [1]
    assert found.best(0.5).mask_probabilities.shape == (1, 28, 28)
    assert len(found.best(0.9)) == 0  # the score must be above the threshold
    assert found.best(top_k=1).labels.tolist() == [1]
    assert found.best().scores.tolist() == found.scores.tolist()


def test_nothing_found():
    nothing = Detections(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int32),
        size=(3, 5),
        mask_probabilities=np.zeros((0, 28, 28), np.float32),
    )
    assert nothing.masks().shape == (0, 3, 5)
    assert len(nothing.best(0.5)) == 0


def test_detections_without_masks():
    detector = Detector(FakeDetector(CONFIG), PROCESSOR, masks=False)
    (found,) = detector([detector.prepare(photo(40, 40, (0, 0, 9, 9)))])
    assert found.mask_probabilities is None
    with pytest.raises(ValueError, match="no masks: they are of a Detector made with masks=False"):
        found.masks()


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="the image processor crops images, so what is beside the crop"):
        Detector(FakeDetector(CONFIG), NatImageProcessor.imagenet(32))
    with pytest.raises(ValueError, match="size_divisor must be a positive integer or None; got 0"):
        Detector(FakeDetector(CONFIG), PROCESSOR, size_divisor=0)
