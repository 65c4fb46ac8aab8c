"""What the command line takes for a model's architecture, image processor and size of images."""

import pathlib
import shutil

import pytest
from flax import nnx

import natjax
from natjax.cli import main
from natjax.cli._config import read_model
from natjax.image_processing import NatImageProcessor
from natjax.input_size import input_size
from natjax.presets import PRESETS, preset_of
from natjax.processors import default_processor

pytestmark = pytest.mark.once

TINY = natjax.NatConfig(depths=(1,), num_heads=(1,), embed_dim=8, kernel_size=3, num_labels=1000)


@pytest.mark.parametrize(("name", "side", "edge"), [("nat_mini", 224, 256), ("dinat_large_384", 384, 384)])
def test_presets_have_the_processor_of_their_published_figures(name, side, edge):
    config, beside = read_model(name)
    assert (config, beside) == (natjax.get_config(name), None)
    assert input_size(config, beside) == (side, side)
    changed = config.replace(num_labels=5, drop_path_rate=0.0)
    assert default_processor(changed) == NatImageProcessor.imagenet(side, side / edge)
    assert default_processor(config.replace(kernel_size=5)) == NatImageProcessor.imagenet()


def test_every_preset_is_known_by_its_architecture():
    for preset in PRESETS.values():
        assert preset_of(preset.config) is preset


@pytest.mark.parametrize("where", ["model", "run/model"])
def test_folders_and_runs(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    NatImageProcessor(size=(48, 64)).save_pretrained(where)
    (tmp_path / where / "config.json").write_text(TINY.to_json())
    if where != "model":
        (tmp_path / "run" / "recipe.json").write_text("{}")
    name = where.split("/")[0]
    found = TINY, NatImageProcessor(size=(48, 64))
    assert read_model(name) == read_model(f"{where}/config.json") == found
    assert input_size(*found) == (48, 64)
    (tmp_path / where / "preprocessor_config.json").unlink()
    assert read_model(name) == (TINY, None)
    assert input_size(TINY, None) == (224, 224)


def test_runs_before_their_first_evaluation(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "config.json").write_text(TINY.to_json())
    assert main(["info", str(tmp_path)]) == 0
    assert "at 224 x 224 pixels" in capsys.readouterr().out


def test_a_file_that_holds_the_text_of_its_config(tmp_path):
    goldens = pathlib.Path(__file__).parents[1] / "goldens"
    shutil.copy(goldens / "mmdet_mask_rcnn" / "checkpoint.pth", tmp_path)
    config, processor = read_model(str(tmp_path / "checkpoint.pth"))
    assert (config.model_type, config.fpn_channels, processor) == ("mask_rcnn", 12, None)
    shutil.copy(goldens / "shilabs_nat" / "checkpoint.pth", tmp_path)
    with pytest.raises(natjax.CheckpointError, match="its tensors do not tell NAT from DiNAT"):
        read_model(str(tmp_path / "checkpoint.pth"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "x: no such file or directory, and no id"),
        ("x/model.safetensors", "x: there is no config.json, and weights alone do not say their architecture"),
        ("x", "x: a JSON file, but not the index of a sharded checkpoint"),
        ("x/recipe.json", "x: the run has no model before its first evaluation"),
    ],
)
def test_what_has_no_configuration(tmp_path, monkeypatch, made, message):
    monkeypatch.chdir(tmp_path)
    if made:
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).write_text("{}")
    with pytest.raises(natjax.CheckpointError, match=message):
        read_model("x")


def test_heads_of_1000_classes_without_names_are_pointed_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    natjax.NatForImageClassification(TINY, rngs=nnx.Rngs(0)).save_pretrained("model")
    assert main(["convert", "model", "x.pth"]) == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "x.pth").rename(tmp_path / "alone" / "x.pth")
    assert main(["convert", "alone/x.pth", "out", "--dilations", "none"]) == 0
    assert "the 1000 classes are named LABEL_0 and so on" in capsys.readouterr().err
    assert natjax.NatConfig.from_json_file("out/config.json").id2label[281] == "LABEL_281"
