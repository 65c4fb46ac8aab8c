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


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects of an image, and their masks pixel by pixel.

    Attributes:
        detections: boxes, labels and scores, which are NaN where the objects are the truth.
        masks: which pixels of the image are part of each.
    """

    detections: Detections
    masks: Bool[np.ndarray, "K height width"]

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
        from faster_coco_eval import mask  # of the extra "train"

        found = Detections(
            boxes=boxes, scores=np.array(scores, np.float32), labels=np.array(labels, np.int32), size=size
        )
        pixels = np.moveaxis(mask.decode(list(map(dict, masks))), -1, 0) if masks else np.zeros((0, *size))
        return cls(found, pixels.astype(bool))

    def resized(self, size: tuple[int, int]) -> Objects:
        """Returns the same in an image of another (height, width)."""
        old = self.detections.size
        rows, columns = (
            ((np.arange(new) + 0.5) * before / new).astype(int) for new, before in zip(size, old, strict=True)
        )
        factors = np.array([size[1] / old[1], size[0] / old[0]] * 2, np.float32)
        found = dataclasses.replace(self.detections, boxes=self.detections.boxes * factors, size=size)
        return Objects(found, self.masks[:, rows][:, :, columns])

    def drawn_on(self, image: PIL.Image.Image, names: Sequence[str]) -> PIL.Image.Image:
        """Returns a picture of them in their image, see `natjax.detection.pictures.draw`."""
        return draw(image, self.detections, names, masks=self.masks)


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
    pairs = [[found.drawn_on(one.image, names) for found in (one.truth, one.found)] for one in examples]
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
