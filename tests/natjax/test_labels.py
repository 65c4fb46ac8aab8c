"""Names of classes: which they are, and which models have them."""

import pytest

import natjax
from natjax.labels import ade20k, cityscapes, imagenet_1k, imagenet_22k
from natjax.presets import PRESETS

pytestmark = pytest.mark.once


def test_names_of_imagenet():
    names = imagenet_1k()
    assert len(names) == 1000
    assert all(name == name.strip() and name for name in names)
    for index, name in {
        0: "tench, Tinca tinca",
        134: "crane",  # the bird; the machine is 517
        281: "tabby, tabby cat",
        400: "academic gown, academic robe, judge's robe",
        639: "maillot, tank suit",
        999: "toilet tissue, toilet paper, bathroom tissue",
    }.items():
        assert names[index] == name
    larger = imagenet_22k()
    assert len(larger) == 21841
    assert all(name == name.strip() and name for name in larger)
    assert larger[0] == "organism, being"
    assert set(names) - set(larger) == {"teddy, teddy bear"}  # its synset is of another release


def test_names_of_semantic_segmentation():
    names = ade20k()
    assert len(names) == len(set(names)) == 150
    known = {0: "wall", 6: "road", 7: "bed", 12: "person", 44: "chest of drawers", 140: "pier", 149: "flag"}
    assert {index: names[index] for index in known} == known
    assert len(set(cityscapes())) == 19
    assert cityscapes()[:2] == ("road", "sidewalk")
    assert cityscapes()[11:] == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_names_of_their_published_heads(name):
    names = imagenet_22k() if name == "dinat_s_large_22k" else imagenet_1k()
    assert tuple(natjax.get_config(name).id2label.values()) == names
    assert natjax.get_config(name, drop_path_rate=0.0).id2label[281] == names[281]


@pytest.mark.parametrize("changes", [{"num_labels": 10}, {"num_labels": 1000}, {"id2label": {0: "cat", 1: "dog"}}])
def test_heads_of_somebody_else_do_not(changes):
    assert "tabby, tabby cat" not in natjax.get_config("nat_mini", **changes).id2label.values()


def test_the_head_of_imagenet_22k():
    assert tuple(natjax.get_config("dinat_large", num_labels=21841).id2label.values()) == imagenet_22k()
