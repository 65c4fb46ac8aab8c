"""Pictures of class maps: coloured maps, overlays over the image, and a legend of names, colours and shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw

from natjax.fonts import fit

if TYPE_CHECKING:
    from jaxtyping import Array, Float64, Integer, UInt8

_PAPER, _INK, _PALE = (255, 255, 255), (32, 36, 44), (110, 116, 128)
_FONT, _SMALLEST_FONT, _LARGEST_FONT = 1 / 30, 13, 28  # of the picture's height; pixels
_LONGEST_NAME = 40  # characters


def coloured(class_map: Integer[Array | np.ndarray, "H W"], palette: UInt8[np.ndarray, "L 3"]) -> PIL.Image.Image:
    """Returns a class map as an image of mode P: its pixels are the class indices, its palette their colours.

    Indices beyond the palette, such as 255 of ignored pixels, are black. Saved as PNG it is a mask to train on as well. With
    more than 256 classes it is RGB, since mode P has 8 bits.

    Args:
        class_map: class indices.
        palette: a colour for each class.
    """
    class_map = np.asarray(class_map)
    if len(palette) > 256:
        return PIL.Image.fromarray(_colours(class_map, palette))
    image = PIL.Image.fromarray(class_map.astype(np.uint8)).convert("P")  # "L" to "P" keeps the values
    image.putpalette(np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)]).tobytes())
    return image


def overlay(
    image: PIL.Image.Image,
    class_map: Integer[np.ndarray, "H W"],
    palette: UInt8[np.ndarray, "L 3"],
    opacity: float = 0.55,
) -> PIL.Image.Image:
    """Returns an image, RGB, with the colours of its classes over it.

    Args:
        image: of the size of the class map.
        class_map: class indices.
        palette: a colour for each class.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: image and class map differ in size.
    """
    if image.size != class_map.shape[::-1]:
        size = f"{image.size[1]} x {image.size[0]}"
        raise ValueError(
            f"image and class map must be of one size; got {size} and {' x '.join(map(str, class_map.shape))}."
        )
    return PIL.Image.blend(image.convert("RGB"), PIL.Image.fromarray(_colours(class_map, palette)), opacity)


def shares(class_map: Integer[np.ndarray, "H W"], num_labels: int) -> Float64[np.ndarray, "L"]:
    """Returns which part of the pixels each class has; they sum to 1 where every pixel is of a class below `num_labels`."""
    return np.bincount(class_map.ravel(), minlength=num_labels)[:num_labels] / class_map.size


def with_legend(
    image: PIL.Image.Image,
    part: Float64[np.ndarray, "L"],
    palette: UInt8[np.ndarray, "L 3"],
    names: Mapping[int, str] | Sequence[str],
) -> PIL.Image.Image:
    """Returns a picture with a legend beside it: colour, name and share of the classes that are there, the largest first.

    Args:
        image: the picture.
        part: share of each class, see `shares`.
        palette: a colour for each class.
        names: name of each class.
    """
    size = round(min(_LARGEST_FONT, max(_SMALLEST_FONT, image.height * _FONT)))
    line, gap = round(1.6 * size), size // 2
    present = [int(i) for i in np.argsort(-part, kind="stable") if part[i] > 0]
    texts = [(i, *fit(_shortened(names[i]), size), *fit(percent(part[i]), size)) for i in present]
    pen = PIL.ImageDraw.Draw(PIL.Image.new("L", (1, 1)))
    name_width = max((round(pen.textlength(text, font)) for _, text, font, *_ in texts), default=0)
    share_width = max((round(pen.textlength(text, font)) for *_, text, font in texts), default=0)
    column = line + gap + name_width + 2 * gap + share_width + 2 * gap
    per_column = max(min(len(texts), 12), (image.height - gap) // line)
    columns = -(-len(texts) // per_column)
    height = max(image.height, gap + line * min(len(texts), per_column))
    picture = PIL.Image.new("RGB", (image.width + 2 * gap + columns * column, height), _PAPER)
    picture.paste(image.convert("RGB"), (0, 0))
    pen = PIL.ImageDraw.Draw(picture)
    for place, (index, name, font, share, share_font) in enumerate(texts):
        x = image.width + 2 * gap + place // per_column * column
        y = gap + place % per_column * line
        box = (x, y, x + line - 1, y + line - gap)
        pen.rectangle(box, fill=tuple(map(int, palette[index])), outline=_PALE)
        middle = (y + y + line - gap) / 2
        pen.text((x + line + gap, middle), name, _INK, font, anchor="lm")
        pen.text((x + column - 2 * gap, middle), share, _PALE, share_font, anchor="rm")
    return picture


def percent(share: float) -> str:
    """Returns a share in percent; one that is there but rounds to nothing is "<0.1%"."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _colours(class_map: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Returns the colours of a class map, uint8 [H, W, 3]; black where an index is beyond the palette."""
    table = np.concatenate([palette, np.zeros((1, 3), np.uint8)])
    return table[np.minimum(class_map.astype(int), len(palette))]
