"""`natjax detect`: the pictures that it writes, tables, COCO results, and what it refuses."""

import json
import os

import numpy as np
import PIL.Image
import pytest
from fake_model import FakeDetector

from natjax.cli import main
from natjax.configuration import MaskRcnnConfig, NatConfig, UperNetConfig
from natjax.image_processing import NatImageProcessor
from natjax.models.detection import DETECTORS
from natjax_convert import Checkpoint

pytestmark = pytest.mark.once

CONFIG = MaskRcnnConfig(id2label={0: "scene", 1: "odd\x1b[31m lamp"})


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Puts the fake in place of natjax's model; makes a checkpoint `model` and images with a bright box."""
    monkeypatch.setitem(DETECTORS, CONFIG.model_type, FakeDetector)
    use_config(monkeypatch, CONFIG)
    NatImageProcessor.object_detection(64, 64).save_pretrained(tmp_path / "model")
    (tmp_path / "images" / "more").mkdir(parents=True)
    for left, name in enumerate(("a.png", "b.jpg", "more/a.png"), 10):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[16:48, left : left + 20] = 255
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / name, quality=100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use_config(monkeypatch, config):
    monkeypatch.setattr(Checkpoint, "open", lambda path, **_: Checkpoint(path, tensors={}, found=None, config=config))


def detect(*arguments):
    return main(["detect", *arguments, "--model", "model"])


def test_it_writes_a_picture_and_prints_a_table(world, capsys):
    assert detect("images/a.png") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"images/a.png: detections{os.sep}a.jpg",
        "  object            score  left  top  right  bottom",
        r"  odd\x1b[31m lamp  90.0%    10   16     30      48",
    ]
    assert err == ""
    assert os.listdir("detections") == ["a.jpg"]
    with PIL.Image.open("detections/a.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 320))  # five times as large, to be legible
        pixels = np.asarray(picture).astype(int)
    assert np.ptp(pixels[200, 60]) > 20  # the mask, over black
    assert np.ptp(pixels[300, 300]) < 10


def test_threshold_and_number_of_objects(world, capsys):
    assert detect("images/a.png", "--threshold", "0.2") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [r"odd\x1b[31m", "scene"]
    assert detect("images/a.png", "--threshold", "0.2", "--top-k", "1") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert detect("images/a.png", "--threshold", "0.95") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  nothing found"]


def test_json_is_cocos_results(world, capsys):
    (world / "images" / "b.jpg").write_bytes(b"")
    assert detect("images", "gone.png", "--json", "--out", "out", "--threshold", "0") == 1
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert [(r["image_id"], r["category_id"], r["file_name"]) for r in results] == [
        (1, 1, "images/a.png"),
        (1, 0, "images/a.png"),
        (3, 1, "images/more/a.png"),
        (3, 0, "images/more/a.png"),
    ]
    first = results[0]
    assert first["label"] == CONFIG.id2label[1]
    assert first["bbox"] == [10, 16, 20, 32]
    assert first["score"] == pytest.approx(0.9)
    assert first["segmentation"]["size"] == [64, 64]
    assert isinstance(first["segmentation"]["counts"], str)
    assert err.splitlines() == [
        "natjax: skipped images/b.jpg: the file is empty.",
        "natjax: skipped gone.png: there is no such file.",
    ]
    assert sorted(os.listdir("out")) == ["a.jpg", "a_2.jpg"]


def test_images_of_coco_have_its_numbers(world, capsys):
    for name in ("000000397133", "7"):
        os.link("images/a.png", f"images/more/{name}.png")
    os.remove("images/more/a.png")
    assert detect("images/more", "--json") == 0
    assert [result["image_id"] for result in json.loads(capsys.readouterr().out)] == [397133, 7]
    os.link("images/a.png", "images/more/07.png")  # 7, too
    assert detect("images/more", "--json") == 0
    assert [result["image_id"] for result in json.loads(capsys.readouterr().out)] == [1, 2, 3]


def test_without_masks(world, capsys):
    assert detect("images/a.png", "--no-masks", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert "segmentation" not in result
    with PIL.Image.open("detections/a.jpg") as picture:
        assert np.ptp(np.asarray(picture)[200, 70].astype(int)) < 10


def test_photographs_are_drawn_upright(world, capsys):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:10] = 255
    PIL.Image.fromarray(pixels).save("turned.png", exif=exif)
    assert detect("turned.png") == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-4:] == ["30", "0", "40", "64"]
    with PIL.Image.open("detections/turned.jpg") as picture:
        assert picture.size == (40 * 8, 64 * 8)


def test_a_side_longer_than_jpeg_holds_is_made_shorter(world, capsys):
    PIL.Image.new("RGB", (70_000, 4)).save("strip.png")
    assert detect("strip.png") == 0
    with PIL.Image.open("detections/strip.jpg") as picture:
        assert picture.width == 65_500


def test_hostile_images_are_named_and_skipped(world, capsys):
    (world / "images" / "page.png").write_text("<svg/>")
    (world / "images" / "half.jpg").write_bytes((world / "images" / "b.jpg").read_bytes()[:300])
    assert detect("images") == 1
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if not line.startswith(" ")]) == 3
    assert [line.split(":")[1] for line in err.splitlines()] == [" skipped images/half.jpg", " skipped images/page.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "model/preprocessor_config.json"], "is a file; give a folder to write into."),
        (
            ["images/b.jpg", "--out", "images"],
            f"images{os.sep}b.jpg: is one of the images, and would be overwritten.",
        ),
    ],
)
def test_what_it_refuses(world, arguments, message, capsys):
    assert detect("images/a.png", *arguments) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert not list(world.glob("detections/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "2"], "must be a number from 0 to 1; got '2'"),
        (["--top-k", "0"], "must be an integer of at least 1; got '0'"),
        (["--size-divisor", "0"], "must be an integer of at least 1; got '0'"),
    ],
)
def test_wrong_usage(world, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        detect("images/a.png", *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        ("detect", NatConfig(), "has no heads for object detection; object-detection needs a Mask R-CNN"),
        ("detect", UperNetConfig(num_labels=3), "use it with image-segmentation (`natjax segment`) instead of object-"),
        ("classify", CONFIG, "use it with object-detection (`natjax detect`) instead of image-classification"),
        ("features", CONFIG, "use it with object-detection (`natjax detect`) instead of image-feature-extraction"),
        ("segment", CONFIG, "use it with object-detection (`natjax detect`) instead of image-segmentation"),
    ],
)
def test_checkpoints_of_another_kind(world, command, config, message, monkeypatch, capsys):
    use_config(monkeypatch, config)
    assert main([command, "images/a.png", "--model", "model"]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
