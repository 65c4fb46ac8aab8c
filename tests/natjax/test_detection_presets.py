"""Presets of detection models: operations as published, names, and what `natjax list` and `info` say of them."""

import json

import pytest

import natjax
from natjax.cli import main
from natjax.flops import count_macs, count_parts
from natjax.labels import coco
from natjax.presets import DETECTION_PRESETS

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", [name for name, preset in DETECTION_PRESETS.items() if preset.gmacs])
def test_operations_are_the_published_ones(name):
    preset = DETECTION_PRESETS[name]
    assert count_macs(preset.config, preset.image_size) / 1e9 == pytest.approx(preset.gmacs, abs=0.5)


def test_parts_have_all_parameters():
    parts = count_parts(DETECTION_PRESETS["mask_rcnn_nat_mini"].config, (800, 1280))
    assert [part.name for part in parts[-4:]] == ["neck", "rpn_head", "box_head", "mask_head"]
    assert [part.shape for part in parts[-4:]] == [(200, 320, 256), (200, 320, 256), (7, 7, 256), (14, 14, 256)]
    assert sum(part.parameters for part in parts) == 39623094


def test_configurations_have_names_of_classes():
    config = natjax.get_config("cascade_mask_rcnn_dinat_large", drop_path_rate=0.1)
    assert config.id2label == dict(enumerate(coco()))
    assert (config.trunk.drop_path_rate, config.trunk.dilations[0]) == (0.1, (1, 28, 1))
    assert natjax.get_config("mask_rcnn_nat_mini", num_labels=3).id2label[2] == "LABEL_2"


@pytest.mark.parametrize("name", ["mask_rcnn_nat_mini", "cascade_mask_rcnn_dinat_s_tiny"])
def test_create_model_makes_one(name):
    small = {"embed_dim": 4, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_labels": 3}
    small |= {"dilations": None if "dinat" not in name else ((1,),) * 4, "box_fc_channels": 4, "fpn_channels": 4}
    model = natjax.create_model(name, **small)
    assert type(model.config) is type(DETECTION_PRESETS[name].config)
    assert isinstance(model, natjax.CascadeMaskRcnnForObjectDetection) is name.startswith("cascade")
    assert natjax.create_model(name, model_class=natjax.NatBackbone, **small).channels == (4, 8, 16, 32)


def test_list_and_info(capsys):
    assert main(["list", "*mask_rcnn*tiny"]) == 0
    table = capsys.readouterr().out
    assert "cascade_mask_rcnn_dinat_s_tiny 85.6 M 800 x 1280 - 51.0 44.1" in " ".join(table.split())
    assert "GMACs (papers call them GFLOPs) and COCO AP are the published ones" in table
    assert main(["list"]) == 0
    assert "ImageNet-1k top-1, ADE20K mIoU and COCO AP are" in capsys.readouterr().out
    assert main(["list", "mask_rcnn_nat_tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)[0]
    assert (facts["task"], facts["published_box_ap"], facts["published_mask_ap"]) == ("object detection", 47.7, 42.6)
    assert facts["address"] == "https://shi-labs.com/projects/nat/checkpoints/DET/nat_tiny_maskrcnn.pth"
    assert main(["info", "mask_rcnn_nat_tiny", "--image-size", "800x1280"]) == 0
    said = capsys.readouterr().out
    assert "mask_rcnn on nat, channels: 3, classes: 80" in said
    assert "258.21 G at 800 x 1280 pixels" in said
    assert "258 GMACs at 800 x 1280, COCO box AP 47.7 %, mask AP 42.6 %" in said
    assert main(["info", "cascade_mask_rcnn_dinat_large", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["published"] == {"image_size": [800, 1280], "gmacs": 1276, "box_ap": 55.3, "mask_ap": 47.8}
    assert facts["image_size"] == [800, 1333]
    assert facts["weights"]["address"].endswith("dinat/checkpoints/coco/cascadedmaskrcnn_dinat_large.pth")


def test_weights_that_are_not_on_the_hub_are_to_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path))
    with pytest.raises(natjax.CheckpointError, match=r"maskrcnn_dinat_mini.pth.*--config mask_rcnn_dinat_mini"):
        natjax.MaskRcnnForObjectDetection.from_pretrained("mask_rcnn_dinat_mini")
