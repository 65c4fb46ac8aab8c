"""Operations: the papers' table, and parts at sizes where maps are odd or smaller than the window."""

import math

import pytest

from natjax.flops import count_flops, count_macs, count_parts
from natjax.presets import PRESETS

pytestmark = pytest.mark.once

_OTHER_HEAD = ("dinat_large",)  # the paper's figure is that of its 21841 classes


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in _OTHER_HEAD])
def test_macs_agree_with_the_published_table(name):
    preset = PRESETS[name]
    size = (preset.image_size,) * 2
    gmacs = count_macs(preset.config, size) / 1e9
    assert preset.gmacs in (round(gmacs, 1), math.floor(10 * gmacs) / 10)  # the papers round some and cut others
    assert count_flops(preset.config, size) == 2 * count_macs(preset.config, size)


PARTS = {
    ("nat_mini", 224, 224): [69644288, 509606272, 615822592, 861606592, 655992400, 662528],
    ("dinat_large_384_11x11", 384, 384): [1633222656, 11044767744, 13307867136, 52488981504, 13872418560, 2863104],
    ("dinat_small", 33, 57): [6302448, 180095754, 311716704, 1523700636, 644094840, 786432],
    ("nat_base", 1, 1): [76096, 12003212, 58615328, 993480992, 1073597600, 1030144],
    ("dinat_s_tiny", 33, 57): [686880, 175028229, 167247024, 551572788, 276512304, 786432],
    ("vitrpb_small", 224, 224): [58179072, 4530403584, 835584],
}


@pytest.mark.parametrize(("name", "height", "width"), PARTS)
def test_parts(name, height, width):
    parts = count_parts(PRESETS[name].config, (height, width))
    config = PRESETS[name].config
    assert [part.name for part in parts] == ["stem", *(f"level{i + 1}" for i in range(config.num_levels)), "head"]
    assert [part.macs for part in parts] == PARTS[name, height, width]
    assert [part.flops for part in parts] == [2 * macs for macs in PARTS[name, height, width]]
    assert parts[-2].shape[0] == math.ceil(height / config.patch_size / 2 ** (config.num_levels - 1))
    assert parts[-2].shape[2] == config.hidden_size
