"""`natjax classify` and `natjax features`: output, batches, and the images and models that they cannot take."""

import json
import os
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
from fake_model import CONFIG, FakeModel

from natjax.cli import main
from natjax.image_processing import NatImageProcessor

pytestmark = pytest.mark.once


def test_classify(fake, capsys):
    assert main(["classify", "images/0.png", "images/4.png", "--model", "model", "--topk", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "images/0.png"
    assert lines[1].split()[0] == "dark"
    assert lines[4].split()[0] == "bright"
    assert lines[4].split()[1].endswith("%")
    assert lines[4].index("%") == lines[5].index("%")
    assert len(lines) == 6
    assert err == ""


def test_classify_escapes_what_would_steer_a_terminal(fake, capsys):
    assert main(["classify", "images/0.png", "--model", "model"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"odd\x1b[31m" in out


def test_classify_json_names_skipped_images(fake, capsys):
    (fake / "images" / "1.png").write_bytes(b"")
    assert main(["classify", "images", "gone.jpg", "--model", "model", "--json", "--batch-size", "2"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [r["image"] for r in document["results"]] == [f"images/{i}.png" for i in (0, 2, 3, 4)]
    assert [s["image"] for s in document["skipped"]] == ["images/1.png", "gone.jpg"]
    assert err.splitlines() == [
        "natjax: skipped images/1.png: the file is empty.",
        "natjax: skipped gone.jpg: there is no such file.",
    ]
    best = document["results"][0]["predictions"][0]
    assert (best["label"], best["index"]) == ("dark", 0)
    assert sum(p["probability"] for p in document["results"][1]["predictions"]) == pytest.approx(1)


def test_a_strip_that_would_be_resized_to_gigabytes_is_skipped(fake, capsys):
    NatImageProcessor.imagenet(8).save_pretrained(fake / "model")
    PIL.Image.new("L", (1_200_000, 1)).save(fake / "images" / "1.png")
    assert main(["classify", "images", "--model", "model", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [s["image"] for s in json.loads(out)["skipped"]] == ["images/1.png"]
    assert err.startswith("natjax: skipped images/1.png: 1 x 1200000 pixels")


def test_large_images_are_read_where_they_are_trusted(fake, capsys, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    PIL.Image.new("RGB", (20, 30)).save("large.tif")
    assert main(["classify", "large.tif", "--model", "model"]) == 1
    assert "more than 100 pixels may be a decompression bomb" in capsys.readouterr().err
    assert main(["classify", "large.tif", "--model", "model", "--max-pixels", "600"]) == 0
    assert main(["classify", "large.tif", "--model", "model", "--max-pixels", "599"]) == 1
    assert PIL.Image.MAX_IMAGE_PIXELS == 100


def test_images_keep_their_size_where_it_is_asked_for(fake, capsys):
    NatImageProcessor.imagenet(8).save_pretrained(fake / "model")
    command = ["features", "images/0.png", "--model", "model", "--stages", "stem"]
    with PIL.Image.open("images/0.png") as image:
        sizes = {(): (8, 8), ("--full-size",): (image.height, image.width)}
    for more, size in sizes.items():
        assert main([*command, *more]) == 0
        with np.load("features.npz") as written:
            assert written["stem"].shape[1:3] == size


def test_a_mesh_that_is_none(fake, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["classify", "images", "--model", "model", "--mesh", "data=2"])
    assert "mesh must look like space=4 (every image is split over 4 devices); got 'data=2'." in capsys.readouterr().err
    assert main(["classify", "images", "--model", "model", "--mesh", "space=99"]) == 1
    assert "mesh space=99 needs 99 devices; there " in capsys.readouterr().err


def test_images_that_do_not_fit_into_memory(fake, capsys, monkeypatch):
    def call(self, pixels):
        raise MemoryError

    monkeypatch.setattr(FakeModel, "__call__", call)
    assert main(["classify", "images", "--model", "model"]) == 1
    assert "error: the images do not fit into memory. Take fewer" in capsys.readouterr().err


def test_batches_are_padded_and_compile_once(fake, capsys):
    FakeModel.traces = 0
    assert main(["classify", "images/*.png", "--model", "model", "--json", "--batch-size", "3"]) == 0
    together = json.loads(capsys.readouterr().out)["results"]
    assert FakeModel.traces == 1
    assert len(together) == 5
    for one in together:
        assert main(["classify", one["image"], "--model", "model", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["results"] == [one]


def test_images_of_many_sizes_without_resize(fake, capsys):
    NatImageProcessor(do_resize=False).save_pretrained(fake / "model")
    assert main(["classify", "images", "--model", "model", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 5


def test_multi_label_probabilities_do_not_compete(fake, capsys, monkeypatch):
    monkeypatch.setattr(FakeModel, "config", CONFIG.replace(problem_type="multi_label_classification"))
    assert main(["classify", "images/2.png", "--model", "model", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["results"][0]["predictions"]
    assert {p["label"]: round(p["probability"] * 2) for p in predictions}["bright"] == 1


def test_a_model_without_classes(fake, capsys, monkeypatch):
    monkeypatch.setattr(FakeModel, "config", CONFIG.replace(num_labels=0))
    assert main(["classify", "images", "--model", "model"]) == 1
    assert "no classes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["classify", "features"])
def test_a_model_must_be_named(fake, capsys, command):
    assert main([command, "images/0.png"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("natjax: error: no model given. Name one with --model")
    assert main([command, "images/0.png", "--model", "digits"]) == 1  # whose images are grey
    assert "takes 3 channels" in capsys.readouterr().err


def test_folders_in_folders_and_what_is_skipped_in_them(fake, capsys):
    for name in (
        "images/deep/er/9.JPG",
        "images/.hidden/0.png",
        "images/._0.png",
        "images/notes.txt",
        "no images/a.heic",
    ):
        path = fake / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (9, 9)).save(path, "jpeg")
    (fake / "empty").mkdir()
    assert main(["classify", "images", "empty", "no images", "--model", "model", "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [r["image"] for r in document["results"]] == [*(f"images/{i}.png" for i in range(5)), "images/deep/er/9.JPG"]
    assert [s["image"] for s in document["skipped"]] == ["empty", "no images"]
    assert err.splitlines() == [
        "natjax: images: skipped 1 hidden file, 1 hidden folder, 1 .txt file",
        "natjax: skipped empty: no images in this folder, which is empty.",
        "natjax: skipped no images: no images in this folder; it holds 1 .heic file (pip install pillow-heif reads them).",
    ]
    assert main(["features", "empty", "--model", "model"]) == 1
    assert "no image could be read; nothing was written" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take no such names")
def test_names_that_are_no_text(fake, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy("images/4.png", name)
    assert main(["classify", name, "--model", "model"]) == 0
    assert r"caf\udce9.png" in capsys.readouterr().out
    assert main(["classify", name, "--model", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["image"] == name
    assert main(["features", name, "--model", "model"]) == 0
    with np.load("features.npz") as written:
        assert written["images"].tolist() == [name]


def test_stages_that_do_not_exist(fake, capsys):
    assert main(["features", "images", "--model", "model", "--stages", "stage1, stage9"]) == 1
    assert capsys.readouterr().err == (
        "natjax: error: stages must be 'all' or of stem, stage1, stage2, stage3, stage4; got ['stage1', 'stage9'].\n"
    )


def test_processors_that_are_missing_or_do_not_fit(fake, capsys):
    NatImageProcessor(size=8, image_mean=[0.5], image_std=[0.5]).save_pretrained(fake / "model")
    assert main(["classify", "images", "--model", "model"]) == 1
    assert "takes 3 channels, the preprocessor_config.json of model makes 1" in capsys.readouterr().err
    (fake / "model" / "preprocessor_config.json").unlink()
    assert main(["classify", "images/0.png", "--model", "model"]) == 0
    assert "as for ImageNet" in capsys.readouterr().err


def test_features(fake, capsys):
    assert main(["features", "images", "--model", "model", "--out", "pooled.npz", "--batch-size", "2"]) == 0
    assert "pooled  " in capsys.readouterr().out
    with np.load("pooled.npz") as written:
        assert written["pooled"].shape == (5, 1)
        assert written["pooled"].dtype == np.float32
        assert list(written["images"]) == [f"images/{i}.png" for i in range(5)]
    (fake / "images" / "0.png").write_text("no image")
    assert main(["features", "images", "--model", "model", "--stages", "all"]) == 1
    with np.load("features.npz") as written:
        assert sorted(written) == ["images", *(f"stage{i}" for i in range(1, 5)), "stem"]
        assert written["stage1"].shape == (4, 4, 4, 3)
    assert main(["features", "images/1.png", "--model", "model", "--stages", "stage2,stage4"]) == 0
    with np.load("features.npz") as written:
        assert sorted(written) == ["images", "stage2", "stage4"]


def test_features_write_nothing_when_they_cannot(fake, capsys):
    assert main(["features", "gone.png", "--model", "model"]) == 1
    assert main(["features", "images", "--model", "model", "--out", "no/where.npz"]) == 1
    assert main(["features", "images", "--model", "model", "--out", "images"]) == 1
    NatImageProcessor(do_resize=False).save_pretrained(fake / "model")
    assert main(["features", "images", "--model", "model", "--stages", "all"]) == 1
    assert not list(fake.glob("*.npz*"))
    err = capsys.readouterr().err
    assert "nothing was written" in err
    assert "no/where.npz: no file can be written in " in err
    assert "images: is a folder; give a file to write." in err
    assert ".tmp" not in err
    assert "differ in size: stem is [20, 20, 3] for images/0.png and [20, 21, 3] for images/1.png. Give images" in err


def test_progress_is_shown_on_terminals_only(fake, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["classify", "images", "--model", "model", "--json", "--batch-size", "2"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert "\r2/5 images, " in err
    assert err.endswith("\r")
