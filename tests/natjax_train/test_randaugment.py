"""RandAugment's operations against their definitions, written once more over arrays or Pillow's primitives."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from natjax_train.data.randaugment import Settings, operations_of, parse, rand_augment

FILL = (10, 20, 30)
BILINEAR, BICUBIC = PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC
IMAGE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)).resize((40, 32), BICUBIC)


def affine(*coefficients):
    return [
        IMAGE.transform(IMAGE.size, PIL.Image.Transform.AFFINE, coefficients, r, fillcolor=FILL)
        for r in (BILINEAR, BICUBIC)
    ]


def pixelwise(function):
    return [PIL.Image.fromarray(function(np.asarray(IMAGE).astype(int)).astype(np.uint8))]


def enhanced(kind):
    return [kind(IMAGE).enhance(factor) for factor in (1 - 0.81, 1 + 0.81)]


# At magnitude 9 of 10: what the result may be.
EXPECTED = {
    "AutoContrast": [PIL.ImageOps.autocontrast(IMAGE)],
    "Equalize": [PIL.ImageOps.equalize(IMAGE)],
    "Invert": pixelwise(lambda x: 255 - x),
    "Rotate": [IMAGE.rotate(d, r, fillcolor=FILL) for d in (27, -27) for r in (BILINEAR, BICUBIC)],
    "Posterize": pixelwise(lambda x: x & 0b10000000),  # 4 - int(3.6) bits
    "Solarize": pixelwise(lambda x: np.where(x < 256 - 230, x, 255 - x)),
    "SolarizeAdd": pixelwise(lambda x: np.where(x < 128, np.minimum(255, x + 99), x)),
    "Color": enhanced(PIL.ImageEnhance.Color),
    "Contrast": enhanced(PIL.ImageEnhance.Contrast),
    "Brightness": enhanced(PIL.ImageEnhance.Brightness),
    "Sharpness": enhanced(PIL.ImageEnhance.Sharpness),
    "ShearX": [*affine(1, 0.27, 0, 0, 1, 0), *affine(1, -0.27, 0, 0, 1, 0)],
    "ShearY": [*affine(1, 0, 0, 0.27, 1, 0), *affine(1, 0, 0, -0.27, 1, 0)],
    "TranslateXRel": [*affine(1, 0, 0.405 * 40, 0, 1, 0), *affine(1, 0, -0.405 * 40, 0, 1, 0)],
    "TranslateYRel": [*affine(1, 0, 0, 0, 1, 0.405 * 32), *affine(1, 0, 0, 0, 1, -0.405 * 32)],
}


def same(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1  # 1 - 0.81 and its like round either way


@pytest.mark.parametrize("name", EXPECTED)
def test_increasing_operations(name):
    operation = operations_of(True)[name]
    results = [operation(IMAGE, 0.9, np.random.default_rng(seed), FILL) for seed in range(24)]
    assert all(any(same(result, expected) for expected in EXPECTED[name]) for result in results)
    for expected in EXPECTED[name]:  # each of them does occur
        assert any(same(result, expected) for result in results)
    assert all(result.size == IMAGE.size for result in results)


def test_the_other_variants():
    operations = operations_of(False)
    assert list(operations) == list(EXPECTED)
    rng = np.random.default_rng(0)
    assert same(operations["Posterize"](IMAGE, 0.9, rng, FILL), PIL.ImageOps.posterize(IMAGE, 3))
    assert same(operations["Solarize"](IMAGE, 0.9, rng, FILL), PIL.ImageOps.solarize(IMAGE, 230))
    assert same(operations["Brightness"](IMAGE, 0.5, rng, FILL), IMAGE)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_operation_takes_every_magnitude(name, mode, share):
    fill = FILL if mode == "RGB" else FILL[:1]
    for increasing in (False, True):
        result = operations_of(increasing)[name](IMAGE.convert(mode), share, np.random.default_rng(1), fill)
        assert (result.mode, result.size) == (mode, IMAGE.size)


def test_settings():
    assert parse("rand-m9-mstd0.5-inc1") == Settings(9.0, 0.5, 2, 0.5, True)
    assert parse("rand-n3-m5-p0.8") == Settings(5.0, 0.0, 3, 0.8, False)


@pytest.mark.parametrize("text", ["", "rand-m11", "auto", "rand-m9-q3", "rand-m", "rand-m9-p2", "augmix-m3"])
def test_settings_that_mean_nothing(text):
    with pytest.raises(ValueError, match=r"auto_augment must read like 'rand-m9-mstd0.5-inc1'.*; got "):
        parse(text)


def test_two_operations_are_applied_with_a_probability_of_a_half():
    results = [rand_augment(IMAGE, np.random.default_rng(s), "rand-m9-mstd0.5-inc1", (0.5,) * 3) for s in range(300)]
    untouched = np.mean([result is IMAGE for result in results])
    assert 0.17 < untouched < 0.33
    assert len({result.tobytes() for result in results}) > 100


def test_it_is_the_generators_doing_alone():
    for seed in range(5):
        a, b = (rand_augment(IMAGE, np.random.default_rng(seed), "rand-m9-mstd0.5-inc1", (0.5,) * 3) for _ in range(2))
        assert a.tobytes() == b.tobytes()
