"""What the command line takes for a model's architecture, image processor and size of images."""

import pytest
from flax import nnx

import natjax
from natjax.cli import main
from natjax.cli._config import input_size, read_config, read_processor
from natjax.image_processing import NatImageProcessor

TINY = natjax.NatConfig(depths=(1,), num_heads=(1,), embed_dim=8, kernel_size=3, num_labels=1000)


@pytest.mark.parametrize(("name", "side", "edge"), [("nat_mini", 224, 256), ("dinat_large_384", 384, 384)])
def test_presets_have_the_processor_of_their_published_figures(name, side, edge):
    processor = read_processor(name)
    assert (processor.crop_size, processor.size) == ({"height": side, "width": side}, {"shortest_edge": edge})
    assert input_size(name) == (side, side)
    assert read_config(name) == natjax.get_config(name)


def test_a_processor_beside_weights_is_rather_theirs_than_a_presets(tmp_path):
    weights = tmp_path / "x.pth"
    assert read_processor("nat_mini", for_weights=weights) == read_processor("nat_mini")
    NatImageProcessor(size=48).save_pretrained(tmp_path)
    assert read_processor("nat_mini", for_weights=weights) is None
    NatImageProcessor(size=64).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(TINY.to_json())
    assert read_processor(str(tmp_path / "other"), for_weights=weights) == NatImageProcessor(size=64)


@pytest.mark.parametrize("where", ["model", "run/model"])
def test_folders_and_runs(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    NatImageProcessor(size=(48, 64)).save_pretrained(where)
    (tmp_path / where / "config.json").write_text(TINY.to_json())
    if where != "model":
        (tmp_path / "run" / "recipe.json").write_text("{}")
    name = where.split("/")[0]
    assert read_config(name) == TINY
    assert input_size(name) == (48, 64)
    assert read_config(f"{where}/config.json") == TINY
    (tmp_path / where / "preprocessor_config.json").unlink()
    assert read_processor(name) is None
    assert input_size(name) == (224, 224)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "x: no such file or directory, and no id"),
        ("x/model.safetensors", "x: there is no config.json, and weights alone do not say their architecture"),
        ("x", "x: there is no config.json, and weights alone do not say their architecture"),
        ("x/recipe.json", "x: the run has no model before its first evaluation"),
    ],
)
def test_what_has_no_configuration(tmp_path, monkeypatch, made, message):
    monkeypatch.chdir(tmp_path)
    if made:
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).write_text("{}")
    with pytest.raises(natjax.CheckpointError, match=message):
        read_config("x")


def test_heads_of_1000_classes_without_names_are_pointed_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    natjax.NatForImageClassification(TINY, rngs=nnx.Rngs(0)).save_pretrained("model")
    assert main(["convert", "model", "x.pth"]) == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "x.pth").rename(tmp_path / "alone" / "x.pth")
    assert main(["convert", "alone/x.pth", "out", "--dilations", "none"]) == 0
    assert "the 1000 classes are named LABEL_0 and so on" in capsys.readouterr().err
    assert natjax.NatConfig.from_json_file("out/config.json").id2label[281] == "LABEL_281"
