"""Palettes: a colour for every class. Those of ADE20K and Cityscapes, generated ones, and palettes of files.

A palette file is text with one class a line, in the order of the classes: a colour, `120 120 120` or `#787878`, and, where
wanted, a name behind it. Blank lines and lines that begin with "# " are skipped. A PNG with a palette is a palette file too.
"""

from __future__ import annotations

import colorsys
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL.Image

from natjax import labels
from natjax.text import did_you_mean

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from natjax.configuration import UperNetConfig

PUBLISHED = {150: "ade20k", 19: "cityscapes"}  # by number of classes
_PNG = b"\x89PNG\r\n\x1a\n"
_GOLDEN_RATIO = 0.618034
_FORMAT = "A line is `r g b name` or `#rrggbb name`, with 0 to 255; the name may be left out."


class Palette(NamedTuple):
    """Colours and names of classes.

    Attributes:
        colours: uint8 [L, 3], red, green and blue.
        names: L names, "" where a class has none.
    """

    colours: UInt8[np.ndarray, "L 3"]
    names: tuple[str, ...]


def load_palette(source: str | os.PathLike) -> Palette:
    """Returns the palette of a name, "ade20k" or "cityscapes", or of a file.

    Raises:
        ValueError: there is no palette of this name, or the file is none.
        OSError: the file cannot be read.
    """
    if source in PUBLISHED.values():
        return _published(os.fspath(source))
    if not Path(source).exists():
        known = " or ".join(sorted(PUBLISHED.values()))
        hint = did_you_mean(os.fspath(source), PUBLISHED.values())
        raise ValueError(f"{source}: there is no palette or file of this name; a palette is {known}, or a file.{hint}")
    return read_palette(source)


def palette_for(num_labels: int, source: str | os.PathLike | None = None) -> UInt8[np.ndarray, "L 3"]:
    """Returns a colour for each class of a model, uint8 [num_labels, 3].

    Args:
        num_labels: of the model.
        source: see `load_palette`. None takes that of ADE20K for 150 classes, that of Cityscapes for 19, else a generated one.

    Raises:
        ValueError: the palette has fewer colours, or there is none.
        OSError: the file cannot be read.
    """
    source = PUBLISHED.get(num_labels) if source is None else source
    if source is None:
        return generated(num_labels)
    colours = load_palette(source).colours
    if len(colours) < num_labels:
        raise ValueError(
            f"the palette {source} has {len(colours)} colours, the model {num_labels} classes. Give a palette of at least as "
            "many, or none: one is generated."
        )
    return colours[:num_labels].copy()


def palette_of(config: UperNetConfig) -> UInt8[np.ndarray, "L 3"]:
    """Returns a colour for each class of a model: its files' own, as mmsegmentation's have them, else those of `palette_for`."""
    own = _own_palette(config)
    return palette_for(config.num_labels or 0) if own is None else own


def _own_palette(config: UperNetConfig) -> UInt8[np.ndarray, "L 3"] | None:
    """Returns the colours in a model's files; None where there are none that fit."""
    colours = config.extra.get("palette")
    if not isinstance(colours, list | tuple) or len(colours) != config.num_labels:
        return None
    if not all(isinstance(colour, list | tuple) and len(colour) == 3 for colour in colours):
        return None
    if not all(type(value) is int and 0 <= value <= 255 for colour in colours for value in colour):
        return None
    return np.array(colours, np.uint8)


def generated(num_labels: int) -> UInt8[np.ndarray, "L 3"]:
    """Returns distinct colours for any number of classes up to 4096, uint8 [num_labels, 3], the same in every call.

    The hue advances by the golden ratio, so that neighbouring classes differ most; brightness and saturation cycle.

    Raises:
        ValueError: there are no or too many classes.
    """
    if not 1 <= num_labels <= 4096:
        raise ValueError(f"A palette is generated for 1 to 4096 classes; got {num_labels}.")
    colours: dict[tuple[int, ...], None] = {}
    i = 0
    while len(colours) < num_labels:
        saturation, value = (0.75, 0.5, 1.0)[i % 3], (0.95, 0.75, 0.55)[i // 3 % 3]
        rgb = colorsys.hsv_to_rgb((0.02 + i * _GOLDEN_RATIO) % 1, saturation, value)
        colours[tuple(round(255 * part) for part in rgb)] = None
        i += 1
    return np.array(list(colours), np.uint8)


def read_palette(path: str | os.PathLike) -> Palette:
    """Reads a palette file.

    Raises:
        ValueError: it is no palette; the message names the line.
        OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    if data.startswith(_PNG):
        return _of_png(path)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a palette: it is neither text nor a PNG. {_FORMAT}") from error
    colours, names = [], []
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()) or line == "#" or line.startswith("# "):
            continue
        colour, name = _parsed(line) or (None, "")
        if colour is None:
            raise ValueError(f"{path}, line {number}: not a colour: {line[:60]!r}. {_FORMAT}")
        colours.append(colour)
        names.append(labels.composed(name))
    if not colours:
        raise ValueError(f"{path}: not a palette: there is no colour in it. {_FORMAT}")
    return Palette(np.array(colours, np.uint8), tuple(names))


@functools.cache
def _published(name: str) -> Palette:
    return read_palette(Path(labels.__file__).parent / f"{name}.txt")


def _parsed(line: str) -> tuple[list[int], str] | None:
    """Returns the colour and the name of a line, or None where there is no colour."""
    if line.startswith("#"):
        colour, _, name = line[1:].partition(" ")
        parts = [colour[i : i + 2] for i in (0, 2, 4)] if len(colour) == 6 else []
        base = 16
    else:
        words = line.replace(",", " ").split(maxsplit=3)
        parts, name, base = words[:3], " ".join(words[3:]), 10
    try:
        values = [int(part, base) for part in parts]
    except ValueError:
        return None
    return (values, name.strip()) if len(values) == 3 and all(0 <= value <= 255 for value in values) else None


def _of_png(path: str | os.PathLike) -> Palette:
    try:
        with PIL.Image.open(path) as image:
            values = image.getpalette("RGB") if image.mode == "P" else None
    except (OSError, SyntaxError) as error:  # as Pillow's decoders of PNG have them
        raise ValueError(f"{path}: not a palette: a damaged PNG.") from error
    if not values:
        raise ValueError(
            f"{path}: not a palette: a PNG without one. Save it with mode 'P', or give a text file. {_FORMAT}"
        )
    colours = np.array(values, np.uint8).reshape(-1, 3)
    return Palette(colours, ("",) * len(colours))
