"""RandAugment (arXiv 1909.13719) as timm defines it: "rand-m9-mstd0.5-inc1" and its like, on Pillow images.

Of 15 operations, `n` are drawn with replacement, and each is applied with probability `p` at magnitude `m`, which varies normally
by `mstd` within 0 to 10. `inc1` picks the variants whose effect grows with the magnitude. Geometric operations resample as the
recipe's `train_interpolation` says, bilinearly or bicubically at random by default; what they leave empty has the colour of the
mean pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

from natjax_train.augment.policy import LARGEST_MAGNITUDE, parse

_SHIFT = 0.45  # of the image's side, at the largest magnitude
RESAMPLING = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}


def rand_augment(
    image: PIL.Image.Image,
    rng: np.random.Generator,
    text: str,
    mean: Sequence[float],
    interpolation: str = "random",
) -> PIL.Image.Image:
    """Returns the image after a random few of the operations.

    Args:
        image: RGB or grey.
        rng: the image's own.
        text: see `natjax_train.augment.policy`.
        mean: per channel, of pixels 0..1; the colour of what is empty.
        interpolation: of geometric operations, see `resampling`.
    """
    settings = parse(text)
    fill = tuple(min(255, round(255 * x)) for x in mean)
    fill = fill[:1] if image.mode == "L" else (fill * 3)[:3]
    operations = operations_of(settings.increasing, interpolation)
    for name in rng.choice(list(operations), settings.layers):
        if rng.random() < settings.probability:
            magnitude = float(np.clip(rng.normal(settings.magnitude, settings.deviation), 0, LARGEST_MAGNITUDE))
            image = operations[name](image, magnitude / LARGEST_MAGNITUDE, rng, fill)
    return image


def resampling(interpolation: str, rng: np.random.Generator) -> PIL.Image.Resampling:
    """Returns Pillow's filter of "bilinear", "bicubic" or, of these, a "random" one."""
    return RESAMPLING[rng.choice(list(RESAMPLING)) if interpolation == "random" else interpolation]


Operation = Callable[[PIL.Image.Image, float, np.random.Generator, tuple[int, ...]], PIL.Image.Image]


def _posterize(image: PIL.Image.Image, bits: int) -> PIL.Image.Image:
    # No bits at all leave a black image, which Pillow refuses to make.
    return PIL.ImageOps.posterize(image, bits) if bits else image.point(lambda _: 0)


def _solarize_add(image: PIL.Image.Image, amount: int) -> PIL.Image.Image:
    table = [min(255, i + amount) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _affine(image, interpolation, rng, fill, *coefficients):
    resample = resampling(interpolation, rng)
    return image.transform(image.size, PIL.Image.Transform.AFFINE, coefficients, resample, fillcolor=fill)


def _rotate(image, share, interpolation, rng, fill):
    degrees = _either_sign(30 * share, rng)
    return image.rotate(degrees, resampling(interpolation, rng), fillcolor=fill)


def _either_sign(x: float, rng: np.random.Generator) -> float:
    return x if rng.random() < 0.5 else -x


def _enhance(kind, increasing: bool) -> Operation:
    def apply(image, share, rng, fill):
        factor = max(0.1, 1 + _either_sign(0.9 * share, rng)) if increasing else 0.1 + 1.8 * share
        return kind(image).enhance(factor)

    return apply


@functools.cache
def operations_of(increasing: bool, interpolation: str = "random") -> dict[str, Operation]:
    """Returns the 15 operations by timm's names: functions of image, share of the largest magnitude, generator, fill colour."""
    enhance = functools.partial(_enhance, increasing=increasing)
    return {
        "AutoContrast": lambda image, *_: PIL.ImageOps.autocontrast(image),
        "Equalize": lambda image, *_: PIL.ImageOps.equalize(image),
        "Invert": lambda image, *_: PIL.ImageOps.invert(image),
        "Rotate": lambda image, share, rng, fill: _rotate(image, share, interpolation, rng, fill),
        "Posterize": lambda image, share, *_: _posterize(image, 4 - int(4 * share) if increasing else int(4 * share)),
        "Solarize": lambda image, share, *_: PIL.ImageOps.solarize(
            image, 256 - int(256 * share) if increasing else int(256 * share)
        ),
        "SolarizeAdd": lambda image, share, *_: _solarize_add(image, min(128, int(110 * share))),
        "Color": enhance(PIL.ImageEnhance.Color),
        "Contrast": enhance(PIL.ImageEnhance.Contrast),
        "Brightness": enhance(PIL.ImageEnhance.Brightness),
        "Sharpness": enhance(PIL.ImageEnhance.Sharpness),
        "ShearX": lambda image, share, rng, fill: _affine(
            image, interpolation, rng, fill, 1, _either_sign(0.3 * share, rng), 0, 0, 1, 0
        ),
        "ShearY": lambda image, share, rng, fill: _affine(
            image, interpolation, rng, fill, 1, 0, 0, _either_sign(0.3 * share, rng), 1, 0
        ),
        "TranslateXRel": lambda image, share, rng, fill: _affine(
            image, interpolation, rng, fill, 1, 0, _either_sign(_SHIFT * share, rng) * image.size[0], 0, 1, 0
        ),
        "TranslateYRel": lambda image, share, rng, fill: _affine(
            image, interpolation, rng, fill, 1, 0, 0, 0, 1, _either_sign(_SHIFT * share, rng) * image.size[1]
        ),
    }
