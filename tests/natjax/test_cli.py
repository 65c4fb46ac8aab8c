"""The command line: output, exit codes, and one clear line for what goes wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax import models
from natjax.cli import main
from natjax.configuration import NatConfig
from natjax.image_processing import NatImageProcessor

pytestmark = pytest.mark.once

CONFIG = NatConfig(id2label={0: "dark", 1: "bright", 2: "odd\x1b[31m"})


class FakeModel(nnx.Module):
    """Says 'bright' the more, the brighter an image is; stands in for every kind of model."""

    traces = 0

    def __init__(self, config, out_features=("stage4",)):
        self.config, self.out_features = config, out_features
        self.weight = nnx.Param(np.array([-1.0, 1.0, 0.0], np.float32))

    @classmethod
    def from_pretrained(cls, checkpoint, *, dtype, implementation, **options):
        return cls(FakeModel.config, **options)

    def __call__(self, pixels):
        type(self).traces += 1
        means = pixels.mean((1, 2, 3))[:, None]
        maps = tuple(pixels[:, :: 2**i, :: 2**i] for i, _ in enumerate(self.out_features))
        return types.SimpleNamespace(logits=means * self.weight[...], pooler_output=means, feature_maps=maps)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts the fake in place of natjax's models and returns a folder of images and a checkpoint `model`."""
    for name in ("NatForImageClassification", "NatModel", "NatBackbone"):
        monkeypatch.setattr(models, name, FakeModel)
    monkeypatch.setattr(natjax_convert.Checkpoint, "open", lambda path, **_: types.SimpleNamespace(config=CONFIG))
    monkeypatch.setattr(FakeModel, "config", CONFIG, raising=False)
    NatImageProcessor(size=8).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "images").mkdir()
    for i in range(5):
        PIL.Image.new("RGB", (20 + i, 20), (60 * i,) * 3).save(tmp_path / "images" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_and_version_import_nothing_heavy():
    code = """
import sys
from natjax.cli import main
for arguments in (["--help"], ["--version"], ["classify", "--help"], ["convert", "--help"]):
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 0
    heavy = {"jax", "flax", "numpy", "PIL", "torch", "safetensors"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.count("usage: natjax") == 3
    assert f"natjax {natjax.__version__}\n" in result.stdout


def test_module_and_script_are_the_same_command():
    result = subprocess.run([sys.executable, "-m", "natjax", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"natjax {natjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: COMMAND"),
        ("paint", "invalid choice: 'paint'"),
        ("classfy x.png", "; did you mean classify?"),
        ("convert a b --to shilab", "; did you mean shilabs?"),
        ("info nat_mini --image-sise 8", "unrecognized arguments: --image-sise 8; did you mean --image-size?"),
        ("bench nat_mini --batchsize=8", "unrecognized arguments: --batchsize=8; did you mean --batch-size?"),
        ("list --jso", "unrecognized arguments: --jso; did you mean --json?"),
        ("list nat* more", "unrecognized arguments: more"),
        ("classify", "required: IMAGE"),
        ("classify x.png --topk 0", "must be an integer of at least 1; got '0'"),
        ("classify x.png --batch-size many", "must be an integer of at least 1; got 'many'"),
        ("info nat_mini --image-size 1x2x3", "must be a number of pixels or HEIGHTxWIDTH; got '1x2x3'"),
        ("info nat_mini --image-size 9x0", "must be 1 to 65536 pixels; got '0'"),
        ("doctor --image-size 0", "must be 1 to 65536 pixels; got '0'"),
        ("doctor --image-size -5", "must be 1 to 65536 pixels; got '-5'"),
        ("doctor --image-size 999999999", "must be 1 to 65536 pixels; got '999999999'"),
        ("doctor --image-size 8x8", "must be 1 to 65536 pixels; got '8x8'"),
        ("convert a b --dilations [1", "must be 'none' or JSON"),
        ("convert a b --to c", "invalid choice: 'c'"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in error
    assert message in error


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
    assert "takes 3 channel(s)" in capsys.readouterr().err


def test_demo(monkeypatch):
    demo = types.SimpleNamespace(run=lambda out: 0 if out == "there" else 9)
    monkeypatch.setitem(sys.modules, "natjax.demo", demo)
    monkeypatch.setattr(natjax, "demo", demo, raising=False)
    assert main(["demo", "--out", "there"]) == 0


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
        "natjax: error: --stages must be 'all' or of stem, stage1, stage2, stage3, stage4; got ['stage1', 'stage9'].\n"
    )


def test_processors_that_are_missing_or_do_not_fit(fake, capsys):
    NatImageProcessor(size=8, image_mean=[0.5], image_std=[0.5]).save_pretrained(fake / "model")
    assert main(["classify", "images", "--model", "model"]) == 1
    assert "takes 3 channel(s), its preprocessor_config.json makes 1" in capsys.readouterr().err
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
    assert "no such folder" in err
    assert "images: is a folder; give a file to write, such as" in err
    assert ".tmp" not in err
    assert "differ in size: stem is [20, 20, 3] for images/0.png and [20, 21, 3] for images/1.png. Give images" in err


def test_errors_are_one_line_unless_asked_for_more(fake, capsys, monkeypatch):
    assert main(["classify", "images", "--model", "missing"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("natjax: error: missing: no such file or directory")
    assert "Traceback" not in err
    assert main(["classify", "images", "--model", "missing", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("NATJAX_TRACEBACK", "1")
    assert main(["classify", "images", "--model", "missing"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oh"), 1, "error: unexpected ZeroDivisionError: oh (--debug shows where)"),
        (ValueError(), 1, "error: ValueError"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left"),
    ],
)
def test_failures(error, code, message, fake, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(FakeModel, "from_pretrained", fail)
    assert main(["classify", "images", "--model", "model"]) == code
    assert capsys.readouterr().err == f"natjax: {message}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break differently there")
def test_nobody_reads_the_output():
    code = "import natjax.cli, sys; natjax.cli.info.run = None\n"
    code += (
        "natjax.cli._COMMANDS['list'].run = lambda args: print('x' * 10**6) or 0\nsys.exit(natjax.cli.main(['list']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_streams(closed, monkeypatch):
    monkeypatch.setattr(sys, closed, None)
    assert main(["list", "nat_mini"]) == 0
    assert main(["list", "nothing"]) == 1
    getattr(sys, closed).close()


@pytest.mark.parametrize("why", ["", "no driver"])
def test_no_device_of_the_platform_asked_for(why, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError(why) if why else AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert re.search(rf"^jax +{re.escape(jax.__version__)}$", out, re.MULTILINE)
    message = "natjax: error: JAX finds no device of the kind that the environment asks for, JAX_PLATFORMS=cuda"
    message += f": {why}." if why else "."
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["devices"] == []
    monkeypatch.setattr("natjax.cli.bench.input_size", fail)
    assert main(["bench", "nat_mini"]) == 1
    assert capsys.readouterr().err.startswith(message)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert main(["bench", "nat_mini"]) == 1
    assert capsys.readouterr().err == f"natjax: error: JAX finds no device to run on{why and ': '}{why}\n"


def test_progress_is_shown_on_terminals_only(fake, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["classify", "images", "--model", "model", "--json", "--batch-size", "2"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert "\r2/5 images, " in err
    assert err.endswith("\r")


def test_info_of_a_preset(capsys):
    assert main(["info", "dinat_mini"]) == 0
    out = capsys.readouterr().out
    assert "parameters  19,984,174 (19.98 M)" in out
    assert "2.71 G at 224 x 224" in out
    assert "published   2.7 GMACs" in out
    assert "shi-labs/nat-mini" not in out
    assert "weights     shi-labs/dinat-mini-in1k-224 (Hugging Face Hub; MIT licence)" in out
    assert "/dinat_mini_in1k_224.pth" in out
    assert "81.8 %" in out
    table = out.split("\n\n")[1].splitlines()
    assert table[2].split() == ["level1", "56", "x", "56", "64", "3", "2", "1/8", "200,182", "509,606,272"]
    assert len({len(line) for line in table}) == 1


def test_doctor(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["doctor", "dinat_mini"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^jax +{re.escape(jax.__version__)}$", said, re.MULTILINE)
    assert re.search(r"^  level 1 +56 x 56 +8 +xla$", said, re.MULTILINE)
    assert "level 1, 2, 3, 4: not triton, as the fused kernels run on NVIDIA GPUs" in said


def test_doctor_as_json(capsys):
    assert main(["doctor", "nat_mini", "--image-size", "100", "--dtype", "bfloat16", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["versions"]["jax"] == jax.__version__
    assert [level["tokens"] for level in document["levels"]] == [[25, 25], [13, 13], [7, 7], [7, 7]]
    assert main(["doctor", "nat_minni"]) == 1


def test_info_as_json(fake, capsys):
    assert main(["info", "model", "--image-size", "100x50", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["image_size"] == [100, 50]
    assert document["published"] is None
    assert NatConfig.from_dict(document["config"]) == CONFIG
    assert document["parts"][1]["tokens"] == [25, 13]
    assert sum(part["flops"] for part in document["parts"]) == document["flops"] == 2 * document["macs"]
    assert main(["info", "model/config.json"]) == 0
    assert main(["info", "nat_minni"]) == 1
    assert "Did you mean nat_mini?" in capsys.readouterr().err


def test_list(capsys):
    assert main(["list", "dinat_large*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:4]] == [
        "dinat_large",
        "dinat_large_384",
        "dinat_large_384_11x11",
    ]
    assert main(["list", "--json"]) == 0
    mini = json.loads(capsys.readouterr().out)[0]
    assert (mini["name"], mini["image_size"], mini["published_top1"]) == ("nat_mini", 224, 81.8)
    assert mini["hub_id"] == "shi-labs/nat-mini-in1k-224"
    assert mini["address"] == "https://shi-labs.com/projects/nat/checkpoints/CLS/nat_mini.pth"
    assert main(["list", "resnet*"]) == 1
    assert capsys.readouterr().err == "natjax: error: no model matches 'resnet*'; `natjax list` shows all\n"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A tiny real checkpoint with its processor, and an image."""
    folder = tmp_path_factory.mktemp("real")
    config = NatConfig(embed_dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_labels=3, mlp_ratio=1.0)
    model = models.NatForImageClassification(config, rngs=nnx.Rngs(0))
    model.save_pretrained(folder / "model", processor=NatImageProcessor(size=16))
    PIL.Image.new("RGB", (20, 20), (200, 100, 50)).save(folder / "image.png")
    return folder


def test_a_real_model(real, capsys, monkeypatch):
    monkeypatch.chdir(real)
    assert main(["classify", "image.png", "--model", "model", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["results"][0]["predictions"]
    model = models.NatForImageClassification.from_pretrained("model")
    logits = model(NatImageProcessor.from_pretrained("model")("image.png")).logits[0]
    expected = np.asarray(nnx.softmax(logits))
    np.testing.assert_allclose([p["probability"] for p in predictions], sorted(expected)[::-1], rtol=1e-5)

    assert main(["features", "image.png", "--model", "model"]) == 0
    with np.load("features.npz") as written:
        assert written["pooled"].shape == (1, 8)
    capsys.readouterr()
    assert main(["features", "image.png", "--model", "model", "--stages", "all"]) == 0
    assert capsys.readouterr().err == ""
    with np.load("features.npz") as written:
        assert written["stage1"].shape == (1, 4, 4, 8)


def test_convert_takes_what_other_commands_take_for_a_model(real, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(real / "model", tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    assert main(["convert", "run", "file.pth"]) == 0
    assert main(["convert", "digits", "digits.pth"]) == 0
    assert main(["convert", "nat_mni", "there"]) == 1
    assert "Did you mean nat_mini?" in capsys.readouterr().err


def test_convert_there_and_back(real, capsys, monkeypatch):
    monkeypatch.chdir(real)
    assert main(["convert", "model", "file.pth"]) == 0
    out, err = capsys.readouterr()
    assert "(hf classifier) -> file.pth (shilabs)" in out
    assert "holds weights alone: keep the config.json and preprocessor_config.json of model" in err
    assert main(["classify", "image.png", "--model", "file.pth", "--config", "model"]) == 0
    (real / "elsewhere").mkdir()
    (real / "elsewhere" / "file.pth").write_bytes((real / "file.pth").read_bytes())
    capsys.readouterr()
    for command in ("classify", "features"):  # both find the image processor that belongs to --config
        assert main([command, "image.png", "--model", "elsewhere/file.pth", "--config", "model"]) == 0
        assert capsys.readouterr().err == ""
    (real / "alone").mkdir()
    (real / "file.pth").rename(real / "alone" / "file.pth")
    assert main(["convert", "alone/file.pth", "back"]) == 1
    assert "--config" in capsys.readouterr().err
    for extra in (["--config", "model"], ["--dilations", "none"], ["--dilations", "[[2]]"]):
        assert main(["convert", "alone/file.pth", "back", "--overwrite", *extra]) == 0
        same = (real / "back" / "preprocessor_config.json").read_text() == (
            real / "model" / "preprocessor_config.json"
        ).read_text()
        assert same == (extra[0] == "--config")  # what is beside the configuration belongs to it
    assert main(["convert", "alone/file.pth", "back", "--config", "model"]) == 1
    out, err = capsys.readouterr()
    assert "dinat, 3 class(es), depths 1" in out
    assert err.count("comes without a preprocessor_config.json: wrote ImageNet's") == 2
    assert "overwrite" in err
