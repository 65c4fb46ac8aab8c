"""The image processor's own behaviour: configurations, kinds of input, and errors for what cannot be read.

Equality with Hugging Face is in test_image_processing_parity.py; the golden here stands in for it
where there is no transformers.
"""

import dataclasses
import json
import pathlib
import struct
import sys
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from natjax.errors import CheckpointError, ImageError
from natjax.image_processing import NatImageProcessor
from natjax.images import load_image

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "image_processor"


def pattern(height=40, width=60, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def png(tmp_path):
    PIL.Image.fromarray(pattern()).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_equals_the_golden_of_hugging_face():
    with np.load(GOLDEN / "expected.npz") as golden:
        pixels, names = golden["pixels"], [name for name in golden.files if name != "pixels"]
        configs = json.loads((GOLDEN / "provenance.json").read_text())["configs"]
        assert sorted(names) == sorted(configs)
        for name in names:
            actual = NatImageProcessor.from_dict(configs[name])(pixels)
            np.testing.assert_array_equal(actual, golden[name], err_msg=name, strict=True)


def test_single_list_and_batch_agree(png):
    processor = NatImageProcessor(size=16)
    expected = processor(pattern())
    assert expected.shape == (1, 16, 16, 3)
    assert expected.dtype == np.float32
    image = PIL.Image.open(png)
    for same in (
        png,
        str(png),
        [png],
        image,
        pattern().transpose(2, 0, 1),
        pattern().astype(np.float64),
        pattern()[None],
    ):
        np.testing.assert_array_equal(processor(same), expected)
    np.testing.assert_array_equal(processor([png, image, pattern()]), np.concatenate([expected] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"])
def test_pillow_images_of_any_mode_become_rgb_or_grey(mode):
    grey = PIL.Image.fromarray(pattern()[..., 0])
    image = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    assert NatImageProcessor(size=8)(image).shape == (1, 8, 8, 3)
    assert NatImageProcessor(size=8, image_mean=[0.5], image_std=[0.5])(image).shape == (1, 8, 8, 1)


def test_grey_arrays():
    colour, grey = NatImageProcessor(size=8), NatImageProcessor(size=8, image_mean=[0.5], image_std=[0.5])
    plane = pattern(channels=1)
    assert grey.num_channels == 1
    for same in (plane, plane[..., 0], plane.transpose(2, 0, 1)):
        np.testing.assert_array_equal(colour(same), np.repeat(grey(same), 3, axis=-1))
    with pytest.raises(ImageError, match=r"1 channel\(s\).*\(40, 60, 3\)"):
        grey(pattern())
    with pytest.raises(ImageError, match=r"3 channel\(s\).*\(40, 60, 4\)"):
        colour(pattern(channels=4))


def test_few_rows_are_not_taken_for_channels():
    image = PIL.Image.fromarray(pattern(3, 20))
    assert NatImageProcessor(do_resize=False)(image).shape == (1, 3, 20, 3)


def test_sizes():
    image = pattern(40, 60)
    assert NatImageProcessor(size=(10, 12))(image).shape == (1, 10, 12, 3)
    assert NatImageProcessor(size={"shortest_edge": 20})(image).shape == (1, 20, 30, 3)
    assert NatImageProcessor(size={"shortest_edge": 20})(pattern(60, 40)).shape == (1, 30, 20, 3)
    assert NatImageProcessor.imagenet(32, crop_pct=0.8)(image).shape == (1, 32, 32, 3)
    assert NatImageProcessor.imagenet(32, num_channels=1)(image[..., 0]).shape == (1, 32, 32, 1)
    with pytest.raises(ValueError, match="1 or 3 channels; got 4"):
        NatImageProcessor.imagenet(num_channels=4)
    assert NatImageProcessor(do_resize=False)(image).shape == (1, 40, 60, 3)


def test_crop_pads_small_images_to_the_asked_size():
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    processor = NatImageProcessor(**plain, do_center_crop=True, crop_size=8)
    for height in range(1, 12):
        column = processor(PIL.Image.new("RGB", (8, height), (1, 1, 1)))[0, :, 0, 0]
        assert column.shape == (8,)
        assert column.sum() == min(height, 8)
        assert abs(int(column[:4].sum()) - int(column[4:].sum())) <= 1


def test_images_of_different_sizes_make_no_batch():
    with pytest.raises(ImageError, match=r"one size.*\(40, 60, 3\), \(60, 40, 3\)"):
        NatImageProcessor(do_resize=False)([pattern(40, 60), pattern(60, 40)])


@pytest.mark.parametrize(
    "bad",
    [None, 3, [], [[1, 2]], np.zeros(4), np.zeros((0, 4, 3)), np.array([["a"]]), np.zeros((2, 2, 2, 2, 3)), object()],
)
def test_refuses_what_is_no_image(bad):
    with pytest.raises(ImageError):
        NatImageProcessor(size=8)(bad)


@pytest.mark.parametrize("bad", [-1.0, 0.5 + 1, 256.0, np.nan])
def test_refuses_pixels_that_cannot_be_resized(bad):
    with pytest.raises(ImageError, match=r"0\.\.255 or floats 0\.\.1"):
        NatImageProcessor(size=8)(np.full((4, 4, 3), bad))


def test_warns_of_pixels_that_are_scaled_already():
    with pytest.warns(UserWarning, match="do_rescale=False"):
        NatImageProcessor(size=8)(np.full((4, 4, 3), 0.5))


def truncated(path):
    PIL.Image.fromarray(pattern(200, 200)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-4000])


def huge(path):  # 30000 x 30000 in 100 bytes
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "the file is empty"),
        (lambda path: path.write_text("not an image"), "not an image that Pillow can read"),
        (truncated, "cannot be read: .*truncated"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50), r"cannot be read|not an image"),
        (huge, "too large to decode safely"),
    ],
    ids=["missing", "directory", "empty", "text", "truncated", "broken", "bomb"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="opening a directory is a permission error there")
