"""Presets of segmentation models: operations as published, names, and what `natjax list` and `info` say of them."""

import json

import pytest

import natjax
from natjax.cli import main
from natjax.flops import count_macs, count_parts
from natjax.labels import ade20k
from natjax.presets import SEGMENTATION_PRESETS

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", [name for name, preset in SEGMENTATION_PRESETS.items() if preset.gmacs])
def test_operations_are_the_published_ones(name):
    preset = SEGMENTATION_PRESETS[name]
    assert count_macs(preset.config, preset.image_size) / 1e9 == pytest.approx(preset.gmacs, rel=2e-3)


def test_parts_have_all_parameters():
    config = SEGMENTATION_PRESETS["upernet_nat_mini"].config
    parts = count_parts(config, (512, 2048))
    assert [part.name for part in parts[-2:]] == ["decode_head", "auxiliary_head"]
    assert sum(part.parameters for part in parts) == 49779698
    without = count_parts(config.replace(use_auxiliary_head=False), (512, 2048))
    assert sum(part.macs for part in without) == count_macs(config, (512, 2048))


def test_configurations_have_names_of_classes():
    config = natjax.get_config("upernet_dinat_tiny", drop_path_rate=0.1)
    assert config.id2label == dict(enumerate(ade20k()))
    assert config.trunk.drop_path_rate == 0.1
    assert config.trunk.dilations[0] == (1, 16, 1)
    assert natjax.get_config("upernet_nat_mini", num_labels=3).id2label[2] == "LABEL_2"


def test_create_model_makes_one():
    small = {"embed_dim": 4, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "hidden_size": 8, "num_labels": 3}
    model = natjax.create_model("upernet_nat_mini", **small)
    assert isinstance(model, natjax.UperNetForSemanticSegmentation)
    assert natjax.create_model("upernet_nat_mini", model_class=natjax.NatBackbone, **small).channels == (4, 8, 16, 32)


def test_list_and_info(capsys):
    assert main(["list", "upernet*large"]) == 0
    table = capsys.readouterr().out
    assert "upernet_dinat_large" in table
    assert "mIoU" in table
    assert "top-1" not in table
    assert main(["list", "upernet_nat_tiny", "--json"]) == 0
    [facts] = json.loads(capsys.readouterr().out)
    assert (facts["published_miou"], facts["published_miou_multi_scale"]) == (47.1, 48.4)
    assert facts["address"] == "https://shi-labs.com/projects/nat/checkpoints/SEG/nat_tiny_upernet.pth"
    assert main(["info", "upernet_nat_tiny", "--image-size", "512x2048"]) == 0
    said = capsys.readouterr().out
    assert "932.85 G" in said
    assert "934 GMACs at 512 x 2048, ADE20K mIoU 47.1 %, 48.4 % at several scales" in said
    assert main(["info", "upernet_nat_tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["published"]["miou"] == 47.1


def test_weights_that_are_not_on_the_hub_are_to_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path))
    with pytest.raises(natjax.CheckpointError, match=r"upernet_dinat_mini.pth.*--config upernet_dinat_mini"):
        natjax.UperNetForSemanticSegmentation.from_pretrained("upernet_dinat_mini")
