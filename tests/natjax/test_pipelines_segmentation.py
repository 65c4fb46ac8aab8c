"""`natjax.pipeline("image-segmentation")`: Hugging Face's output, class maps, windows, scales, and what does not fit."""

import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
from natjax import models
from natjax.configuration import UperNetConfig
from natjax.errors import CheckpointError, ImageError
from natjax.image_processing import NatImageProcessor
from natjax.pipelines import ImageSegmentation
from natjax.segmentation import segment
from natjax_convert import Checkpoint

pytestmark = pytest.mark.once

CONFIG = UperNetConfig(id2label={0: "sky", 1: "road", 2: "tree", 3: "car"})
PROCESSOR = NatImageProcessor.semantic_segmentation(64, 32)
IMAGES = [
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
    for seed, shape in enumerate([(40, 60, 3), (40, 60, 3), (30, 31, 3)])
]


class Segmenter(nnx.Module):
    """Colours of patches of 4 x 4 pixels as logits; stands in for a UPerNet, and compiles in no time."""

    def __init__(self, dtype=None):
        self.config, self.dtype = CONFIG, dtype
        self.weight = nnx.Param(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))

    def decode(self, pixels, *, image_size=None):
        mean = jax.image.resize(pixels, (len(pixels), -(-pixels.shape[1] // 4), -(-pixels.shape[2] // 4), 3), "linear")
        return (mean @ self.weight[...]).astype(self.dtype or np.float32), None


@pytest.fixture(scope="module")
def model():
    return Segmenter()


@pytest.fixture(scope="module")
def pipe(model):
    return ImageSegmentation(model, PROCESSOR)


def by_hand(model, image, **options):
    pixels = PROCESSOR(image)
    return np.asarray(segment(lambda x: model.decode(x)[0], pixels, image.size[::-1], **options))[0]


def test_output_is_hugging_faces(pipe):
    found = pipe(IMAGES[0])
    class_map = pipe.class_maps(IMAGES[0])
    assert class_map.shape == (40, 60)
    assert [part["label"] for part in found] == [CONFIG.id2label[i] for i in np.unique(class_map)]
    assert len(found) > 1
    for part in found:
        assert part["score"] is None
        assert (part["mask"].mode, part["mask"].size) == ("L", (60, 40))
        index = CONFIG.label2id[part["label"]]
        np.testing.assert_array_equal(np.asarray(part["mask"]), np.where(class_map == index, 255, 0))


def test_class_maps_are_those_of_the_model(pipe, model):
    maps = pipe.class_maps(IMAGES)
    for image, class_map in zip(IMAGES, maps, strict=True):
        np.testing.assert_array_equal(class_map, by_hand(model, image))
    (from_array,) = pipe.class_maps([np.asarray(IMAGES[2])])
    np.testing.assert_array_equal(from_array, maps[2])


def test_batches_hold_images_of_one_size(model, pipe):
    batches = []
    pipe = ImageSegmentation(model, PROCESSOR, batch_size=2)
    decode = pipe._segmenter
    pipe._segmenter = lambda pixels: batches.append(pixels.shape) or decode(pixels)
    images = [IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[2], IMAGES[0].rotate(90, expand=True)]
    maps = pipe.class_maps(images)
    assert batches == [(2, 32, 48, 3), (2, 32, 48, 3), (2, 32, 33, 3), (2, 48, 32, 3)]
    for image, class_map in zip(images, maps, strict=True):
        np.testing.assert_array_equal(class_map, by_hand(model, image))


def test_windows_scales_and_mirror_images(model):
    image = IMAGES[0]
    slide = ImageSegmentation(model, PROCESSOR, mode="slide", crop_size=(24, 32), stride=16, batch_size=2)
    np.testing.assert_array_equal(slide.class_maps(image), by_hand(model, image, crop_size=(24, 32), stride=(16, 16)))
    several = ImageSegmentation(model, PROCESSOR, scales=(1, 0.5), flip=True)
    half = dataclasses.replace(PROCESSOR, size={"longest_edge": 32, "shortest_edge": 16})(image)
    assert half.shape == (1, 16, 24, 3)
    wanted = segment(lambda x: model.decode(x)[0], [PROCESSOR(image), half], (40, 60), flip=True)
    np.testing.assert_array_equal(several.class_maps(image), wanted[0])


def test_bfloat16(model):
    low = Segmenter("bfloat16")
    agree = ImageSegmentation(low, PROCESSOR).class_maps(IMAGES[0]) == ImageSegmentation(model, PROCESSOR).class_maps(
        IMAGES[0]
    )
    assert agree.mean() > 0.9


def test_unreadable_images_are_skipped_or_end_the_call(pipe):
    with pytest.raises(ImageError, match="there is no such file"):
        pipe("gone.png")
    skipped = []
    pipe._report, report = skipped.append, pipe._report
    try:
        assert pipe(["gone.png", IMAGES[2]], skip_unreadable=True)[0] is None
    finally:
        pipe._report = report
    assert skipped == ["skipped gone.png: there is no such file."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "window"}, "mode must be 'whole' or 'slide'; got 'window'"),
        ({"mode": "whole", "crop_size": 32}, "crop_size and stride are for mode='slide'"),
        ({"crop_size": 32, "stride": 64}, "stride must be at most crop_size"),
        ({"scales": ()}, "scales must be 'multi' or numbers above 0"),
        ({"scales": "all"}, "scales must be 'multi' or numbers above 0"),
        ({"scales": 2.0}, "scales must be 'multi' or numbers above 0"),
        ({"top_k": 3}, "top_k is for 'image-classification' or 'object-detection'; got 3 with 'image-segmentation'"),
    ],
)
def test_impossible_options_are_refused_before_a_checkpoint_is_opened(options, message):
    with pytest.raises(ValueError, match=message):
        natjax.pipeline("image-segmentation", "there is none", **options)


def test_options_of_segmentation_are_for_it_alone():
    with pytest.raises(ValueError, match="flip is for 'image-segmentation'; got True with 'image-classification'"):
        natjax.pipeline("image-classification", "there is none", flip=True)


def test_processors_that_do_not_fit(model):
    with pytest.raises(ValueError, match="the image processor crops images, so pixels would have no class"):
        ImageSegmentation(model, NatImageProcessor.imagenet(32))
    with pytest.raises(
        ValueError, match="scales are ratios to what an image processor resizes to, and this one does not"
    ):
        ImageSegmentation(model, dataclasses.replace(PROCESSOR, do_resize=False), scales="multi")
    with pytest.raises(CheckpointError, match="the model takes 3 channels"):
        ImageSegmentation(model, NatImageProcessor.semantic_segmentation(num_channels=1))


def test_the_default_processor_is_mmsegmentations(monkeypatch, model, tmp_path):
    said = []
    monkeypatch.setattr(models.UperNetForSemanticSegmentation, "from_pretrained", lambda *_, **__: model)
    checkpoint = Checkpoint(tmp_path, tensors={}, found=None, config=CONFIG)
    pipe = natjax.pipeline("image-segmentation", checkpoint, report=said.append)
    assert pipe.processor == NatImageProcessor.semantic_segmentation()
    assert "as mmsegmentation does (the ratio kept within 2048 x 512 pixels)" in said[0]
    assert pipe.batch_size == 1
