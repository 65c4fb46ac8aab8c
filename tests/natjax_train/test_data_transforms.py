"""Decoding, crops, flips, jitter and evaluation of the input pipeline against the definitions of timm and torchvision.

Pictures are small gradients, in which a pixel says where it comes from, or noise.
"""

import io
import math

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest

from natjax.errors import ImageError
from natjax_train.augment import host
from natjax_train.data import transforms
from natjax_train.recipe import Recipe

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

SETTINGS = {
    "crop": True,
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "train_interpolation": "bicubic",
    "interpolation": "bicubic",
    "horizontal_flip": 0.5,
    "auto_augment": "",
    "color_jitter": 0.0,
    "crop_pct": 0.875,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}


def settings(**changes):
    return Recipe(model="nat_mini", **SETTINGS | changes)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels.squeeze())
    image.save(file, kind, **options)
    return file.getvalue()


class Watched:
    """Stands for a Pillow image and notes crop box and target size."""

    def __init__(self, width, height):
        self.size, self.box, self.target = (width, height), None, None

    def crop(self, box):
        self.box = box
        return self

    def resize(self, target, resample):
        self.target = (target, resample)
        return self


def test_random_interpolation_is_either_as_often():
    rng, image = np.random.default_rng(0), Watched(64, 64)
    found = []
    for _ in range(1000):
        host.random_resized_crop(image, rng, 32, (0.08, 1.0), (3 / 4, 4 / 3), "random")
        found.append(image.target[1])
    assert set(found) == {PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC}
    assert 450 < found.count(PIL.Image.Resampling.BILINEAR) < 550


def boxes(width, height, count, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image = Watched(width, height)
        host.random_resized_crop(image, rng, 32, scale, ratio, "bicubic")
        assert image.target == ((32, 32), PIL.Image.Resampling.BICUBIC)
        yield image.box


def test_crop_is_cropped_and_then_resized():
    image = PIL.Image.fromarray(noise(40, 60))
    (box,) = boxes(60, 40, 1, seed=5)
    got = host.random_resized_crop(image, np.random.default_rng(5), 32, (0.08, 1.0), (3 / 4, 4 / 3), "bicubic")
    want = image.crop(box).resize((32, 32), PIL.Image.Resampling.BICUBIC)
    assert got.tobytes() == want.tobytes()


def test_crops_have_the_areas_and_ratios_asked_for():
    found = np.array(list(boxes(1000, 800, 3000)))
    left, top, right, bottom = found.T
    assert (found >= 0).all()
    assert right.max() <= 1000
    assert bottom.max() <= 800
    area = (right - left) * (bottom - top) / 800_000
    ratio = (right - left) / (bottom - top)
    assert area.min() == pytest.approx(0.08, abs=0.01)
    assert area.max() <= 1.001
    assert ratio.min() == pytest.approx(3 / 4, abs=0.01)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.01)
    # uniform in area, as far as crops fit anyway, and in the logarithm of the ratio
    small = area[area < 0.5]
    assert small.mean() == pytest.approx((0.08 + 0.5) / 2, abs=0.015)
    assert np.log(ratio[area < 0.5]).mean() == pytest.approx(0, abs=0.015)
    # places are uniform, both ends included
    assert (left / np.maximum(1000 - (right - left), 1)).mean() == pytest.approx(0.5, abs=0.03)
    assert (left == 0).any()
    assert (right == 1000).any()


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (400, 10, (193, 0, 206, 10)),  # round(10 * 4 / 3) = 13 wide, from (400 - 13) // 2
        (10, 400, (0, 193, 10, 206)),
        (16, 16, (0, 0, 16, 16)),
    ],
)
def test_where_no_crop_fits_the_middle_is_taken(width, height, box):
    assert list(boxes(width, height, 3, scale=(4.0, 5.0))) == [box] * 3


@pytest.mark.parametrize("side", [1, 2, 3])
def test_smallest_images_can_be_cropped(side):
    pixels = noise(side, side)
    for seed in range(20):
        assert transforms.train_image(pixels, np.random.default_rng(seed), settings(), 8, 3).shape == (8, 8, 3)


def test_flips_happen_as_often_as_asked():
    pixels = noise(8, 8)

    def flipped(probability):
        given = settings(crop=False, horizontal_flip=probability)
        images = [transforms.train_image(pixels, np.random.default_rng(seed), given, 8, 3) for seed in range(400)]
        assert all(np.array_equal(i, pixels) or np.array_equal(i, pixels[:, ::-1]) for i in images)
        return sum(np.array_equal(i, pixels[:, ::-1]) for i in images)

    assert (flipped(0.0), flipped(1.0)) == (0, 400)
    assert 160 < flipped(0.5) < 240


