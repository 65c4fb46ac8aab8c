"""Augmentation of images with masks, as mmsegmentation defines it."""

import colorsys
import dataclasses
import itertools
import types

import numpy as np
import PIL.Image
import pytest

from natjax.opencv_resizing import resize
from natjax_train.augment.masks import augment, crop_position, distort, nearest, resize_nearest
from natjax_train.augment.settings import MaskSettings

pytestmark = pytest.mark.once

SETTINGS = MaskSettings()
PLAIN = dataclasses.replace(SETTINGS, photometric=False, cat_max_ratio=1.0)


def blocks(height, width, seed=0, block=8):
    """Returns an image whose grey is 60 times the class, and the mask of its classes, in blocks."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, (-(-height // block), -(-width // block))).astype(np.uint8)
    mask = np.kron(classes, np.ones((block, block), np.uint8))[:height, :width]
    return PIL.Image.fromarray(np.repeat(60 * mask[..., None], 3, -1)), mask


def test_nearest_is_opencvs():
    mask = np.arange(10, dtype=np.uint8)[None].repeat(3, 0)
    assert resize_nearest(mask, (3, 4))[0].tolist() == [0, 2, 5, 7]
    assert resize_nearest(mask, (1, 20))[0].tolist() == [i // 2 for i in range(20)]
    assert nearest(6, 34)[17] == 2  # 17 * 6 / 34 is 3, but not in OpenCV's floats


@pytest.mark.parametrize("seed", range(8))
def test_masks_stay_with_their_images(seed):
    """Two pixels and more within a class, image and mask agree after scale, crop and flip."""
    image, mask = augment(*blocks(240, 180, seed, block=24), np.random.default_rng(seed), PLAIN, 0.5, 64)
    grey = np.asarray(image)[..., 0]
    assert grey.shape == mask.shape
    assert max(mask.shape) <= 64
    same = np.ones_like(mask, bool)
    for step in itertools.product(range(-2, 3), range(-2, 3)):
        same &= np.roll(mask, step, (0, 1)) == mask
    same[[0, 1, -2, -1]] = same[:, [0, 1, -2, -1]] = False
    assert same.sum() > 100
    np.testing.assert_array_equal(grey[same], 60 * mask[same])


def test_scale_crop_and_flip_follow_the_random_numbers():
    image, mask = blocks(128, 128)
    numbers = iter([1.0])  # the factor
    places = iter([10, 20])
    rng = types.SimpleNamespace(uniform=lambda *_: next(numbers), integers=lambda *_: next(places), random=lambda: 0.1)
    settings = dataclasses.replace(PLAIN, longest_edge=128)
    small, found = augment(*blocks(128, 128), rng, settings, 0.5, 64)
    half = resize_nearest(mask, (64, 64))
    np.testing.assert_array_equal(found, half[10:, 20:][:, ::-1])
    np.testing.assert_array_equal(np.asarray(small), resize(np.asarray(image), (64, 64))[10:, 20:][:, ::-1])


def test_crops_without_a_class_that_fills_them():
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 96:] = 1
    mask[:, :32] = 255  # which does not count
    for seed in range(20):
        top, left = crop_position(mask, np.random.default_rng(seed), 32, 0.75)
        part = mask[top : top + 32, left : left + 32]
        share = np.bincount(part[part != 255], minlength=2).max() / max(1, (part != 255).sum())
        tries = np.random.default_rng(seed)
        drawn = [(int(tries.integers(33)), int(tries.integers(97))) for _ in range(11)]
        assert (top, left) in drawn
        if (top, left) != drawn[-1]:
            assert share < 0.75
        first = crop_position(mask, np.random.default_rng(seed), 32, 1.0)
        assert first == drawn[0]


def colour(rgb):
    return PIL.Image.new("RGB", (2, 2), rgb)


def scripted(randoms, uniforms=(), integers=()):
    randoms, uniforms, integers = iter(randoms), iter(uniforms), iter(integers)
    return types.SimpleNamespace(
        random=lambda: next(randoms), uniform=lambda *_: next(uniforms), integers=lambda *_: next(integers)
    )


def test_brightness_and_contrast():
    after = distort(colour((10, 100, 250)), scripted([0.1, 0.9, 0.9, 0.9], [20.7], [0]))
    assert after.getpixel((0, 0)) == (30, 120, 255)
    # Contrast second, before the saturation.
    after = distort(colour((10, 100, 250)), scripted([0.9, 0.1, 0.9, 0.9], [1.5], [1]))
    assert after.getpixel((0, 0)) == (15, 150, 255)
    # Brightness first and contrast last.
    after = distort(colour((10, 100, 250)), scripted([0.1, 0.9, 0.9, 0.1], [-20.0, 0.5], [0]))
    assert after.getpixel((0, 0)) == (0, 40, 115)


def test_saturation_and_hue():
    rgb = (200, 100, 60)
    after = distort(colour(rgb), scripted([0.9, 0.1, 0.1, 0.9], [0.5], [0, 15])).getpixel((0, 0))
    hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in rgb))
    expected = colorsys.hsv_to_rgb(hue + 30 / 360, saturation / 2, value)
    np.testing.assert_allclose(after, np.array(expected) * 255, atol=3)  # hue and saturation have 8 bits


def test_grey_images_keep_their_mode():
    image = PIL.Image.new("L", (4, 4), 100)
    assert distort(image, scripted([0.1, 0.1, 0.1, 0.9], [10.0, 0.5], [0, 5])).getpixel((0, 0)) == 110


def test_the_same_generator_gives_the_same():
    image, mask = blocks(100, 80)
    one, two = (augment(image, mask, np.random.default_rng((0, 1, 2)), SETTINGS, 0.5, 48) for _ in range(2))
    assert one[0].tobytes() == two[0].tobytes()
    np.testing.assert_array_equal(one[1], two[1])
    other = augment(image, mask, np.random.default_rng((0, 2, 2)), SETTINGS, 0.5, 48)
    assert other[0].size != one[0].size or other[0].tobytes() != one[0].tobytes()
