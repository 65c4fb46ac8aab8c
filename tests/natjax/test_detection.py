"""Mask R-CNN and Cascade Mask R-CNN: their configuration, and what they return, by small random models."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.configuration import config_from_dict
from natjax.nn.resizing import upsample_nearest

pytestmark = pytest.mark.nnx

BACKBONE = natjax.NatConfig(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), kernel_size=3, drop_path_rate=0.0)
SIZES = {"fpn_channels": 6, "rpn_channels": 5, "box_conv_channels": 7, "box_fc_channels": 8, "mask_channels": 9}
CONFIGS = [
    natjax.MaskRcnnConfig(backbone_config=BACKBONE, num_labels=3, **SIZES),
    natjax.CascadeMaskRcnnConfig(backbone_config=BACKBONE, num_labels=3, **SIZES),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_config_json_comes_back(config):
    config = config.replace(score_threshold=0.1, id2label={0: "cat", 1: "dog"}, extra={"more": [1]})
    read = config_from_dict(json.loads(config.to_json()))
    assert read == config
    assert type(read) is type(config)
    assert hash(read) == hash(config)
    assert read.trunk.out_features == ("stage1", "stage2", "stage3", "stage4")
    assert read.strides == (4, 8, 16, 32, 64)


def test_changes_go_to_the_backbone_where_they_are_its_fields():
    changed = CONFIGS[1].replace(drop_path_rate=0.3, embed_dim=8, fpn_channels=16, initializer_range=0.5)
    assert (changed.trunk.drop_path_rate, changed.trunk.embed_dim, changed.trunk.initializer_range) == (0.3, 8, 0.02)
    assert (changed.fpn_channels, changed.initializer_range) == (16, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fpn_chanels": 3}, "no field 'fpn_chanels'"),
        ({"num_labels": 0}, "a Mask R-CNN without classes detects nothing"),
        ({"fpn_channels": 0}, "fpn_channels must be an integer of at least 1; got 0"),
        ({"box_num_fcs": -1}, "box_num_fcs must be an integer of at least 0; got -1"),
        ({"score_threshold": 1.5}, r"score_threshold must be in \[0, 1\]; got 1.5"),
        ({"rpn_anchor_border": -1}, "rpn_anchor_border must be an integer of at least 0; got -1"),
        ({"box_loss": "l2"}, "box_loss must be one of l1, giou; got 'l2'"),
        ({"box_loss_weight": -1}, "box_loss_weight must not be negative"),
        ({"box_low_quality_matches": 1}, "box_low_quality_matches must be true or false; got 1"),
        ({"anchor_ratios": (1, 0)}, "entries of anchor_ratios must be positive"),
        ({"anchor_ratios": ()}, "anchor_ratios must be a sequence of one or more entries"),
        ({"anchor_scale": "8"}, "anchor_scale must be a finite number; got '8'"),
        ({"box_stds": ((0.1, 0.1),)}, r"box_stds\[0\] must be a sequence of 4 entries"),
        ({"box_stds": 0.1}, "box_stds must be a sequence"),
        ({"box_iou_thresholds": (0.5, 0.6)}, r"box_iou_thresholds needs an entry for each of the 1 stages .*got \(0.5"),
        ({"box_iou_thresholds": (50,)}, r"entries of box_iou_thresholds must be in \[0, 1\]; got 50"),
        (
            {"box_stds": ((1, 1, 1, 1),) * 2, "box_iou_thresholds": (0.5,) * 2, "stage_loss_weights": (1,) * 2},
            "a Mask R-CNN has one stage; got 2. CascadeMaskRcnnConfig has several",
        ),
        ({"backbone_config": BACKBONE.replace(out_features=("stage1",))}, "a Mask R-CNN takes the maps of all levels"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIGS[0].replace(**changes)


def test_a_model_takes_its_own_configuration():
    with pytest.raises(ValueError, match="config must be a CascadeMaskRcnnConfig; got MaskRcnnConfig"):
        natjax.CascadeMaskRcnnForObjectDetection(CONFIGS[0], rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)])
def test_nearest_neighbours_as_in_pytorch(size):
    x = np.random.default_rng(0).standard_normal((2, -(-size[0] // 2), -(-size[1] // 2), 3), np.float32)
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(x.shape[1:3], size, strict=True))
    np.testing.assert_array_equal(jax.jit(upsample_nearest, static_argnums=1)(x, size), x[:, rows][:, :, columns])
