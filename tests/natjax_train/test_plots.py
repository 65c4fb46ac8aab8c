"""The pictures of a run: right sizes and colours, for short, long, empty and broken runs and few or many classes."""

import json

import numpy as np
import PIL.Image
import pytest

from natjax_train import plots
from natjax_train.tasks.classification import Classification

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

BLUE, ORANGE, GREEN = (20, 90, 200), (225, 95, 15), (46, 125, 90)


def draw_curves(directory, rows):
    source, out = directory / "metrics.jsonl", directory / "curves.png"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plots.curves(source, out, Classification.curves)
    with PIL.Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


def draw_confusion(directory, matrix, names):
    out = directory / "confusion.png"
    plots.confusion(np.asarray(matrix), names, out)
    with PIL.Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


def places(image, colour):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((image == colour).all(-1))


def test_curves_fall_and_rise_where_they_should(tmp_path):
    rows = [{"step": step, "loss": 3 - step / 50, "lr": step * 1e-5} for step in range(1, 101)]
    rows += [{"step": step, "val_loss": 2.5, "top1": step / 100, "top5": 1.0} for step in (50, 100)]
    image = draw_curves(tmp_path, rows)
    assert image.shape == (1102, 1150, 3)
    y, x = places(image[80:320], BLUE)  # the first panel, below its title
    assert np.corrcoef(x, y)[0, 1] > 0.99  # downwards is a larger y
    y, x = places(image[410:680], GREEN)
    assert np.corrcoef(x, y)[0, 1] < -0.99
    assert len(places(image[80:320], ORANGE)[0]) > 50
    assert len(places(image[750:], ORANGE)[0]) > 50


def test_long_runs_are_drawn_in_parts(tmp_path):
    noise = np.random.default_rng(0).standard_normal(20_000)
    image = draw_curves(tmp_path, ({"step": i, "loss": value, "lr": 0.0} for i, value in enumerate(noise)))
    y, _ = places(image[80:320], BLUE)
    assert np.ptp(y) < 40  # means scatter less than steps, which are the paler range
    y, _ = places(image[80:320], (205, 220, 245))
    assert np.ptp(y) > 150


@pytest.mark.parametrize("score", [(), (("miou", "Mean IoU"),)])
def test_groups_of_runs_have_means_and_ranges(tmp_path, score):
    name_of_score, absent = ("miou", "top1") if score else ("top1", "miou")
    groups = {}
    for name, accuracy in (("low", 0.2), ("high", 0.8)):
        for i, more in enumerate((-0.1, 0.1)):
            path = tmp_path / f"{name}{i}.jsonl"
            rows = [{"step": step, name_of_score: accuracy + more, absent: 0.5} for step in (10, 20, 30)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            groups.setdefault(name, []).append(path)
    plots.compare(groups, tmp_path / "out.png", *score)
    with PIL.Image.open(tmp_path / "out.png") as picture:
        image = np.asarray(picture.convert("RGB"))
    middles = {colour: places(image[80:], colour)[0].mean() for colour in (BLUE, ORANGE)}
    assert middles[BLUE] - middles[ORANGE] > 100  # downwards is a larger y
    for colour, pale in plots._PALE.items():
        y, _ = places(image[80:], pale)
        assert 50 < np.ptp(y) < 100
        assert abs((y.min() + y.max()) / 2 - middles[colour]) < 3
    with pytest.raises(ValueError, match="Two groups of runs can be compared; got 1"):
        plots.compare({"one": []}, tmp_path / "out.png")


def test_no_range_hides_a_curve(tmp_path):
    groups = {}
    for name, scores in (("narrow", (0.55,)), ("wide", (0.2, 0.8))):
        for score in scores:
            path = tmp_path / f"{name}{score}.jsonl"
            path.write_text("".join(json.dumps({"step": step, "top1": score}) + "\n" for step in (10, 20, 30)))
            groups.setdefault(name, []).append(path)
    plots.compare(groups, tmp_path / "out.png")
    with PIL.Image.open(tmp_path / "out.png") as picture:
        _, x = places(np.asarray(picture.convert("RGB"))[80:], BLUE)
    assert len(np.unique(x)) > 600


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": 2.0, "lr": 0.0}],
        [{"step": 1, "loss": None, "lr": 1e-3}, {"step": 2, "loss": None, "lr": 1e-3}],
        [{"step": 3, "loss": -1e-30, "lr": 1e-9}, {"step": 3, "val_loss": 1e30, "top1": 0.0, "top5": 0.0}],
    ],
    ids=["empty", "one step", "not finite", "extremes"],
)
def test_odd_runs(tmp_path, rows):
    assert draw_curves(tmp_path, rows).shape == (1102, 1150, 3)


@pytest.mark.parametrize("count", [1, 2, 10, 37, 200, 1000])
def test_confusion_shows_right_in_blue(tmp_path, count):
    image = draw_confusion(tmp_path, np.eye(count, dtype=np.int64) * 9, [f"a class named {i}" for i in range(count)])
    y, x = places(image, BLUE)
    assert len(y) > 0
    if count > 2:
        assert np.corrcoef(x, y)[0, 1] > 0.9
    assert not len(places(image, ORANGE)[0])


def test_confusion_shows_wrong_in_orange_in_its_row(tmp_path):
    image = draw_confusion(tmp_path, [[5, 0, 0], [0, 5, 0], [3, 0, 0]], ["ant", "bee", "ünïcödé 蜂" * 4])
    y, x = places(image, ORANGE)
    rows, columns = places(image, BLUE)
    assert y.min() > rows.max()  # the last row
    assert x.max() < columns.max()
    assert len(y) > 1000


def test_classes_without_images(tmp_path):
    draw_confusion(tmp_path, np.zeros((3, 3), np.int64), ["a", "b", "c"])


def test_class_names_of_any_script(tmp_path, monkeypatch):
    drawn = []
    fit = plots.fit
    monkeypatch.setattr(plots, "fit", lambda text, size: drawn.append(text) or fit(text, size))
    names = [
        "cat",
        "\U000f0000",
        "caf\udce9",
        "two\nlines",
        "x" * 40,
    ]  # a character that no font has, an undecodable name
    plots.confusion(np.eye(5, dtype=int), names, tmp_path / "out.png")
    assert {"cat", r"1: \U000f0000", r"2: caf\udce9", r"3: two\nlines", "x" * 17 + "…"} <= set(drawn)
    with PIL.Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 460
