"""`natjax.pipeline("object-detection")`: Hugging Face's output, masks, thresholds, batches, and what does not fit."""

import numpy as np
import PIL.Image
import pytest
from fake_model import FakeDetector

import natjax
from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig, NatConfig, UperNetConfig
from natjax.errors import CheckpointError, ImageError
from natjax.image_processing import NatImageProcessor
from natjax.models.detection import DETECTORS
from natjax.pipelines import ObjectDetection
from natjax_convert import Checkpoint

pytestmark = pytest.mark.once

CONFIG = MaskRcnnConfig(id2label={0: "scene", 1: "lamp"})
PROCESSOR = NatImageProcessor.object_detection(64, 64)


def photo(left, shape=(64, 64)):
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[16:48, left : left + 20] = 255
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def model():
    return FakeDetector(CONFIG)


@pytest.fixture(scope="module")
def pipe(model):
    return ObjectDetection(model, PROCESSOR, batch_size=2, masks=True)


def test_output_is_hugging_faces(pipe, model):
    (found,) = pipe(photo(10))
    mask = found.pop("mask")
    assert found == {
        "score": pytest.approx(0.9),
        "label": "lamp",
        "box": {"xmin": 10, "ymin": 16, "xmax": 30, "ymax": 48},
    }
    assert all(type(side) is int for side in found["box"].values())
    assert type(found["score"]) is float
    assert (mask.mode, mask.size) == ("L", (64, 64))
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(np.asarray(mask) == 255, pipe.detections(photo(10)).mask(0))
    assert "mask" not in ObjectDetection(model, PROCESSOR)(photo(10))[0]


def test_thresholds_and_numbers_of_objects(pipe, model):
    assert [found["label"] for found in pipe(photo(10), threshold=0.2)] == ["lamp", "scene"]
    assert [found["label"] for found in pipe(photo(10), threshold=0.2, top_k=1)] == ["lamp"]
    assert pipe(photo(10), threshold=0.9) == []
    few = ObjectDetection(model, PROCESSOR, threshold=0.2, top_k=1)
    assert len(few(photo(10))) == 1
    assert len(few(photo(10), top_k=None)) == 2
    assert len(pipe.detections(photo(10))) == 2


def test_lists_arrays_and_iterators(pipe):
    images = [photo(10), photo(20), photo(12, (64, 32)), np.asarray(photo(30))]
    found = pipe(images)
    assert [each[0]["box"]["xmin"] for each in found] == [10, 20, 12, 30]
    assert [each[0]["box"] for each in pipe(iter(images))] == [each[0]["box"] for each in found]
    assert pipe([]) == []


def test_unreadable_images_are_skipped_or_end_the_call(pipe, monkeypatch):
    with pytest.raises(ImageError, match="there is no such file"):
        pipe("gone.png")
    said = []
    monkeypatch.setattr(pipe, "_report", said.append)
    assert [found and found[0]["box"]["xmin"] for found in pipe(["gone.png", photo(9)], skip_unreadable=True)] == [
        None,
        9,
    ]
    assert said == ["skipped gone.png: there is no such file."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1; got 1.5"),
        ({"threshold": "half"}, "threshold must be a number from 0 to 1; got 'half'"),
        ({"top_k": 0}, "top_k must be at least 1 or None; got 0"),
        ({"flip": True}, "flip is for 'image-segmentation'; got True with 'object-detection'"),
        ({"stages": "all"}, "stages is for 'image-feature-extraction'; got 'all' with 'object-detection'"),
    ],
)
def test_impossible_options_are_refused_before_a_checkpoint_is_opened(options, message):
    with pytest.raises(ValueError, match=message):
        natjax.pipeline("object-detection", "there is none", **options)


@pytest.mark.parametrize("options", [{"threshold": 0.5}, {"masks": True}, {"size_divisor": 32}])
def test_options_of_detection_are_for_it_alone(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name} is for 'object-detection'; got .* with 'image-segmentation'"):
        natjax.pipeline("image-segmentation", "there is none", **options)


@pytest.mark.parametrize("config", [CONFIG, CascadeMaskRcnnConfig(num_labels=2)])
def test_the_default_processor_is_mmdetections(monkeypatch, config, tmp_path):
    said = []
    monkeypatch.setitem(DETECTORS, config.model_type, FakeDetector)
    checkpoint = Checkpoint(tmp_path, tensors={}, found=None, config=config)
    pipe = natjax.pipeline("object-detection", checkpoint, report=said.append)
    assert type(pipe.model) is FakeDetector
    assert pipe.processor == NatImageProcessor.object_detection()
    assert "as mmdetection does (the ratio kept within 1333 x 800 pixels)" in said[0]
    assert (pipe.batch_size, pipe.threshold, pipe.top_k) == (1, 0.5, None)


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        (
            "object-detection",
            NatConfig(),
            "has no heads for object detection; object-detection needs a Mask R-CNN or a Casc",
        ),
        (
            "object-detection",
            UperNetConfig(num_labels=3),
            r"is a UPerNet, .* use it with image-segmentation \(`natjax segme",
        ),
        (
            "image-segmentation",
            CONFIG,
            r"is a Mask R-CNN, which says where objects are.*with object-detection \(`natjax det",
        ),
        (
            "image-classification",
            CascadeMaskRcnnConfig(num_labels=3),
            "is a Cascade Mask R-CNN, which says where objects are",
        ),
        (
            "image-feature-extraction",
            CONFIG,
            r"use it with object-detection \(`natjax detect`\) instead of image-feature-ex",
        ),
    ],
)
def test_checkpoints_of_another_kind(task, config, message, tmp_path):
    checkpoint = Checkpoint(tmp_path, tensors={}, found=None, config=config)
    with pytest.raises(CheckpointError, match=message):
        natjax.pipeline(task, checkpoint)


def test_processors_that_do_not_fit(model):
    with pytest.raises(ValueError, match="the image processor crops images"):
        ObjectDetection(model, NatImageProcessor.imagenet(32))
    with pytest.raises(CheckpointError, match="the model takes 3 channels"):
        ObjectDetection(model, NatImageProcessor.object_detection(num_channels=1))