def test_unreadable_files_are_named(tmp_path, make, message):
    make(path := tmp_path / "x.jpg")
    for read in (load_image, NatImageProcessor()):
        with pytest.raises(ImageError, match=f"x.jpg: {message}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_truncated_pillow_image(tmp_path):
    truncated(tmp_path / "x.jpg")
    with PIL.Image.open(tmp_path / "x.jpg") as image, pytest.raises(ImageError, match="The image: cannot be read"):
        NatImageProcessor()(image)
    with pytest.raises(ImageError, match="got int"):
        load_image(3)


def test_large_images_do_not_warn(png, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40 * 60 - 1)
    with warnings.catch_warnings(action="error"):
        assert load_image(png).size == (60, 40)


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000)])
def test_strips_that_would_be_resized_to_gigabytes_are_refused(tmp_path, size):
    PIL.Image.new("L", size).save(tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"strip\.png: .* would be resized to .*2520000"):
        NatImageProcessor.imagenet(32)(tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"The image: .* would be resized"):
        NatImageProcessor.imagenet(32)(PIL.Image.new("RGB", size))


def test_the_bound_on_resizing_is_pillows(monkeypatch):
    processor = NatImageProcessor(size={"shortest_edge": 20})
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20 * 30)
    assert processor(pattern(40, 60)).shape == (1, 20, 30, 3)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20 * 30 - 1)
    with pytest.raises(ImageError, match="40 x 60 pixels"):
        processor(pattern(40, 60))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)  # Pillow's way to switch its own off
    assert processor(pattern(40, 60)).shape == (1, 20, 30, 3)


def test_config_round_trip(tmp_path):
    for processor in (
        NatImageProcessor(),
        NatImageProcessor(size=(64, 96), resample=3, image_mean=0.5, image_std=[0.1, 0.2, 0.3], do_rescale=False),
        NatImageProcessor.imagenet(),
        NatImageProcessor(image_mean=[0.5], image_std=[0.25], extra={"note": "kept"}),
        NatImageProcessor(size={"shortest_edge": 32}, do_resize=False),
    ):
        processor.save_pretrained(tmp_path / "deep" / "er")
        for path in (tmp_path / "deep" / "er", tmp_path / "deep" / "er" / "preprocessor_config.json"):
            back = NatImageProcessor.from_pretrained(path)
            assert back.to_dict() == processor.to_dict()
        assert dataclasses.replace(back, crop_size=processor.crop_size) == processor


def test_the_type_of_a_config_decides_about_cropping():
    crop = {"do_center_crop": True, "crop_size": 8, "size": 16}
    vit = NatImageProcessor.from_dict({**crop, "feature_extractor_type": "ViTFeatureExtractor"})
    assert not vit.do_center_crop
    assert vit.size == {"height": 16, "width": 16}
    assert vit.to_dict()["crop_size"] == 8  # kept, without effect
    clip = NatImageProcessor.from_dict({**crop, "image_processor_type": "CLIPImageProcessor"})
    assert clip.do_center_crop
    assert clip.size == {"shortest_edge": 16}
    assert clip.to_dict()["image_processor_type"] == "CLIPImageProcessor"
    assert NatImageProcessor.from_dict(crop).do_center_crop


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"size": {"height": 3}},
        {"size": "large"},
        {"size": True},
        {"resample": 9},
        {"do_resize": "yes"},
        {"do_center_crop": True},
        {"crop_size": {"shortest_edge": 3}},
        {"rescale_factor": float("nan")},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [1, 0, 1]},
        {"image_std": 0},
        {"image_mean": [0.5]},
        {"image_processor_type": "ConvNextImageProcessor"},
        [],
    ],
    ids=str,
)
def test_bad_configs(bad, tmp_path):
    with pytest.raises(ValueError, match=r"got|natjax reads|must not be zero"):
        NatImageProcessor.from_dict(bad)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(bad))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: not a usable image processor"):
        NatImageProcessor.from_pretrained(tmp_path)


def test_missing_and_damaged_config_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: cannot read"):
        NatImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match="not a usable image processor"):
        NatImageProcessor.from_pretrained(tmp_path)
