"""RandAugment against timm's published definition, written here with Pillow's primitives and plain arithmetic.

Images are [13, 17] pixels, RGB and grey. Operations that draw a sign or an interpolation must equal one of the outcomes that the
definition allows, and reach all of them.
"""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from natjax_train.augment import host, randaugment
from natjax_train.augment.policy import parse
from natjax_train.data import transforms
from natjax_train.recipe import Recipe

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

FILL = (124, 116, 104)
MEAN = (0.485, 0.456, 0.406)
FILTERS = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)
NAMES = [
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
]
LEVELS = (0.0, 2.5, 8.3, 9.0, 10.0)


def picture(mode="RGB"):
    pixels = np.random.default_rng(3).integers(20, 230, (13, 17, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def affine(image, fill, matrix):
    return [image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, f, fillcolor=fill) for f in FILTERS]


def by_table(image, function):
    return PIL.Image.fromarray(np.array([function(i) for i in range(256)], np.uint8)[np.asarray(image)])


def allowed(name, image, level, fill):
    """Returns every outcome that the definition of an increasing operation allows at a level of 0 to 10."""
    share, (width, height) = level / 10, image.size
    if name in ("AutoContrast", "Equalize", "Invert"):
        return [getattr(PIL.ImageOps, name.lower())(image)]
    if name == "Posterize":
        bits = 4 - int(share * 4)
        return [by_table(image, lambda i: i & (0xFF << (8 - bits)) & 0xFF)]
    if name == "Solarize":
        threshold = 256 - min(256, int(share * 256))
        return [by_table(image, lambda i: i if i < threshold else 255 - i)]
    if name == "SolarizeAdd":
        more = min(128, int(share * 110))
        return [by_table(image, lambda i: min(255, i + more) if i < 128 else i)]
    outcomes = []
    for sign in (1, -1):
        if name in ("Color", "Contrast", "Brightness", "Sharpness"):
            outcomes.append(getattr(PIL.ImageEnhance, name)(image).enhance(max(0.1, 1 + sign * share * 0.9)))
        elif name == "Rotate":
            outcomes += [image.rotate(sign * share * 30, f, fillcolor=fill) for f in FILTERS]
        elif name == "ShearX":
            outcomes += affine(image, fill, (1, sign * share * 0.3, 0, 0, 1, 0))
        elif name == "ShearY":
            outcomes += affine(image, fill, (1, 0, 0, sign * share * 0.3, 1, 0))
        elif name == "TranslateXRel":
            outcomes += affine(image, fill, (1, 0, sign * share * 0.45 * width, 0, 1, 0))
        elif name == "TranslateYRel":
            outcomes += affine(image, fill, (1, 0, 0, 0, 1, sign * share * 0.45 * height))
    return outcomes


def test_there_are_timms_fifteen_operations():
    assert sorted(randaugment.operations_of(True)) == sorted(NAMES)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", NAMES)
def test_operation_is_timms(name, mode):
    image, fill = picture(mode), FILL if mode == "RGB" else FILL[:1]
    for level in LEVELS:
        expected = {outcome.tobytes() for outcome in allowed(name, image, level, fill)}
        operation = randaugment.operations_of(True)[name]
        got = [operation(image, level / 10, np.random.default_rng(seed), fill) for seed in range(60)]
        assert {g.tobytes() for g in got} == expected
        assert {(g.mode, g.size) for g in got} == {(mode, image.size)}


def test_recipe_is_read():
    settings = parse("rand-m9-mstd0.5-inc1")
    assert (settings.magnitude, settings.deviation, settings.layers) == (9, 0.5, 2)
    assert (settings.probability, settings.increasing) == (0.5, True)
    assert parse("rand-m5-n3").layers == 3


@pytest.mark.parametrize(("first", "interpolation"), [(0, "bilinear"), (1, "bicubic")])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_a_fixed_interpolation_is_that_of_geometric_operations(name, first, interpolation):
    image, operation = picture(), randaugment.operations_of(True, interpolation)[name]
    expected = {outcome.tobytes() for outcome in allowed(name, image, 8.3, FILL)[first::2]}
    assert {operation(image, 0.83, np.random.default_rng(seed), FILL).tobytes() for seed in range(60)} == expected


def test_recipes_interpolation_reaches_randaugment(monkeypatch):
    seen = []
    monkeypatch.setattr(host, "rand_augment", lambda image, *given: seen.append(given[-1]) or image)
    recipe = Recipe(model="nat_mini", train_interpolation="bicubic")
    transforms.train_image(np.asarray(picture()), np.random.default_rng(0), recipe, 8, 3)
    assert seen == ["bicubic"]


@pytest.mark.parametrize("text", ["", "rand-m11", "rand-mx", "augmix-m3", "rand-m9-inc1-what2", "rand-p2", "rand-m-9"])
def test_what_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match="auto_augment must be empty or read like"):
        parse(text)


