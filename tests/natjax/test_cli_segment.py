"""`natjax segment`: the files that it writes, what it prints, and what it refuses."""

import json
import os

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from natjax import models
from natjax.cli import main
from natjax.configuration import NatConfig, UperNetConfig
from natjax.image_processing import NatImageProcessor
from natjax.segmentation import generated
from natjax_convert import Checkpoint

pytestmark = pytest.mark.once

NAMES = {0: "dark", 1: "bright", 2: "odd\x1b[31m"}
CONFIG = UperNetConfig(id2label=NAMES)


class FakeSegmenter(nnx.Module):
    """Says that bright pixels are 'bright' and others 'dark'."""

    def __init__(self, config):
        self.config = config
        self.weight = nnx.Param(np.array([-1.0, 1.0, -9.0], np.float32))

    @classmethod
    def from_pretrained(cls, checkpoint, **_):
        return cls(checkpoint.config)

    def decode(self, pixels, *, image_size=None):
        weight = jnp.pad(self.weight[...], (0, self.config.num_labels - 3), constant_values=-9.0)
        grey = pixels.reshape(len(pixels), -1, 4, pixels.shape[2] // 4, 4 * 3).mean((2, 4))[..., None]
        return jnp.where(weight < -1, -9.0, grey * weight), None


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Puts the fake in place of natjax's model; makes a checkpoint `model` and images whose right halves are bright."""
    monkeypatch.setattr(models, "UperNetForSemanticSegmentation", FakeSegmenter)
    use_config(monkeypatch, CONFIG)
    NatImageProcessor(size=16).save_pretrained(tmp_path / "model")
    (tmp_path / "images" / "more").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "more/a.png"):
        pixels = np.zeros((24, 40, 3), np.uint8)
        pixels[:, 20:] = 255
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use_config(monkeypatch, config):
    monkeypatch.setattr(Checkpoint, "open", lambda path, **_: Checkpoint(path, tensors={}, found=None, config=config))


