"""Recipes: presets after the papers, JSON round trip, overrides as text, and errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

import natjax
from natjax_train.recipe import Recipe, is_same_model, override
from natjax_train.recipes import RECIPES, find_recipe

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip(name):
    assert Recipe.from_json(RECIPES[name].to_json()) == RECIPES[name]


CLASSIFICATION = [name for name in RECIPES if RECIPES[name].task == "classification" and "384" not in name]


@pytest.mark.parametrize("name", [name for name in CLASSIFICATION if name in natjax.list_models()])
def test_papers(name):
    recipe = RECIPES[name]
    assert recipe.model == name
    of_base = name in ("nat_isotropic_base", "dinat_isotropic_base", "vitrpb_base")
    assert (recipe.epochs, recipe.warmup_epochs, recipe.cooldown_epochs) == (300, 50 if of_base else 20, 10)
    assert recipe.ema_decay == (0.9998 if of_base else None)
    assert (recipe.peak_learning_rate, recipe.batch_size, recipe.weight_decay) == (1e-3, 1024, 0.05)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.erasing) == (0.8, 1.0, 0.1, 0.25)
    assert recipe.auto_augment == "rand-m9-mstd0.5-inc1"
    assert recipe.clip_norm == 5


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("upernet_")])
def test_papers_of_segmentation(name):
    """Backbones are those of the published models; 160,000 steps of 16 crops."""
    recipe, trunk = RECIPES[name], natjax.get_config(name).backbone_config
    changed = natjax.get_config(recipe.model).replace(drop_path_rate=recipe.drop_path_rate, **recipe.model_config)
    assert (changed.dilations, changed.drop_path_rate) == (trunk.dilations, trunk.drop_path_rate)
    assert (changed.embed_dim, changed.depths) == (trunk.embed_dim, trunk.depths)
    assert (recipe.steps, recipe.batch_size, recipe.peak_learning_rate, recipe.weight_decay) == (
        160_000,
        16,
        6e-5,
        0.01,
    )
    assert recipe.steps * recipe.warmup_epochs / recipe.epochs == 1500


@pytest.mark.parametrize("name", natjax.list_models("*mask_rcnn*"))
def test_papers_of_detection(name):
    """Backbones are those of the published models, on weights of their architecture; 36 epochs of batches of 16."""
    recipe, published = RECIPES[name], natjax.get_config(name)
    weights = "dinat_large" if recipe.model == "shi-labs/dinat-large-in22k-224" else recipe.model
    changes = {"drop_path_rate": recipe.drop_path_rate, **recipe.model_config}
    changed = natjax.get_config(weights).replace(out_features=published.trunk.out_features, num_labels=0, **changes)
    assert changed == published.trunk
    assert recipe.detector == published.model_type
    assert ("22k" in recipe.model) == name.endswith("large")  # as the authors' start
    slower = {"dinat_base": 7.5e-5, "dinat_large": 7.5e-5, "dinat_s_base": 7.5e-5, "dinat_s_large": 5e-5}
    rate = slower.get(name.partition("rcnn_")[2], 1e-4)
    assert (recipe.peak_learning_rate, recipe.warmup_learning_rate) == (rate, pytest.approx(rate / 1000))
    assert (recipe.epochs, recipe.milestones, recipe.batch_size, recipe.weight_decay) == (36, (27, 33), 16, 0.05)
    assert (recipe.image_size, recipe.longest_edge, recipe.scale_range) == (800, 1333, (0.6, 1.0))


def test_milestones_keep_their_share():
    """As the warm-up; where they fit, they stay."""
    recipe = Recipe(model="nat_mini", epochs=36, warmup_epochs=2, schedule="step", milestones=(27, 33))
    assert override(recipe, {"epochs": "34"}).milestones == (27, 33)
    shorter = override(recipe, {"epochs": "12"})
    assert (shorter.milestones, shorter.warmup_epochs) == ((9, 11), 2)
    assert override(recipe, {"epochs": "12", "milestones": "8,11"}).milestones == (8, 11)
    assert override(recipe, {"epochs": "1"}).warmup_epochs == 2 / 36


def test_learning_rate_follows_the_batch_size():
    assert override(RECIPES["nat_mini"], {"batch_size": "256"}).peak_learning_rate == pytest.approx(2.5e-4)


@pytest.mark.parametrize(("name", "weight_decay"), [("dinat_large_384", 1e-10), ("dinat_s_large_384", 1e-5)])
def test_large_recipes(name, weight_decay):
    recipe = RECIPES[name]
    dilations = recipe.model_config["dilations"]
    assert natjax.get_config(name).dilations == tuple(map(tuple, dilations))
    assert recipe.pretrained or recipe.model not in natjax.list_models()
    assert (recipe.epochs, recipe.batch_size, recipe.peak_learning_rate, recipe.clip_norm) == (30, 512, 5e-5, 5)
    assert (recipe.weight_decay, recipe.mixup, recipe.cutmix, recipe.crop_pct) == (weight_decay, 0, 0, 1)


def test_overrides():
    changed = override(
        RECIPES["nat_mini"],
        {
            "epochs": "3",
            "warmup_epochs": "0.5",
            "remat": "true",
            "ema_decay": "0.999",
            "drop_path_rate": "none",
            "crop_scale": "0.5,1",
            "model_config": '{"kernel_size": 5}',
            "mesh": "data=2",
        },
    )
    assert (changed.epochs, changed.remat, changed.ema_decay, changed.drop_path_rate) == (3, True, 0.999, None)
    assert (changed.crop_scale, changed.model_config, changed.mesh) == ((0.5, 1.0), {"kernel_size": 5}, "data=2")
    assert changed.warmup_epochs == 0.5
    assert RECIPES["nat_mini"].epochs == 300


def test_a_model_config_may_be_a_file(tmp_path):
    path = tmp_path / "model.json"
    path.write_text('{"kernel_size": 5}')
    assert override(RECIPES["nat_mini"], {"model_config": str(path)}).model_config == {"kernel_size": 5}
    with pytest.raises(ValueError, match=r"a JSON object or the name of its file; got '.*missing\.json'"):
        override(RECIPES["nat_mini"], {"model_config": str(tmp_path / "missing.json")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": "3"}, "Did you mean epochs"),
        ({"epochs": "many"}, "epochs must be a finite number; got 'many'"),
        ({"batch_size": "1.5"}, "batch_size must be a whole number"),
        ({"remat": "maybe"}, "remat must be true or false"),
        ({"mixup_prob": "2"}, "mixup_prob must be between 0 and 1"),
        ({"learning_rate": "nan"}, "learning_rate must be a finite number"),
        ({"learning_rate": "-1"}, "learning_rate must be more than 0"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16'"),
        ({"accumulate": "3"}, "accumulate must divide batch_size"),
        ({"warmup_epochs": "400"}, "warmup_epochs must be at most epochs"),
        ({"model_config": "[1]"}, "model_config must be a JSON object"),
        ({"model_config": "{"}, "model_config must be a JSON object"),
        ({"model_config": '{"kernal_size": 5}'}, "NatConfig has no field 'kernal_size'. Did you mean kernel_size"),
        ({"model_config": '{"nope": 3}'}, "NatConfig has no field 'nope'. There are: patch_size, "),
        ({"auto_augment": "rand-m15"}, "auto_augment must be empty or read like .* got 'rand-m15'"),
        ({"crop_ratio": "2,1"}, "crop_ratio must be two numbers"),
        ({"image_mean": "0.5"}, "one number per channel"),
        ({"seed": "-1"}, "seed must be at least 0"),
        ({"schedule": "step"}, "needs milestones: give --milestones, as in 27,33 of 36 epochs"),
        ({"milestones": "20"}, r"got \[20.0\] and cosine: give --schedule step or --milestones none"),
        ({"schedule": "step", "milestones": "20,10"}, r"milestones must rise, .* got \[20.0, 10.0\]"),
        ({"schedule": "step", "milestones": "300"}, r"less than epochs \(300\); got \[300.0\]"),
        ({"task": "detection"}, r"at most 1; got \[0.5, 2.0\]: begin with --recipe finetune_boxes, or give .* 0.6,1 "),
        ({"detector": "yolo"}, "detector must be 'mask_rcnn' or 'cascade_mask_rcnn'"),
    ],
)
def test_bad_overrides(changes, message):
    with pytest.raises(ValueError, match=message):
        override(RECIPES["nat_mini"], changes)


def test_bad_documents():
    with pytest.raises(ValueError, match="JSON object"):
        Recipe.from_json("[]")
    with pytest.raises(ValueError, match="no field 'modle'"):
        Recipe.from_json('{"modle": "nat_mini"}')
    with pytest.raises(ValueError, match="needs a model"):
        Recipe.from_json("{}")
    with pytest.raises(ValueError, match="epochs must be a finite number"):
        Recipe.from_json('{"model": "nat_mini", "epochs": "3"}')


def test_find(tmp_path):
    recipe = dataclasses.replace(RECIPES["digits"], epochs=6.0)
    (tmp_path / "mine.json").write_text(recipe.to_json(), encoding="utf-8")
    assert find_recipe(str(tmp_path / "mine.json")) == recipe
    with pytest.raises(ValueError, match="Did you mean nat_mini"):
        find_recipe("NAT-Mini")


def test_what_was_printed_can_be_given_back():
    recipe = RECIPES["digits"]
    changes = {name: json.dumps(value) for name, value in json.loads(recipe.to_json()).items()}
    assert override(RECIPES["nat_mini"], changes) == recipe
    changed = override(
        RECIPES["nat_mini"], {"image_size": "null", "crop": "None", "interpolation": "none", "image_std": "none"}
    )
    assert (changed.image_size, changed.crop, changed.interpolation, changed.image_std) == (None,) * 4
    with pytest.raises(ValueError, match=r"image_mean must be none or numbers with commas between; got '\[0.5'"):
        override(recipe, {"image_mean": "[0.5"})
    with pytest.raises(ValueError, match="val_fraction must be none or more than 0 and less than 1; got 1"):
        override(recipe, {"val_fraction": "1"})


def test_a_path_is_made_absolute_and_a_name_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nat_mini", "custom", "owner/name"):
        (tmp_path / name).mkdir(parents=True)
    paths = {
        name: Recipe(model=name).with_absolute_path().model for name in ("nat_mini", "custom", "owner/name", "a/b")
    }
    assert paths == {
        "nat_mini": "nat_mini",
        "custom": "custom",
        "owner/name": str(tmp_path / "owner" / "name"),
        "a/b": "a/b",
    }
    assert is_same_model("owner/name", paths["owner/name"])
    assert not is_same_model("nat_mini", str(tmp_path / "nat_mini"))
    assert not is_same_model("owner/name", "owner/other")


def test_what_starts_from_random_weights():
    found = {
        (name, known): Recipe(model=name, pretrained=known).has_random_weights
        for name in ("custom", "nat_mini", "a/b")
        for known in (False, True)
    }
    assert [key for key, random in found.items() if random] == [
        ("custom", False),
        ("custom", True),
        ("nat_mini", False),
    ]


def test_short_runs_warm_up_for_a_shorter_time():
    assert override(RECIPES["finetune"], {"epochs": "2"}).warmup_epochs == pytest.approx(0.2)
    assert override(RECIPES["finetune"], {"epochs": "5"}).warmup_epochs == 3
    assert Recipe.from_json('{"model": "custom", "epochs": 3}').warmup_epochs == pytest.approx(0.2)
    with pytest.raises(ValueError, match="warmup_epochs must be at most epochs"):
        Recipe.from_json('{"model": "custom", "epochs": 3, "warmup_epochs": 4}')
