"""The explorer: weights of all layers against the model's own, windows against natjax.neighbors, the page in a browser."""

import pathlib
import re

import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_kernels
from natjax.cli import main
from natjax.explorer import make_page
from natjax.explorer.layers import LayerAttention, layers_of
from natjax.explorer.page import quantised
from natjax.hub import DIGITS

DIGIT = DIGITS / "digit_5.png"


@pytest.fixture(scope="module")
def pipe():
    return natjax.pipeline("image-feature-extraction", DIGITS)


@pytest.fixture(scope="module")
def layers(pipe):
    return layers_of(pipe.model, pipe.processor(DIGIT))


@pytest.fixture(scope="module")
def page(pipe):
    return make_page(pipe.model, pipe.processor, DIGIT, name="</title><script>bad()</script>", model_name="<b>&")


def test_the_last_layers_of_levels_are_the_models_attentions(pipe, layers):
    attend = nnx.jit(lambda model, pixels: model(pixels, output_attentions=True).attentions)
    expected = attend(pipe.model, pipe.processor(DIGIT))
    depths = pipe.model.config.depths
    assert [(x.level, x.layer) for x in layers] == [(i, j) for i, n in enumerate(depths, 1) for j in range(1, n + 1)]
    for level, weights in enumerate(expected, 1):
        last = next(x for x in layers if (x.level, x.layer) == (level, depths[level - 1]))
        np.testing.assert_allclose(last.weights, weights[0], rtol=1e-5, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(("size", "kernel", "dilation"), [((9, 13), (3, 5), (2, 1)), ((7, 7), (7, 7), (1, 1))])
def test_windows_are_the_neighbors_of_the_op(size, kernel, dilation):
    layer = LayerAttention(1, 1, size, kernel, dilation, np.zeros((1, *size, kernel[0] * kernel[1]), np.float32))
    rows, columns = layer.windows()
    places = rows[:, None, :, None] * size[1] + columns[None, :, None, :]
    expected = natjax_kernels.neighbors(size, kernel, dilation=dilation)
    np.testing.assert_array_equal(places.reshape(expected.shape), expected)


@pytest.mark.once
def test_quantised_weights_are_within_half_a_step(layers):
    for layer in layers:
        stored, largest = quantised(layer.weights)
        error = np.abs(stored / 255 * largest[..., None] - layer.weights)
        assert (error <= layer.weights.max(-1, keepdims=True) * (1 / 510 + 1e-6)).all()


@pytest.mark.once
def test_names_cannot_steer_the_page_and_nothing_is_fetched(page):
    assert "<script>bad()" not in page
    assert "&lt;/title&gt;&lt;script&gt;bad()" in page
    assert "<b>&lt;b&gt;&amp;</b>" in page
    assert "{{" not in page
    assert not re.search(r"https?://", page)


@pytest.mark.once
def test_images_of_too_many_weights_are_refused_before_the_work(pipe):
    huge = np.zeros((1, 20_000, 20_000, 1), np.float32)
    with pytest.raises(ValueError, match="too many for a page"):
        make_page(pipe.model, lambda _: huge, "huge.png")


@pytest.mark.once
def test_the_command_writes_a_page_or_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["explore", "gone.png", "--model", "digits"]) == 1
    assert "gone.png: there is no such file" in capsys.readouterr().err
    assert main(["explore", str(DIGIT), "--model", "digits", "--out", "no/where.html"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert main(["explore", str(DIGIT), "--model", "digits"]) == 0
    assert capsys.readouterr().out == "explorer.html: 0.1 MB; open it in a web browser\n"
    assert "<title>digit_5.png:" in pathlib.Path("explorer.html").read_text(encoding="utf-8")


@pytest.fixture
def opened(chromium, page, tmp_path):
    """Opens the page in a narrow window; no error and no request may come of it."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    tab, wrong = chromium.new_page(viewport={"width": 360, "height": 780}), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url))
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_selector("html[data-ready=yes]", timeout=20_000)
    yield tab
    tab.close()
    assert wrong == []


def choose(tab, name, value):
    tab.locator(f"#{name} input[value='{value}']").check()


@pytest.mark.once
@pytest.mark.browser
def test_the_page_shows_the_models_weights_where_they_lie(opened, layers):
    for index, layer in enumerate(layers):
        choose(opened, "levels", layer.level)
        choose(opened, "layers", index)
        neighbors = natjax_kernels.neighbors(layer.weights.shape[1:3], layer.kernel_size, dilation=layer.dilation)
        for head in (-1, len(layer.weights) - 1):
            choose(opened, "heads", head)
            for row, column in ((0, 0), (layer.size[0] - 1, layer.size[1] // 2)):
                side = 2 ** (layer.level - 1) * 4
                opened.evaluate(f"moveTo({column * side + 1}, {row * side + 1})")
                told = opened.locator("#window td").evaluate_all("cells => cells.map(cell => cell.title)")
                found = [
                    re.match(r"Row (\d+), column (\d+)(?: \(padding\))?: ([\d.]+)$", text).groups() for text in told
                ]
                places = [int(r) * layer.weights.shape[2] + int(c) for r, c, _ in found]
                assert places == neighbors[row, column].tolist()
                weights = layer.weights[:, row, column]
                expected = weights.mean(0) if head < 0 else weights[head]
                step = weights.max() / 510 + 0.5e-4  # the quantisation, and the last digit shown
                np.testing.assert_allclose([float(w) for *_, w in found], expected, rtol=0, atol=step * 1.001)


@pytest.mark.once
@pytest.mark.browser
def test_the_page_follows_clicks_and_keys(opened):
    readout, canvas = opened.locator("#readout"), opened.locator("#map")
    assert readout.get_attribute("aria-live") == "polite"
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] - 2, "y": 2})
    size = int(re.search(r"of \d+ × (\d+)", readout.inner_text())[1])
    assert f"row 0, column {size - 1} of" in readout.inner_text()
    assert "shifted inward, along its rows and its columns" in readout.inner_text()
    canvas.press("ArrowDown")
    canvas.press("ArrowLeft")
    canvas.press("ArrowLeft")
    assert f"row 1, column {size - 3} of" in readout.inner_text()
    assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.locator("#window td").nth(3).hover()
    assert re.match(r"Row \d+, column \d+: 0\.\d{4}$", opened.locator("#hover").inner_text())


@pytest.mark.once
@pytest.mark.browser
def test_the_page_fits_narrow_screens_and_has_a_dark_mode(opened):
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    colours = []
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        colours.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(251, 250, 248)", "rgb(21, 22, 26)"]
