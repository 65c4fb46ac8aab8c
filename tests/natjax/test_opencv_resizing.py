"""Bilinear resizing with OpenCV's numbers; images as mmsegmentation and mmdetection prepare them."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from natjax.image_processing import NatImageProcessor
from natjax.opencv_resizing import resize

pytestmark = pytest.mark.once
GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz"


def test_images_are_mmsegmentations_bit_for_bit_before_the_mean():
    """The box is 256 x 96; the golden's pixels are normalised, so they come back to whole numbers first."""
    golden = np.load(GOLDENS)
    image, wanted = golden["pipeline/bgr"][..., ::-1], golden["pipeline/seg"].transpose(1, 2, 0)
    processor = NatImageProcessor.semantic_segmentation(256, 96)
    found = processor(PIL.Image.fromarray(image.copy()))[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    pixels = np.rint(wanted * np.array([58.395, 57.12, 57.375]) + np.array([123.675, 116.28, 103.53]))
    np.testing.assert_array_equal(resize(image, (96, 153)), pixels)


def test_images_are_mmdetections_with_its_zeros():
    """The box is 133 x 80; 80 x 127 pixels get zeros up to 96 x 128, after the normalisation."""
    golden = np.load(GOLDENS)
    image, wanted = golden["pipeline/bgr"][..., ::-1], golden["pipeline/det"].transpose(1, 2, 0)
    found = NatImageProcessor.object_detection(133, 80)(PIL.Image.fromarray(image.copy()))[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert not found[80:].any()
    assert not found[:, 127:].any()
    pixels = np.rint(wanted[:80, :127] * np.array([58.395, 57.12, 57.375]) + np.array([123.675, 116.28, 103.53]))
    np.testing.assert_array_equal(resize(image, (80, 127)), pixels)


def test_halved_images_are_averaged():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    wanted = (pixels.reshape(4, 2, 3, 2, 3).astype(int).sum((1, 3)) + 2) // 4
    np.testing.assert_array_equal(resize(pixels, (4, 3)), wanted)


def test_smaller_images_are_sampled():
    pixels = np.zeros((30, 30, 1), np.uint8)
    pixels[::2] = 255
    small = resize(pixels, (10, 10))  # the middle of three rows
    assert set(np.unique(small)) == {0, 255}
    assert resize(pixels, (30, 30)) is pixels
    np.testing.assert_array_equal(resize(np.full((5, 7, 3), 201, np.uint8), (11, 3)), 201)


@pytest.mark.parametrize(
    ("image", "shape"),
    [((2048, 512), (2048, 512)), ((480, 640), (512, 683)), ((100, 1000), (205, 2048)), ((2, 8000), (1, 2048))],
)
def test_sizes_within_the_box(image, shape):
    """Height and width: the scale is min(2048 / longer, 512 / shorter), and sides are rounded to the nearest."""
    pixels = NatImageProcessor.semantic_segmentation()(np.zeros((*image, 3), np.uint8))
    assert pixels.shape == (1, *shape, 3)


@pytest.mark.parametrize(
    ("image", "shape"), [((480, 640), (800, 1088)), ((640, 480), (1088, 800)), ((100, 1000), (160, 1344))]
)
def test_sizes_of_detection(image, shape):
    pixels = NatImageProcessor.object_detection()(np.zeros((*image, 3), np.uint8))
    assert pixels.shape == (1, *shape, 3)


@pytest.mark.parametrize("task", ["semantic_segmentation", "object_detection"])
def test_its_file_says_the_same_again(task, tmp_path):
    processor = getattr(NatImageProcessor, task)(640, 160)
    processor.save_pretrained(tmp_path)
    assert NatImageProcessor.from_pretrained(tmp_path) == NatImageProcessor.from_dict(processor.to_dict())
    again = NatImageProcessor.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    np.testing.assert_array_equal(again(image), processor(image))
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert values["image_processor_type"] == "DetrImageProcessor"
    assert values["size"] == {"longest_edge": 640, "shortest_edge": 160}
    assert values["antialias"] is False
    assert values.get("size_divisor") == {"semantic_segmentation": None, "object_detection": 32}[task]


def test_zeros_are_of_processors_that_name_them():
    """Hugging Face's ViTImageProcessor ignores an entry of this name."""
    image = np.full((5, 7, 3), 255, np.uint8)
    values = {"size_divisor": 4, "do_resize": False}
    assert NatImageProcessor.from_dict(values)(image).shape == (1, 8, 8, 3)
    vit = NatImageProcessor.from_dict({**values, "image_processor_type": "ViTImageProcessor"})
    assert vit(image).shape == (1, 5, 7, 3)
    assert vit.to_dict()["size_divisor"] == 4
    with pytest.raises(ValueError, match="size_divisor must be a positive integer or None; got 0"):
        NatImageProcessor(size_divisor=0)


@pytest.mark.parametrize("size", [(30, 41), (9, 70), (12, 16), (24, 32)])
def test_a_part_is_that_of_the_whole(size):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    part = slice(3, 8), slice(4, 100)
    np.testing.assert_array_equal(resize(pixels, size, part), resize(pixels, size)[part])


def test_hugging_faces_segformer_processor():
    """What Hugging Face's UPerNet checkpoints have; its defaults are not those of the others."""
    processor = NatImageProcessor.from_dict(
        {"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": True}
    )
    assert processor.size == {"height": 512, "width": 512}
    assert processor.image_mean == (0.485, 0.456, 0.406)
    values = processor.to_dict()
    assert values["image_processor_type"] == "SegformerImageProcessor"
    assert values["do_reduce_labels"] is True
    assert "antialias" not in values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"antialias": False, "resample": 3}, "antialias=False is of bilinear resizing, resample=2; got resample 3"),
        ({"antialias": 0}, "antialias must be true or false; got 0"),
        ({"size": {"longest_edge": 5}}, "size must be an integer, a pair"),
    ],
)
def test_impossible_fields(options, message):
    with pytest.raises(ValueError, match=message):
        NatImageProcessor(**options)
