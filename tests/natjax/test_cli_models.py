"""`natjax info`, `list`, `doctor` and `convert`: output, and the devices and names that there are not."""

import json
import re
import shutil
import types

import jax
import numpy as np
import PIL.Image
import pytest
from fake_model import CONFIG
from flax import nnx

from natjax import models
from natjax.cli import main
from natjax.configuration import NatConfig
from natjax.image_processing import NatImageProcessor
from natjax_kernels.triton import ptxas

pytestmark = pytest.mark.once


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


@pytest.mark.parametrize("found", [True, False])
def test_doctor_says_with_what_the_kernels_are_assembled(found, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    gpu = types.SimpleNamespace(id=0, platform="gpu", device_kind="Tesla T4", compute_capability="7.5")
    monkeypatch.setattr(jax, "devices", lambda *_: [gpu])
    monkeypatch.setattr(
        ptxas, "plugin", lambda: ptxas.Plugin("/site/jax_cuda12_plugin", "nvidia-cuda-nvcc-cu12", "nvidia")
    )
    monkeypatch.setattr(ptxas, "find", lambda plugin: ptxas.Ptxas("/cuda/bin/ptxas", (12, 9, 86)) if found else None)
    assert main(["doctor", "nat_mini"]) == 0
    said = "/cuda/bin/ptxas (12.9.86)" if found else "none: pip install nvidia-cuda-nvcc-cu12"
    assert f"\nptxas, with which jaxlib assembles the fused kernels: {said}\n" in capsys.readouterr().out
    assert main(["doctor", "nat_mini", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ptxas"] == (
        {"path": "/cuda/bin/ptxas", "version": "12.9.86", "install": None}
        if found
        else {"path": None, "version": None, "install": "pip install nvidia-cuda-nvcc-cu12"}
    )


def test_doctor_says_nothing_of_ptxas_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(ptxas, "plugin", lambda: ptxas.Plugin("/site/jax_cuda13_plugin", "nvidia-cuda-nvcc", "nvidia"))
    assert main(["doctor", "nat_mini"]) == 0
    assert "ptxas" not in capsys.readouterr().out
    assert main(["doctor", "nat_mini", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ptxas"] is None


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
    assert "dinat, classes: 3, depths: 1" in out
    assert (
        err.count(
            "comes without a preprocessor_config.json: wrote one that prepares images as for ImageNet (resized to 256 pixels"
        )
        == 2
    )
    assert "overwrite" in err
