"""Pictures of a few validation images: what is true of them beside what a model makes of them.

Drawn with Pillow alone, on white. Colours are RGB.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from natjax.detection.inference import Detections
from natjax.detection.pictures import draw
from natjax.fonts import fit
from natjax_train.plots import GREY, INK, ORANGE, PAPER, label_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, UInt8

_OUTSIDE, _IGNORED = 254, 255  # in class maps: beyond the image, and pixels that do not count
_GAP, _TOP = 16, 56  # pixels between pictures, and above them
_SHORTER, _LONGER = 320, 640  # pixels of the sides of an image with objects


def draw_segmentations(
    examples: Mapping[str, np.ndarray],
    names: Sequence[str],
    palette: UInt8[np.ndarray, "L 3"],
    out_png: str | os.PathLike,
) -> None:
    """Draws a few images: each with its mask, the classes that a model gives its pixels, and the wrong ones in orange.

    Ignored pixels are black in masks and white among the errors.

    Args:
        examples: uint8 "image" [N, T, T, C], "truth" and "predicted" [N, T, T] of class numbers, 254 beyond the image.
        names: of the classes.
        palette: their colours.
        out_png: the picture.

    Raises:
        OSError: the picture cannot be written.
    """
    if not examples:
        return
    images, truth, predicted = (examples[name] for name in ("image", "truth", "predicted"))
    colours = np.concatenate([palette, np.zeros((256 - len(names), 3), np.uint8)])
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    faint = np.uint8(255 - (255 - images.mean(-1, keepdims=True)) * 0.35) * np.ones(3, np.uint8)
    ignored, wrong = (truth == _IGNORED)[..., None], (truth != predicted)[..., None]
    errors = np.where(ignored, PAPER, np.where(wrong, ORANGE, faint))
    outside = (truth == _OUTSIDE)[..., None]
    columns = {"image": images, "mask": colours[truth], "model": colours[predicted], "errors": errors}
    side, gap, top = truth.shape[1], _GAP, _TOP
    present = [i for i in np.unique(np.stack([truth, predicted])).tolist() if i < len(names)]
    texts = [label_of(i, str(names[i]), 16) for i in present]
    width = gap + len(columns) * (side + gap)
    places, x, y = [], gap, top + len(truth) * (side + gap) + 14
    for text in texts:  # a legend in as many lines as it takes
        length = 30 + int(fit(text, 16)[1].getlength(text)) + 22
        x, y = (gap, y + 30) if x + length > width else (x, y)
        places.append((x, y))
        x += length
    picture = PIL.Image.new("RGB", (width, y + 44), PAPER)
    pen = PIL.ImageDraw.Draw(picture)
    for column, (title, pixels) in enumerate(columns.items()):
        left = gap + column * (side + gap)
        pen.text((left, 18), *_fitted(title, 20, INK))
        for row, array in enumerate(np.where(outside, PAPER, pixels).astype(np.uint8)):
            picture.paste(PIL.Image.fromarray(array), (left, top + row * (side + gap)))
    for i, text, (x, y) in zip(present, texts, places, strict=True):
        pen.rectangle((x, y, x + 20, y + 20), tuple(colours[i].tolist()), GREY)
        pen.text((x + 30, y), *_fitted(text, 16, INK))
    picture.save(out_png)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects(Detections):
    """Objects of an image whose masks are known pixel by pixel; scores are NaN where they are the truth.

    Attributes:
        pixels: the masks.
    """

    pixels: Bool[np.ndarray, "K height width"]

    @classmethod
    def from_run_lengths(
        cls,
        size: tuple[int, int],
        boxes: Float32[np.ndarray, "K 4"],
        scores: Sequence[float],
        labels: Sequence[int],
        masks: Sequence[Mapping[str, Any]],
    ) -> Objects:
        """Returns the objects of an image whose masks are COCO's run lengths; size is its (height, width)."""
        from pycocotools import mask  # of the extra "train"

        pixels = np.moveaxis(mask.decode(list(masks)), -1, 0) if masks else np.zeros((0, *size))
        return cls(
            boxes=boxes,
            scores=np.array(scores, np.float32),
            labels=np.array(labels, np.int32),
            size=size,
            pixels=pixels.astype(bool),
        )

    @property
    def has_masks(self) -> bool:
        """Whether there are masks."""
        return True

    def mask(self, index: int) -> Bool[np.ndarray, "height width"]:
        """Returns which pixels of the image are part of an object."""
        return self.pixels[index]

    def resized(self, size: tuple[int, int]) -> Objects:
        """Returns the same in an image of another (height, width)."""
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, self.size, strict=True)
        )
        factors = np.array([size[1] / self.size[1], size[0] / self.size[0]] * 2, np.float32)
        return dataclasses.replace(
            self, boxes=self.boxes * factors, pixels=self.pixels[:, rows][:, :, columns], size=size
        )


@dataclasses.dataclass(frozen=True)
class Example:
    """An image, its objects, and those that a model finds."""

    image: PIL.Image.Image
    truth: Objects
    found: Objects

    def reduced(self) -> Example:
        """Returns the same in an image as large as it is drawn: its shorter side has 320 pixels, its longer one 640 at most."""
        factor = min(_SHORTER / min(self.image.size), _LONGER / max(self.image.size))
        width, height = (max(1, round(side * factor)) for side in self.image.size)
        return Example(
            self.image.resize((width, height)), self.truth.resized((height, width)), self.found.resized((height, width))
        )


def draw_objects(examples: Sequence[Example], names: Sequence[str], out_png: str | os.PathLike) -> None:
    """Draws a few images: each with its objects, and with those that a model finds in it.

    Args:
        examples: of the images.
        names: of the classes.
        out_png: the picture.

    Raises:
        OSError: the picture cannot be written.
    """
    if not examples:
        return
    pairs = [[draw(one.image, found, names) for found in (one.truth, one.found)] for one in examples]
    width = max(picture.width for pair in pairs for picture in pair)
    height = sum(truth.height + _GAP for truth, _ in pairs)
    whole = PIL.Image.new("RGB", (3 * _GAP + 2 * width, _TOP + height), PAPER)
    pen = PIL.ImageDraw.Draw(whole)
    for column, title in enumerate(("truth", "model")):
        left, top = _GAP + column * (width + _GAP), _TOP
        pen.text((left, 18), *_fitted(title, 20, INK))
        for pair in pairs:
            whole.paste(pair[column], (left, top))
            top += pair[column].height + _GAP
    whole.save(out_png)


def _fitted(text: str, size: int, colour: tuple[int, int, int]) -> tuple[str, tuple[int, int, int], Any]:
    text, font = fit(text, size)
    return text, colour, font
