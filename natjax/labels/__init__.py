"""Class names of ImageNet, ADE20K, Cityscapes and COCO by class index (see README.md here), and how names compare."""

from __future__ import annotations

import functools
import gzip
import unicodedata
from pathlib import Path

_FOLDER = Path(__file__).parent


@functools.cache
def imagenet_1k() -> tuple[str, ...]:
    """Returns the 1000 names as Hugging Face's `id2label` has them: "tabby, tabby cat" is class 281."""
    return tuple((_FOLDER / "imagenet-1k.txt").read_text(encoding="utf-8").splitlines())


@functools.cache
def imagenet_22k() -> tuple[str, ...]:
    """Returns the 21841 names, in the order of their WordNet ids."""
    packed = (_FOLDER / "imagenet-22k.txt.gz").read_bytes()
    return tuple(gzip.decompress(packed).decode("utf-8").splitlines())


@functools.cache
def ade20k() -> tuple[str, ...]:
    """Returns the 150 names of ADE20K's scene parsing benchmark: "wall" is class 0. Their colours are in natjax.segmentation."""
    return _of_palette("ade20k")


@functools.cache
def cityscapes() -> tuple[str, ...]:
    """Returns the 19 names of Cityscapes' evaluation: "road" is class 0. Their colours are in natjax.segmentation."""
    return _of_palette("cityscapes")


@functools.cache
def coco() -> tuple[str, ...]:
    """Returns the 80 names of COCO's objects (2017): "person" is class 0."""
    return tuple((_FOLDER / "coco.txt").read_text(encoding="utf-8").splitlines())


def _of_palette(name: str) -> tuple[str, ...]:
    lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.split(maxsplit=3)[3] for line in lines)


def composed(name: str) -> str:
    """Returns a class's name in Unicode's composed form (NFC): macOS and some archives keep "é" as "e" and an accent."""
    return unicodedata.normalize("NFC", name)
