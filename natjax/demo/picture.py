"""The demonstration's picture: sample images with their predictions, and attention windows over one of them.

Drawn with Pillow alone, on white. Sizes are pixels, colours RGB; the attention map is [H, W] tokens, a window K x K of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps

from natjax.fonts import fit
from natjax.images import load_image
from natjax_kernels.window import AxisWindow, windows

if TYPE_CHECKING:
    from jaxtyping import Float

    Colour = tuple[int, int, int]
    Prediction = tuple[Path, str, str, float]  # image, label, predicted label, probability

_PAPER, _INK, _PALE_INK = (255, 255, 255), (32, 36, 44), (118, 124, 138)
_GREY, _LINE = (110, 116, 128), (214, 218, 224)
_RIGHT, _WRONG, _QUERY = (46, 125, 90), (190, 50, 50), (20, 90, 200)
_HEAT = (240, 100, 10)

_MARGIN, _GAP = 60, 40
_TOKEN = 40  # side of a token in the large views
_THUMB, _THUMB_GAP = 112, 22  # ten of them are as wide as two views of 16 x 16 tokens


def draw(
    predictions: Sequence[Prediction],
    *,
    inspected: int,
    weights: Float[np.ndarray, "H W K*K"],
    kernel_size: int,
    queries: Sequence[tuple[int, int]],
    caption: str,
) -> PIL.Image.Image:
    """Draws the picture.

    Args:
        predictions: of all sample images.
        inspected: which of them is drawn large.
        weights: its attention weights, every token's over its window.
        kernel_size: K.
        queries: two tokens (row, column) whose windows are shown.
        caption: a line under the title.
    """
    height, width = weights.shape[:2]
    view = (width * _TOKEN, height * _TOKEN)
    top, views = 180, 440
    row_width = len(predictions) * (_THUMB + _THUMB_GAP) - _THUMB_GAP
    size = (2 * _MARGIN + max(2 * view[0] + _GAP, row_width), views + view[1] + 110)
    image = PIL.Image.new("RGB", size, _PAPER)
    pen = PIL.ImageDraw.Draw(image)
    _text(pen, (_MARGIN, 50), "Handwritten digits, classified by a Neighborhood Attention Transformer", _INK, 38)
    _text(pen, (_MARGIN, 106), caption, _GREY, 24)
    for i, prediction in enumerate(predictions):
        _draw_prediction(image, pen, prediction, (_MARGIN + i * (_THUMB + _THUMB_GAP), top))

    titles = ("Inside the map: the window surrounds its token", "At the border: the window shifts inward")
    for i, (query, title) in enumerate(zip(queries, titles, strict=True)):
        at = (_MARGIN + i * (view[0] + _GAP), views)
        _text(pen, (at[0], views - 48), title, _INK, 28)
        _draw_attention(image, pen, predictions[inspected][0], at, query, weights, kernel_size)
    note = f"First level, {height} x {width} tokens: how much, in percent, the blue token attends to its neighbours."
    _text(pen, (_MARGIN, views + view[1] + 24), note, _GREY, 24)
    return image


def _draw_prediction(image, pen, prediction: Prediction, at: tuple[int, int]) -> None:
    path, label, predicted, probability = prediction
    x, y = at
    colour = _RIGHT if predicted == label else _WRONG
    image.paste(_digit(path, (_THUMB, _THUMB), PIL.Image.Resampling.NEAREST, _INK), at)
    pen.rectangle((x, y, x + _THUMB - 1, y + _THUMB - 1), outline=_LINE)
    below = y + _THUMB + 4
    _text(pen, (x, below), predicted, colour, 28)
    _text(pen, (x + _THUMB, below + 5), f"{probability:.1%}", _GREY, 20, anchor="ra")
    pen.rectangle((x, below + 36, x + _THUMB - 1, below + 41), fill=_LINE)
    pen.rectangle((x, below + 36, x + max(1, round(probability * _THUMB)) - 1, below + 41), fill=colour)


def _draw_attention(image, pen, path: Path, at, query, weights, kernel_size: int) -> None:
    height, width = weights.shape[:2]
    image.paste(_digit(path, (width * _TOKEN, height * _TOKEN), PIL.Image.Resampling.BILINEAR, _PALE_INK), at)

    def box(row, column, rows=1, columns=1):
        x, y = at[0] + column * _TOKEN, at[1] + row * _TOKEN
        return x, y, x + columns * _TOKEN, y + rows * _TOKEN

    row, column = (int(windows(n, AxisWindow(kernel_size))[0][i]) for n, i in zip((height, width), query, strict=True))
    window = weights[query].reshape(kernel_size, kernel_size)
    for (i, j), weight in np.ndenumerate(window):
        cell = box(row + i, column + j)
        heat = PIL.Image.new("RGB", (_TOKEN, _TOKEN), _HEAT)
        strength = 0.05 + 0.85 * float(weight / window.max())
        image.paste(PIL.Image.blend(image.crop(cell), heat, strength), cell)
    for i in range(height + 1):
        pen.line((at[0], at[1] + i * _TOKEN, at[0] + width * _TOKEN, at[1] + i * _TOKEN), _LINE)
    for j in range(width + 1):
        pen.line((at[0] + j * _TOKEN, at[1], at[0] + j * _TOKEN, at[1] + height * _TOKEN), _LINE)
    for (i, j), weight in np.ndenumerate(window):
        x, y, *_ = box(row + i, column + j)
        middle = (x + _TOKEN // 2, y + _TOKEN // 2)
        percent = f"{100 * float(weight):.0f}"
        _text(pen, middle, percent, _INK, 17, anchor="mm", stroke_width=2, stroke_fill=_PAPER)
    pen.rectangle(box(row, column, kernel_size, kernel_size), outline=_HEAT, width=5)
    pen.rectangle(box(*query), outline=_QUERY, width=5)


def _digit(path: Path, size: tuple[int, int], resample: PIL.Image.Resampling, ink: Colour) -> PIL.Image.Image:
    """Returns a sample, in ink on white, at another size."""
    return PIL.ImageOps.colorize(load_image(path, "L").resize(size, resample), _PAPER, ink)


def _text(pen, at: tuple[float, float], text: str, colour: Colour, size: int, **options) -> None:
    text, font = fit(text, size)
    pen.text(at, text, colour, font, **options)
