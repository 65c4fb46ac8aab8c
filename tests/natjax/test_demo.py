"""The embedded demonstration: it runs, says what it found, fails on other logits, and is what transformers computes."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from natjax import demo
from natjax.cli import main
from natjax.demo.picture import draw
from natjax.errors import CheckpointError

pytestmark = pytest.mark.once  # a fresh install on the newer Python runs the demo


def test_it_runs(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "tensors" in printed
    assert "max |logits - PyTorch's| = " in printed
    assert "the same" in printed
    assert "10 of 10 right" in printed
    assert "per image" in printed
    with PIL.Image.open(tmp_path / "out" / "demo.png") as picture:
        picture.load()
        assert min(picture.size) > 500
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_what_is_embedded_is_small():
    assert sum(file.stat().st_size for file in demo.MODEL_DIR.parent.rglob("*") if file.suffix != ".pyc") < 1.1e6


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_other_logits_fail(tmp_path, capsys, wrong):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "config.json").write_text("of an earlier run")
    model_dir = shutil.copytree(demo.MODEL_DIR, tmp_path / "digits")
    reference = json.loads((model_dir / "reference.json").read_text())
    reference["samples"][3]["logits"][0] += wrong
    (model_dir / "reference.json").write_text(json.dumps(reference))
    assert demo.run(tmp_path / "out", model_dir=model_dir) == 1
    assert "DIFFERENT" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "{}", '{"samples": [{"image": "a.png"}]}'])
def test_damaged_samples_are_named(tmp_path, text):
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"reference\.json: not a readable list"):
        demo.read_samples(tmp_path)


def test_the_window_is_drawn_where_it_is(tmp_path):
    """Heat appears in the window that shifted inward from the corner, and nowhere else."""
    PIL.Image.new("L", (8, 8)).save(tmp_path / "blank.png")
    picture = draw(
        [(tmp_path / "blank.png", "1", "1", 0.5)] * 3,
        inspected=0,
        weights=np.full((8, 6, 9), 1 / 9),
        kernel_size=3,
        queries=((0, 5), (4, 2)),
        caption="",
    )
    pixels = np.asarray(picture).astype(int)
    heat = (pixels[..., 0] - pixels[..., 2]) > 150  # orange
    rows, columns = np.flatnonzero(heat.any(1)), np.flatnonzero(heat.any(0))
    token = 40
    assert rows[-1] - rows[0] == pytest.approx(6 * token, abs=6)  # rows 0 to 2 and 3 to 5
    first, second = columns[columns < columns.mean()], columns[columns > columns.mean()]
    assert first[-1] - first[0] == pytest.approx(3 * token, abs=6)
    assert second[0] - first[-1] == pytest.approx(40 + token, abs=6)  # the gap between the views, then column 0


def test_transformers_computes_these_logits(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1]))
    import natten_oracle

    natten_oracle.install()
    model = transformers.NatForImageClassification.from_pretrained(demo.MODEL_DIR).eval()
    processor = transformers.ViTImageProcessor.from_pretrained(demo.MODEL_DIR)
    for sample in demo.read_samples(demo.MODEL_DIR):
        with PIL.Image.open(sample.path) as image:
            pixel_values = processor(
                np.asarray(image)[..., None], input_data_format="channels_last", return_tensors="pt"
            )
        with torch.no_grad():
            logits = model(**pixel_values).logits[0]
        np.testing.assert_allclose(logits.numpy(), sample.logits, atol=1e-5)