def test_color_jitter_is_three_enhancements_in_any_order():
    image = PIL.Image.fromarray(noise(9, 11))
    for seed in range(12):
        replay = np.random.default_rng(seed)
        want = image
        for i in replay.permutation(3):
            kind = (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color)[i]
            want = kind(want).enhance(replay.uniform(0.6, 1.4))
        assert host.color_jitter(image, np.random.default_rng(seed), 0.4).tobytes() == want.tobytes()


def test_randaugment_replaces_color_jitter(monkeypatch):
    monkeypatch.setattr(host, "color_jitter", lambda *_: pytest.fail("jitter beside RandAugment"))
    given = settings(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4)
    image = transforms.train_image(noise(30, 30), np.random.default_rng(0), given, 16, 3)
    assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 40), (50, 50), (333, 47), (7, 9)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_evaluation_resizes_the_shorter_side_and_takes_the_middle(height, width, crop_pct):
    pixels, size = noise(height, width), 32
    shorter = math.floor(size / crop_pct)
    longer = int(shorter * max(height, width) / min(height, width))
    shape = (shorter, longer) if width <= height else (longer, shorter)
    resized = np.asarray(PIL.Image.fromarray(pixels).resize(shape, PIL.Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    processor = transforms.eval_processor(settings(crop_pct=crop_pct), size)
    got = transforms.eval_image(encoded(pixels), processor)
    assert got.dtype == np.uint8
    assert np.array_equal(got, resized[top : top + size, left : left + size])


def test_evaluation_prepares_as_the_processor_of_classify_does():
    processor = transforms.eval_processor(settings(), 32)
    image = PIL.Image.fromarray(noise(50, 70))
    got = transforms.eval_image(encoded(image), processor)
    mean, std = np.float32(SETTINGS["image_mean"]), np.float32(SETTINGS["image_std"])
    assert np.allclose((got.astype(np.float32) / 255 - mean) / std, processor(image)[0], atol=1e-6)


def test_evaluation_refuses_strips_that_would_be_resized_to_gigabytes():
    strip = encoded(PIL.Image.new("L", (70_000, 1)))
    with pytest.raises(ImageError, match="would be resized"):
        transforms.eval_image(strip, transforms.eval_processor(settings(), 32))


def test_evaluation_of_recipes_without_crops_squashes():
    processor = transforms.eval_processor(settings(crop=False), 16)
    pixels = noise(20, 40)
    want = np.asarray(PIL.Image.fromarray(pixels).resize((16, 16), PIL.Image.Resampling.BICUBIC))
    assert np.array_equal(transforms.eval_image(pixels, processor), want)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_pixels_becomes_rgb_or_grey(mode, channels):
    base = PIL.Image.fromarray(noise(12, 10))
    image = base.convert("L").convert("I").convert("I;16") if mode == "I;16" else base.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "I;16", "F") else "PNG"
    pixels = transforms.train_image(encoded(image, kind), np.random.default_rng(0), settings(), 8, channels)
    assert (pixels.shape, pixels.dtype) == ((8, 8, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_taken_as_they_are(channels):
    pixels = noise(5, 6, channels)
    assert np.array_equal(np.asarray(transforms.decode(pixels, channels)).reshape(5, 6, channels), pixels)


def test_photographs_are_turned_upright():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    assert transforms.decode(encoded(noise(20, 40), "JPEG", exif=exif), 3).size == (20, 40)


JPEG = encoded(noise(64, 64), "JPEG")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        JPEG[:40],
        JPEG[: len(JPEG) // 2],
        JPEG[2:],
        encoded(noise(9, 9))[:60],
        b"\xff" * 5000,
        bytes(99),
    ],
    ids=["empty", "text", "header", "half", "headless", "png", "ones", "zeros"],
)
def test_damaged_files_are_image_errors(data):
    with pytest.raises(ImageError, match=r"^The image: (the file is empty|not an image|cannot be read)"):
        transforms.decode(data, 3)


def test_bombs_do_not_go_off(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (33, 100):  # a warning of Pillow's, and an error of Pillow's
        with pytest.raises(ImageError, match=r"^The image: too large to decode safely: .* decompression bomb"):
            transforms.decode(encoded(noise(side, side)), 3)
