"""Pictures of detections: masks over the image, boxes, and labels with name and score that stay inside the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from natjax.fonts import fit
from natjax.segmentation.palettes import generated

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8

    from natjax.detection.inference import Detections

_LARGE_ENOUGH, _MOST_PIXELS = 320, 2**22  # shorter side that small images are enlarged to, and how large they get
_LINE, _FONT, _SMALLEST_FONT, _LARGEST_FONT = 1 / 320, 1 / 32, 12, 48  # of the picture's shorter side; pixels
_LONGEST_LABEL, _MOST_CHARACTERS = 20, 100  # times the size of its font; of narrow ones, more do not fit
_DARK, _LIGHT = (16, 18, 22), (255, 255, 255)
_LUMA = (0.299, 0.587, 0.114)
_ELLIPSIS = "..."


class _Box(NamedTuple):
    """A rectangle in pixels: its sides are within."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: _Box) -> float:
        """Returns the area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


def draw(
    image: PIL.Image.Image,
    detections: Detections,
    names: Mapping[int, str] | Sequence[str],
    palette: UInt8[np.ndarray, "L 3"] | None = None,
    opacity: float = 0.45,
    masks: Bool[np.ndarray, "K height width"] | None = None,
) -> PIL.Image.Image:
    """Returns a picture, RGB, of what was found in an image: masks, boxes, and labels as in "person 98%".

    Small images are enlarged by a whole factor, or labels could not be read. What has a higher score is drawn above the rest.

    Args:
        image: upright, of the size of the detections.
        detections: of the image; a label has no score where that is NaN.
        names: of the classes.
        palette: a colour for each class; by default one that is generated, the same for a number of classes.
        opacity: of the masks, 0 to 1.
        masks: which pixels of the image are part of each object; by default the detections' own, where they have any.

    Raises:
        ValueError: image and detections differ in size, or there is not one mask of that size for each.
    """
    if image.size != detections.size[::-1]:
        raise ValueError(
            f"image and detections must be of one size; got {image.height} x {image.width} and "
            f"{' x '.join(map(str, detections.size))} (height x width). natjax.load_image turns a photograph upright."
        )
    expected = (len(detections), *detections.size)
    if masks is not None and masks.shape != expected:
        raise ValueError(f"masks must have the shape {expected}, as the detections have; got {masks.shape}.")
    palette = generated(len(names)) if palette is None else palette
    factor = _factor(image)
    shorter = factor * min(image.size)
    line = max(2, round(shorter * _LINE))
    colours = [tuple(map(int, palette[label])) for label in detections.labels]
    picture = image.convert("RGB")
    if masks is not None or detections.mask_probabilities is not None:
        mask = detections.mask if masks is None else masks.__getitem__
        picture = _with_masks(picture, mask, colours, opacity, -(-line // factor))
    picture = picture.resize((factor * image.width, factor * image.height), PIL.Image.Resampling.NEAREST)
    pen = PIL.ImageDraw.Draw(picture)
    boxes = [_Box(*(factor * box).tolist()) for box in detections.boxes]
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):
        _outline(pen, box, colour, line)
    size = round(min(_LARGEST_FONT, max(_SMALLEST_FONT, shorter * _FONT)))
    texts = [
        (names[label], "" if math.isnan(score) else f"{score:.0%}")
        for label, score in zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    ]
    labels = [_Label(pen, *text, size, picture.width) for text in texts]
    places = _places(labels, boxes, picture.size)
    for label, place, colour in reversed(list(zip(labels, places, colours, strict=True))):
        label.draw(pen, place, colour)
    return picture


def _factor(image: PIL.Image.Image) -> int:
    """Returns by what a small image is enlarged."""
    wanted = -(-_LARGE_ENOUGH // min(image.size))
    return max(1, min(wanted, math.isqrt(_MOST_PIXELS // (image.width * image.height))))


def _with_masks(image, mask_of: Callable[[int], np.ndarray], colours, opacity: float, line: int) -> PIL.Image.Image:
    """Returns an image with masks in their colours, each with a border, whose width is given in pixels."""
    pixels = np.array(image)
    for index in reversed(range(len(colours))):
        mask = mask_of(index)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not rows.size:
            continue
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside, region = mask[part], pixels[part]
        region[inside] = np.rint((1 - opacity) * region[inside] + opacity * np.array(colours[index]))
        region[inside & ~_eroded(inside, line)] = colours[index]
    return PIL.Image.fromarray(pixels)


def _eroded(mask: np.ndarray, line: int) -> np.ndarray:
    """Returns a mask without its outermost pixels."""
    for _ in range(2):  # along rows, then along columns
        padded, mask = np.pad(mask, ((0, 0), (line, line))), mask.copy()
        for shift in range(2 * line + 1):
            mask &= padded[:, shift : shift + mask.shape[1]]
        mask = mask.T
    return mask


def _outline(pen: PIL.ImageDraw.ImageDraw, box: _Box, colour: tuple[int, ...], line: int) -> None:
    """Draws a box, with thin lines on both sides that set it off from what is as dark or as light as itself."""
    edge = -(-line // 4)
    right, bottom = (max(low, high - 1) for low, high in ((box.left, box.right), (box.top, box.bottom)))
    around = box.left - edge, box.top - edge, right + edge, bottom + edge
    pen.rectangle(around, outline=_on(colour), width=line + 2 * edge)
    pen.rectangle((box.left, box.top, right, bottom), outline=colour, width=line)


def _on(colour: tuple[int, ...]) -> tuple[int, ...]:
    """Returns what is legible on a colour."""
    return _DARK if np.dot(colour, _LUMA) > 140 else _LIGHT


class _Label:
    """Name and score as they are drawn: a name that is too long for the picture is shortened.

    Attributes:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, pen: PIL.ImageDraw.ImageDraw, name: str, score: str, size: int, room: int):
        self._margin = max(2, size // 5)
        for length in range(min(len(name), _MOST_CHARACTERS), -1, -1):
            shown = name if length == len(name) else name[:length].rstrip() + _ELLIPSIS
            self._text, self._font = fit(f"{shown} {score}".strip() if length else score, size)
            self.width = math.ceil(pen.textlength(self._text, self._font)) + 2 * self._margin
            if self.width <= min(room, _LONGEST_LABEL * size):
                break
        self.height = size + 2 * self._margin

    def draw(self, pen: PIL.ImageDraw.ImageDraw, place: _Box, colour: tuple[int, ...]) -> None:
        """Draws it on its colour."""
        pen.rectangle((place.left, place.top, place.right - 1, place.bottom - 1), fill=colour)
        middle = (place.top + place.bottom) / 2
        pen.text((place.left + self._margin, middle), self._text, _on(colour), self._font, anchor="lm")


def _places(labels: list[_Label], boxes: list[_Box], size: tuple[int, int]) -> list[_Box]:
    """Returns where labels go: at a corner of their boxes, inside the picture, and where they hide others the least."""
    places: list[_Box] = []
    for label, box in zip(labels, boxes, strict=True):
        width, height = label.width, label.height
        lefts = (box.left, box.right - width)
        tops = (box.top - height, box.top, box.bottom, box.bottom - height)
        candidates = []
        for order, (top, left) in enumerate(itertools.product(tops, lefts)):
            x, y = (
                round(max(0, min(at, side - length)))
                for at, side, length in zip((left, top), size, (width, height), strict=True)
            )
            place = _Box(x, y, x + width, y + height)
            moved = abs(x - left) + abs(y - top) > 1
            candidates.append((sum(map(place.shared, places)), moved, order, place))
        places.append(min(candidates)[-1])
    return places
