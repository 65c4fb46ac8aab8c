"""The plots of a run: curves of loss, learning rate and scores over the steps, and the confusion matrix.

Drawn with Pillow alone, on white, at twice the size and then reduced, which smooths lines. Colours are RGB.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import PIL.ImageDraw

from natjax.fonts import fit

if TYPE_CHECKING:
    from jaxtyping import Int

    Colour = tuple[int, int, int]
    Points = list[tuple[float, float]]

PAPER, INK, GREY, _LINE = (255, 255, 255), (32, 36, 44), (110, 116, 128), (224, 227, 232)
_BLUE, ORANGE, _GREEN = (20, 90, 200), (225, 95, 15), (46, 125, 90)
_PALE = {_BLUE: (205, 220, 245), ORANGE: (250, 222, 203)}  # ranges around curves
_SHARP = 2  # pixels drawn per pixel
_PANEL, _PANEL_GAP = (1000, 260), 84
_LEFT, _TOP, _RIGHT = 110, 70, 40
_BINS = 250  # points of a curve at most; each is a mean, with the range around it in a paler colour


def curves(metrics_jsonl: str | os.PathLike, out_png: str | os.PathLike, scores: tuple[str, Mapping[str, str]]) -> None:
    """Draws loss, learning rate and the task's scores over the steps of a run.

    Args:
        metrics_jsonl: what `log.Log` wrote.
        out_png: the picture.
        scores: the title of their panel, and the label of each by its name in metrics.jsonl: two at most.

    Raises:
        OSError: the one cannot be read or the other not be written.
    """
    found = _read(metrics_jsonl)
    panels = [
        ("Loss, by step", [("loss", "training", _BLUE), ("val_loss", "validation", ORANGE)]),
        ("Learning rate", [("lr", "", _GREEN)]),
        (
            scores[0],
            [(name, label, colour) for (name, label), colour in zip(scores[1].items(), (ORANGE, _GREEN), strict=False)],
        ),
    ]
    _draw(
        [(title, [(label, colour, found.get(name, [])) for name, label, colour in series]) for title, series in panels],
        out_png,
    )


def compare(
    runs: Mapping[str, Sequence[str | os.PathLike]],
    out_png: str | os.PathLike,
    score: tuple[str, str] = ("top1", "Accuracy"),
) -> None:
    """Draws a score on the validation images of two groups of runs, by step: means, and ranges within a group.

    Args:
        runs: per group, by its name, what `log.Log` wrote; runs of a group are evaluated at the same steps.
        out_png: the picture.
        score: its name in metrics.jsonl, and in the picture; `("miou", "Mean IoU")` is of segmentation.

    Raises:
        OSError: a file cannot be read or the picture not be written.
        ValueError: there are not two groups.
    """
    if len(runs) != len(_PALE):
        raise ValueError(f"Two groups of runs can be compared; got {len(runs)}.")
    series = [
        (name, colour, sorted(point for path in paths for point in _read(path).get(score[0], [])))
        for (name, paths), colour in zip(runs.items(), _PALE, strict=True)
    ]
    _draw([(f"{score[1]} on the validation images, by step", series)], out_png)


def _read(metrics_jsonl: str | os.PathLike) -> dict[str, Points]:
    found: dict[str, Points] = {}
    with open(metrics_jsonl, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for name, value in row.items():
                if value is not None:
                    found.setdefault(name, []).append((row["step"], value))
    return found


def _draw(panels: Sequence[tuple[str, list[tuple[str, Colour, Points]]]], out_png: str | os.PathLike) -> None:
    last = max((step for _, series in panels for *_, points in series for step, _ in points), default=1)
    size = (_LEFT + _PANEL[0] + _RIGHT, _TOP + len(panels) * (_PANEL[1] + _PANEL_GAP))
    image = PIL.Image.new("RGB", (size[0] * _SHARP, size[1] * _SHARP), PAPER)
    pen = PIL.ImageDraw.Draw(image)
    for i, (title, series) in enumerate(panels):
        _panel(pen, _TOP + i * (_PANEL[1] + _PANEL_GAP), title, series, last)
    image.resize(size, PIL.Image.Resampling.BOX).save(out_png)


def _panel(
    pen: PIL.ImageDraw.ImageDraw, top: int, title: str, series: list[tuple[str, Colour, Points]], last: float
) -> None:
    width, height = _PANEL
    values = [value for *_, points in series for _, value in points]
    low, high = min(values, default=0), max(values, default=1)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (low if low == 0 else low - pad), high + pad

    def place(step: float, value: float) -> tuple[float, float]:
        return _scaled(_LEFT + width * step / last, top + height * (1 - (value - low) / (high - low)))

    _text(pen, (_LEFT, top - 34), title, INK, 22)
    for tick in _ticks(low, high, 5):
        pen.line([place(0, tick), place(last, tick)], _LINE, _SHARP)
        x, y = place(0, tick)
        _text(pen, (x / _SHARP - 10, y / _SHARP), f"{tick:.4g}", GREY, 16, "rm")
    for tick in _ticks(0, last, 8):
        x, y = place(tick, low)
        _text(pen, (x / _SHARP, y / _SHARP + 8), f"{tick:g}", GREY, 16, "ma")
    pen.line([_scaled(_LEFT, top + height), _scaled(_LEFT + width, top + height)], GREY, _SHARP)
    x = _LEFT + width
    for label, colour, points in reversed(series):
        if label and points:
            _text(pen, (x, top - 30), label, colour, 18, "ra")
            x -= 24 + int(fit(label, 18)[1].getlength(label))
    if not values:
        _text(pen, (_LEFT + width // 2, top + height // 2), "nothing was measured", GREY, 20, "mm")
    parts = [(colour, _binned(points)) for _, colour, points in series]
    for colour, trios in parts:  # all ranges first: none hides a curve
        if colour in _PALE and len(trios) > 1:  # single steps scatter, and so do runs
            least, most = ([place(trio[0], trio[i]) for trio in trios] for i in (2, 3))
            pen.polygon([*least, *reversed(most)], _PALE[colour])
    for colour, trios in parts:
        _curve(pen, [place(step, mean) for step, mean, *_ in trios], colour)


def _curve(pen: PIL.ImageDraw.ImageDraw, means: Points, colour: Colour) -> None:
    if len(means) > 1:
        pen.line(means, colour, 2 * _SHARP, joint="curve")
    if len(means) <= 60:
        for x, y in means:
            r = 3.5 * _SHARP
            pen.ellipse((x - r, y - r, x + r, y + r), colour)


def _binned(points: Points) -> list[tuple[float, float, float, float]]:
    """Returns step, mean, least and greatest value of at most `_BINS` parts of a curve, or of runs with the same steps."""
    if not points:
        return []
    parts = np.array_split(np.array(points), min(len({step for step, _ in points}), _BINS))
    return [(p[:, 0].mean(), p[:, 1].mean(), p[:, 1].min(), p[:, 1].max()) for p in parts]


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` round numbers from low to high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def confusion(matrix: Int[np.ndarray, "L L"], names: Sequence[str], out_png: str | os.PathLike) -> None:
    """Draws a confusion matrix: rows are classes, columns what the model took them for, blue is right, orange wrong.

    Counts are written where there is room for them; a cell's colour is its part of the row.

    Args:
        matrix: counts.
        names: of the classes.
        out_png: the picture.

    Raises:
        OSError: the picture cannot be written.
    """
    classes = len(names)
    cell = max(1, min(56, 1000 // classes))
    named = cell >= 14
    label = min(16, cell)
    texts = [label_of(i, str(name), label) for i, name in enumerate(names)] if named else []
    margin = 110 + max((int(fit(text, label)[1].getlength(text)) for text in texts), default=0)
    side = margin + classes * cell + 40
    image = PIL.Image.new("RGB", (max(side, 460) * _SHARP, side * _SHARP), PAPER)
    pen = PIL.ImageDraw.Draw(image)
    right, total = int(np.trace(matrix)), int(matrix.sum())
    _text(pen, (30, 24), f"{right} of {total} images right: {right / max(total, 1):.2%}", INK, 24)
    _text(pen, (30, 58), "rows: class, columns: prediction", GREY, 18)

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    colours = np.where(np.eye(classes, dtype=bool)[..., None], _BLUE, ORANGE)
    strength = np.sqrt(shares)[..., None]  # few mistakes are seen, too
    cells = np.uint8(np.rint((1 - strength) * 255 + strength * colours))
    map_ = PIL.Image.fromarray(cells).resize(
        (classes * cell * _SHARP, classes * cell * _SHARP), PIL.Image.Resampling.NEAREST
    )
    image.paste(map_, (margin * _SHARP, margin * _SHARP))
    if cell >= 6:
        for i in range(classes + 1):
            a, b, edge = margin, margin + classes * cell, margin + i * cell
            pen.line([_scaled(a, edge), _scaled(b, edge)], _LINE, 1)
            pen.line([_scaled(edge, a), _scaled(edge, b)], _LINE, 1)
    for i, text in enumerate(texts):
        middle = margin + i * cell + cell // 2
        _text(pen, (margin - 10, middle), text, INK, label, "rm")
        _, font = fit(text, label * _SHARP)
        upright = PIL.Image.new("RGB", (int(font.getlength(text)) + 2, label * _SHARP * 3 // 2), PAPER)
        PIL.ImageDraw.Draw(upright).text((0, 0), text, INK, font)
        upright = upright.rotate(90, expand=True)
        at = (middle * _SHARP - upright.width // 2, (margin - 10) * _SHARP - upright.height)
        image.paste(upright, at)
    if cell >= 24:
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                ink = PAPER if shares[i, j] > 0.4 else INK
                middle = (margin + j * cell + cell / 2, margin + i * cell + cell / 2)
                _text(pen, middle, str(count), ink, min(18, cell * 2 // 5), "mm")
    image.resize((image.width // _SHARP, image.height // _SHARP), PIL.Image.Resampling.BOX).save(out_png)


def label_of(number: int, name: str, size: int, length: int = 18) -> str:
    """Returns a class's name as it can be drawn, cut to a length, with its number where there is no font for the name."""
    text, _ = fit(name, size)
    text = text if text == name else f"{number}: {text}"
    return text if len(text) <= length else text[: length - 1] + "…"


def _scaled(x: float, y: float) -> tuple[float, float]:
    return x * _SHARP, y * _SHARP


def _text(pen, at: tuple[float, float], text: str, colour: Colour, size: int, anchor: str = "la") -> None:
    text, font = fit(text, size * _SHARP)
    pen.text(_scaled(*at), text, colour, font, anchor=anchor)