def spy(monkeypatch):
    """Replaces the operations by ones that note name and magnitude, and draw as many numbers."""
    seen = []

    def note(name):
        def operation(image, share, rng, fill):
            seen.append((name, 10 * share, fill))
            return image

        return operation

    monkeypatch.setattr(randaugment, "operations_of", lambda *_: {name: note(name) for name in NAMES})
    return seen


def test_operations_are_drawn_uniformly_with_replacement_and_half_are_applied(monkeypatch):
    seen, image, runs, pairs = spy(monkeypatch), picture(), 3000, 0
    rng = np.random.default_rng(0)
    for _ in range(runs):
        before = len(seen)
        randaugment.rand_augment(image, rng, "rand-m9-mstd0.5-inc1", MEAN)
        pairs += len(seen) - before == 2 and seen[-1][0] == seen[-2][0]
    assert abs(len(seen) - runs) < 4 * np.sqrt(runs / 2)  # two of probability 1/2
    counts = np.array([sum(name == n for n, *_ in seen) for name in NAMES])
    assert np.sum((counts - runs / 15) ** 2 / (runs / 15)) < 45  # chi squared of 14 degrees: p < 5e-5
    assert pairs > 0


def test_magnitudes_are_normal_and_clipped(monkeypatch):
    seen = spy(monkeypatch)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        randaugment.rand_augment(picture(), rng, "rand-m9-mstd0.5-inc1", MEAN)
    levels = np.array([level for _, level, _ in seen])
    assert levels.max() == pytest.approx(10)
    assert np.mean(levels > 9.999) == pytest.approx(0.0228, abs=0.015)  # beyond two deviations
    assert np.median(levels) == pytest.approx(9, abs=0.05)
    assert np.std(levels) == pytest.approx(0.5, abs=0.05)


def test_no_deviation_no_variation(monkeypatch):
    seen = spy(monkeypatch)
    randaugment.rand_augment(picture(), np.random.default_rng(0), "rand-m7-n40-inc1", MEAN)
    assert {round(level, 9) for _, level, _ in seen} == {7.0}


@pytest.mark.parametrize(
    ("mode", "mean", "fill"),
    [("RGB", MEAN, FILL), ("RGB", (0.5,), (128,) * 3), ("L", (0.5,), (128,)), ("RGB", (1.0, 1.0, 1.0), (255,) * 3)],
)
def test_fill_is_the_mean_pixel(monkeypatch, mode, mean, fill):
    seen = spy(monkeypatch)
    randaugment.rand_augment(picture(mode), np.random.default_rng(0), "rand-m9-n20-inc1", mean)
    assert {f for *_, f in seen} == {fill}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_one_seed_one_image(mode):
    def run(seed):
        rng = np.random.default_rng(seed)
        return randaugment.rand_augment(picture(mode), rng, "rand-m9-mstd0.5-inc1", MEAN).tobytes()

    assert [run(s) for s in range(8)] == [run(s) for s in range(8)]
    assert len({run(s) for s in range(20)}) > 8


def test_smallest_image():
    one = PIL.Image.new("RGB", (1, 1), (3, 200, 90))
    for operation in randaugment.operations_of(True).values():
        assert operation(one, 0.9, np.random.default_rng(0), FILL).size == (1, 1)
