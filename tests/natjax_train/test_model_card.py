"""Model cards: the front matter that the Hub reads, and what a person reads."""

import dataclasses
import json
import types

import pytest

from natjax.presets import PRESETS
from natjax_train.model_card import base_model, model_card
from natjax_train.recipe import Recipe
from natjax_train.recipes import RECIPES
from natjax_train.tasks.detection import Detection

pytestmark = pytest.mark.once


class Images(types.SimpleNamespace):
    def __len__(self):
        return self.count


def card(recipe, classes=("cat", "dog"), data="/home/me/flowers"):
    training, validation = (Images(count=count, class_names=classes) for count in (1203, 240))
    return model_card(recipe, data, training, validation, {"val_loss": 0.25, "top1": 0.875, "top5": 1.0}, 1200)


def front_matter(text):
    _, front, _ = text.split("---\n", 2)
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in front.splitlines())}


def test_front_matter():
    front = front_matter(card(RECIPES["finetune"]))
    assert (front["library_name"], front["pipeline_tag"]) == ("natjax", "image-classification")
    assert front["base_model"] == PRESETS["nat_mini"].hub_id
    result = front["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "flowers"
    assert {metric["name"]: metric["value"] for metric in result["metrics"]}["top-1 accuracy"] == 0.875
    assert "license" not in front
    assert "base_model" not in front_matter(card(Recipe(model="nat_mini")))


def test_text():
    text = card(RECIPES["finetune"])
    assert "flowers, 1,203 training and 240 validation images of 2 classes: cat, dog." in text
    assert "after step 1200" in text
    assert "| top-1 accuracy | 87.50% |" in text
    assert "AutoModelForImageClassification" in text
    assert Recipe.from_json(text.rpartition("```json\n")[2].partition("```")[0]) == RECIPES["finetune"]


def test_a_detector_has_no_class_in_transformers():
    training, validation = (Images(count=count, class_names=("ant", "bee")) for count in (9, 4))
    metrics = {"box_ap": 0.5, "mask_ap_large": float("nan")}
    task = Detection(None, ("ant", "bee"))
    text = model_card(RECIPES["finetune_boxes"], "insects", training, validation, metrics, 100, task.card())
    assert "transformers" not in text
    assert "| box AP | 50.00% |" in text
    assert "| mask AP of large objects | - |" in text
    assert 'detect = natjax.pipeline("object-detection", "path/or/id/of/this/model")' in text
    result = front_matter(text)["model-index"][0]["results"][0]
    assert result["task"] == {"type": "object-detection", "name": "Object detection"}
    assert result["metrics"] == [{"type": "box_ap", "name": "box AP", "value": 0.5}]


def test_no_place_on_this_machine_is_told():
    text = card(dataclasses.replace(RECIPES["finetune"], model="/home/me/runs/one/model"))
    assert "/home" not in text
    assert "one/model" in text
    assert "base_model" not in front_matter(text)


def test_any_names():
    text = card(RECIPES["digits"], classes=("caf\udce9", "a|b", "*\nc", "\U0001f600"), data="caf\udce9 \U0001f600")
    text.encode("utf-8")
    assert front_matter(text)["model-index"][0]["name"] == "natjax-caf\\udce9 \U0001f600"
    assert r"caf\\udce9, a\|b, \*\\nc" in text
    assert "and 50 more" in card(RECIPES["digits"], classes=tuple(map(str, range(100))))


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"model": "owner/name"}, "owner/name"),
        ({"model": "natjax/cli"}, "natjax/cli"),
        ({"model": "runs/a/b"}, None),
        ({"model": "/runs/pretrain"}, None),
        ({"model": "custom"}, None),
        ({"model": "nat_mini"}, None),
        ({"model": "nat_mini", "pretrained": True}, PRESETS["nat_mini"].hub_id),
    ],
)
def test_base_model(recipe, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_model(Recipe(**recipe)) == expected