def test_it_writes_a_coloured_map_and_prints_shares(world, capsys):
    assert main(["segment", "images/a.png", "--model", "model"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"images/a.png: segments{os.sep}a.png",
        "  class   share  pixels",
        "  dark    50.0%     480",
        "  bright  50.0%     480",
    ]
    assert err == ""
    assert os.listdir("segments") == ["a.png"]
    with PIL.Image.open("segments/a.png") as image:
        assert (image.mode, image.size) == ("P", (40, 24))
        indices = np.asarray(image)
    np.testing.assert_array_equal(indices, np.broadcast_to(np.arange(40) >= 20, (24, 40)))


def test_images_of_one_name_do_not_overwrite_each_other(world, capsys):
    PIL.Image.new("RGB", (40, 24)).save("images/A_2.webp")
    assert main(["segment", "images", "--model", "model", "--overlay", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    written = {r["image"]: os.path.basename(r["map"]) for r in document["results"]}
    assert written == {
        "images/A_2.webp": "A_2.png",
        "images/a.png": "a.png",
        "images/b.jpg": "b.png",
        "images/more/a.png": "a_3.png",
    }
    assert sorted(os.listdir("segments")) == sorted(
        name for stem in ("A_2", "a", "b", "a_3") for name in (f"{stem}.png", f"{stem}_overlay.png")
    )


def test_json_names_classes_and_skipped_images(world, capsys):
    (world / "images" / "b.jpg").write_bytes(b"")
    assert (
        main(["segment", "images/a.png", "images/b.jpg", "gone.png", "--model", "model", "--json", "--out", "out"]) == 1
    )
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["model"] == "model"
    (result,) = document["results"]
    assert result["map"] == os.path.join("out", "a.png")
    assert (result["height"], result["width"]) == (24, 40)
    assert result["classes"][1] == {"label": "bright", "index": 1, "pixels": 480, "share": 0.5}
    assert [s["image"] for s in document["skipped"]] == ["images/b.jpg", "gone.png"]
    assert err.splitlines() == [
        "natjax: skipped images/b.jpg: the file is empty.",
        "natjax: skipped gone.png: there is no such file.",
    ]
    assert os.listdir("out") == ["a.png"]


def test_the_overlay_has_a_legend(world, capsys):
    (world / "palette.txt").write_text("255 0 0\n0 255 0\n0 0 255\n")
    assert main(["segment", "images/a.png", "--model", "model", "--overlay", "--palette", "palette.txt"]) == 0
    with PIL.Image.open("segments/a_overlay.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert picture.shape[1] > 40
    assert (picture[0, 30] == (114, 255, 114)).all()  # white below 55 percent green
    assert {(255, 0, 0), (0, 255, 0)} <= {tuple(pixel) for pixel in picture[:, 40:].reshape(-1, 3).tolist()}
    with PIL.Image.open("segments/a.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_photographs_are_segmented_upright(world, capsys):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the right side is up... to be turned by a quarter
    PIL.Image.fromarray(pixels).save("turned.png", exif=exif)
    assert main(["segment", "turned.png", "--model", "model", "--overlay"]) == 0
    with PIL.Image.open("segments/turned.png") as image:
        assert image.size == (24, 40)
        indices = np.asarray(image)
    np.testing.assert_array_equal(indices, np.broadcast_to(np.arange(40)[:, None] >= 20, (40, 24)))


def test_earlier_results_are_replaced_and_nothing_half_written_stays(world, monkeypatch, capsys):
    for _ in range(2):
        assert main(["segment", "images/a.png", "--model", "model"]) == 0
    before = (world / "segments" / "a.png").read_bytes()

    def full(self, path, **_):
        open(path, "wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    assert main(["segment", "images/a.png", "--model", "model"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert os.listdir("segments") == ["a.png"]
    assert (world / "segments" / "a.png").read_bytes() == before


def test_windows_and_scales_reach_the_pipeline(world, monkeypatch, capsys):
    from natjax import pipelines

    seen = {}

    class Spy(pipelines.ImageSegmentation):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            seen.update(vars(self))

    monkeypatch.setattr(pipelines, "ImageSegmentation", Spy)
    arguments = ["--crop-size", "8", "--stride", "8x4", "--multi-scale", "--batch-size", "2"]
    assert main(["segment", "images/a.png", "--model", "model", *arguments]) == 0
    assert (seen["crop_size"], seen["stride"], seen["flip"], seen["batch_size"]) == ((8, 8), (8, 4), True, 2)
    assert seen["scales"] == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def test_a_model_without_names_takes_those_of_its_palette(world, monkeypatch, capsys):
    use_config(monkeypatch, UperNetConfig(num_labels=150))
    assert main(["segment", "images/a.png", "--model", "model", "--palette", "ade20k"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["wall", "building"]
    use_config(monkeypatch, UperNetConfig(num_labels=3))
    (world / "palette.txt").write_text("255 0 0 night\n0 255 0\n0 0 255\n")
    assert main(["segment", "images/a.png", "--model", "model", "--palette", "palette.txt"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["night", "LABEL_1"]


@pytest.mark.parametrize("count", [19, 150])
def test_names_are_not_guessed_from_the_number_of_classes(world, monkeypatch, capsys, count):
    use_config(monkeypatch, UperNetConfig(num_labels=count))
    assert main(["segment", "images/a.png", "--model", "model"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("colours", "first"),
    [
        ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], (1, 2, 3)),
        ([[1, 2, 3]], None),
        ([[1, 2, 300]] * 3, None),
        ([[1, 2, True]] * 3, None),
        ([1, 2, 3], None),
        ("abc", None),
    ],
)
def test_colours_of_the_models_files_are_taken_where_they_fit(world, monkeypatch, colours, first):
    use_config(monkeypatch, UperNetConfig(id2label=NAMES, extra={"palette": colours}))
    assert main(["segment", "images/a.png", "--model", "model"]) == 0
    with PIL.Image.open("segments/a.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (first or tuple(generated(3)[0]))


def test_names_of_classes_steer_no_terminal(world, monkeypatch, capsys):
    use_config(monkeypatch, UperNetConfig(id2label={0: "odd\x1b[31m", 1: "bright", 2: "none"}))
    assert main(["segment", "images/a.png", "--model", "model", "--overlay"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"odd\x1b[31m" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--palette", "ade"],
            "ade: there is no palette or file of this name; a palette is ade20k or cityscapes, or a file.",
        ),
        (["--palette", "short.txt"], "the palette short.txt has 1 colours, the model 3 classes."),
        (["--palette", "bad.txt"], "bad.txt, line 1: not a colour: 'red'."),
        (["--out", "short.txt"], "short.txt: is a file; give a folder to write into."),
        (["--out", "images"], f"images{os.sep}a.png: is one of the images, and would be overwritten."),
        (["--stride", "8"], "stride is of sliding windows, which need a crop_size"),
        (["--crop-size", "8", "--stride", "9"], "stride must be at most crop_size, or pixels would be left out"),
    ],
)
def test_what_it_refuses_before_anything_is_written(world, arguments, message, capsys):
    (world / "short.txt").write_text("1 2 3\n")
    (world / "bad.txt").write_text("red\n")
    assert main(["segment", "images/a.png", "--model", "model", *arguments]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"natjax: error: {message}")
    assert out == ""
    assert not list(world.glob("segments/*"))


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        ("segment", NatConfig(), "has no head for semantic segmentation; image-segmentation needs a UPerNet"),
        ("classify", CONFIG, "use it with image-segmentation (`natjax segment`) instead of image-classification"),
        ("features", CONFIG, "use it with image-segmentation (`natjax segment`) instead of image-feature-extraction"),
    ],
)
def test_checkpoints_of_another_kind(world, command, config, message, monkeypatch, capsys):
    use_config(monkeypatch, config)
    assert main([command, "images/a.png", "--model", "model"]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
