"""What a run starts from: the preprocessing of its checkpoint, and words about both."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil

import pytest
from flax import nnx

import natjax
from natjax.demo import MODEL_DIR
from natjax_train import start
from natjax_train.data import eval_processor
from natjax_train.recipe import Recipe
from natjax_train.recipes import RECIPES
from natjax_train.tasks.classification import Classification

pytestmark = pytest.mark.once

OPEN = Recipe(model="custom", auto_augment="")
COLOUR = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint, beside which a test puts an image processor."""
    path = tmp_path_factory.mktemp("checkpoint")
    config = natjax.NatConfig(embed_dim=8, depths=(1,), num_heads=(1,), kernel_size=3, id2label={0: "cat", 1: "dog"})
    natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)).save_pretrained(path)
    return path


def resolved(checkpoint, processor, **changes):
    if processor is not None:
        natjax.NatImageProcessor(**processor).save_pretrained(checkpoint)
    return start.resolve(dataclasses.replace(OPEN, model=str(checkpoint), **changes))


@pytest.mark.parametrize(
    "processor",
    [
        {"size": 40, "resample": 2} | COLOUR,
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32, "resample": 3},
        {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32, "resample": 3},
        *({"size": {"shortest_edge": e}, "do_center_crop": True, "crop_size": 224, "resample": 3} for e in (249, 257)),
    ],
)
def test_a_checkpoints_preprocessing_is_taken_and_exported(checkpoint, processor):
    recipe, words = resolved(checkpoint, processor)
    assert words == "preprocessing from the checkpoint"
    expected = natjax.NatImageProcessor(**processor)
    assert eval_processor(recipe, recipe.image_size) == expected
    assert recipe.crop  # training still sees random crops
    assert start.is_resolved(recipe)
    assert start.resolve(recipe) == (recipe, words)


def test_what_is_given_wins_and_is_said(checkpoint):
    recipe, words = resolved(checkpoint, {"size": 40, "resample": 2}, image_size=48, interpolation="bicubic")
    assert (recipe.image_size, recipe.interpolation, recipe.eval_crop, recipe.image_mean) == (
        48,
        "bicubic",
        False,
        (0.5,) * 3,
    )
    assert words == "preprocessing from the checkpoint except image_size, interpolation, which the recipe says"
    recipe, _ = resolved(checkpoint, {"size": 40, "resample": 2}, crop=True)
    assert (recipe.eval_crop, recipe.crop_pct) == (True, 0.875)


@pytest.mark.parametrize(
    ("processor", "message", "remedy"),
    [
        ({"size": (32, 40)}, r"32 x 40 pixels .* --image-size", {"image_size": 32}),
        (
            {"size": {"shortest_edge": 32}},
            r"keeps the aspect ratio .* --image-size N --eval-crop true \(or false\)\.",
            {"image_size": 32, "eval_crop": True},
        ),
        ({"do_resize": False}, "does not resize .* --image-size N --eval-crop ", {"image_size": 32, "crop": True}),
        ({"resample": 0}, "neither bilinearly nor bicubically. .* --interpolation", {"interpolation": "bilinear"}),
        ({"rescale_factor": 0}, "multiplies pixels with 0. .* --image-mean", COLOUR),
    ],
)
def test_what_training_cannot_do_asks_for_a_flag(checkpoint, processor, message, remedy):
    with pytest.raises(natjax.CheckpointError, match=message):
        resolved(checkpoint, processor)
    assert start.is_resolved(resolved(checkpoint, processor, **remedy)[0])


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"do_normalize": False}, 0, 1),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, 0.5, 0.5),
        ({"do_rescale": False, "image_mean": 51.0, "image_std": 102.0}, 0.2, 0.4),
        ({"rescale_factor": 0.00392157}, 0.5, 0.5),
    ],
)
def test_scale_and_normalisation_are_a_mean_and_a_standard_deviation(checkpoint, processor, mean, std):
    recipe, words = resolved(checkpoint, processor)
    assert (recipe.image_mean, recipe.image_std) == (pytest.approx((mean,) * 3), pytest.approx((std,) * 3))
    assert words == "preprocessing from the checkpoint"


def test_a_part_to_crop_is_a_crop(checkpoint):
    recipe, words = resolved(checkpoint, {"size": 40}, crop_pct=0.9)
    assert (recipe.eval_crop, recipe.crop_pct, eval_processor(recipe, 40).size) == (True, 0.9, {"shortest_edge": 44})
    assert words == "preprocessing from the checkpoint except eval_crop, crop_pct 0.9, which the recipe says"
    assert resolved(checkpoint, {"size": 40}, crop_pct=1.0)[0].eval_crop is False


def test_without_a_processor(checkpoint):
    (checkpoint / "preprocessor_config.json").unlink(missing_ok=True)
    recipe, words = resolved(checkpoint, None)
    assert (recipe.image_size, recipe.eval_crop, recipe.crop_pct) == (224, True, 0.875)
    assert words == "preprocessing as for ImageNet, as the checkpoint has no preprocessor_config.json"
    (checkpoint / "preprocessor_config.json").write_text("{")
    with pytest.raises(natjax.CheckpointError, match="cannot be used"):
        resolved(checkpoint, None)
    assert resolved(checkpoint, None, image_size=8, crop=False, crop_pct=1.0, interpolation="bicubic", **COLOUR)


def test_a_segmentation_model_without_a_processor_is_prepared_as_for_imagenet(tmp_path):
    backbone = natjax.NatConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 1), kernel_size=3)
    config = natjax.UperNetConfig(backbone_config=backbone, hidden_size=8, use_auxiliary_head=False)
    natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    recipe, _ = resolved(tmp_path, None, image_size=32, eval_crop=True)
    assert recipe.crop_pct == 0.875


def test_random_weights():
    large = start.resolve(Recipe(model="dinat_large_384"))[0]
    assert (large.image_size, large.crop_pct) == (384, 1.0)
    grey, words = start.resolve(dataclasses.replace(OPEN, model_config={"num_channels": 1}))
    assert (grey.image_mean, grey.image_std, words) == ((0.5,), (0.5,), "preprocessing as for ImageNet")
    assert start.resolve(RECIPES["nat_mini"]) == (
        dataclasses.replace(RECIPES["nat_mini"], eval_crop=True),
        "preprocessing from the recipe",
    )


def test_origin(checkpoint):
    def words(recipe, *names):
        return start.origin(recipe, natjax.NatConfig(id2label=dict(enumerate(names))))

    assert words(Recipe(model="nat_mini"), "cat", "dog") == "random weights: nat_mini"
    named = dataclasses.replace(OPEN, model=str(checkpoint))
    assert words(named, "cat", "dog") == "head kept"
    assert words(named, "cat", "dog", "cow") == "head replaced (2 -> 3)"


def test_a_head_is_kept_whatever_form_of_unicode_its_names_have(tmp_path):
    config = natjax.NatConfig(
        embed_dim=8, depths=(1,), num_heads=(1,), kernel_size=3, id2label={0: "cafe\u0301", 1: "tea"}
    )
    natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    recipe = dataclasses.replace(OPEN, model=str(tmp_path))
    assert start.keeps_head(start.open_checkpoint(recipe), {0: "caf\u00e9", 1: "tea"})
    Classification(recipe, ["caf\u00e9", "tea"]).resumed_model(config)  # raises where the classes are others


def test_a_presets_published_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path))
    shutil.copytree(MODEL_DIR, tmp_path / "nat_mini")
    assert start.open_checkpoint(Recipe(model="nat_mini")) is None
    assert start.open_checkpoint(Recipe(model="nat_mini", pretrained=True)).path == tmp_path / "nat_mini"
    assert RECIPES["finetune"].pretrained
    recipe, words = start.resolve(RECIPES["finetune"])
    saved = json.loads((MODEL_DIR / "preprocessor_config.json").read_text())
    assert (list(recipe.image_mean), words) == (saved["image_mean"], "preprocessing from the checkpoint")


def test_published_weights_are_no_folder_of_that_name(tmp_path, monkeypatch):
    """As of a run that is called like the model it starts from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path / "weights"))
    shutil.copytree(MODEL_DIR, "weights/nat_mini")
    os.mkdir("nat_mini")
    pathlib.Path("nat_mini", "recipe.json").write_text("{}")
    checkpoint = start.open_checkpoint(dataclasses.replace(RECIPES["finetune"], model="nat_mini"))
    assert checkpoint.path == tmp_path / "weights" / "nat_mini"
    config = natjax.NatConfig(id2label={0: "cat", 1: "dog"})
    assert start.origin(Recipe(model="nat_mini"), config) == (
        "random weights: nat_mini (the preset, not the folder ./nat_mini)"
    )
    assert start.origin(Recipe(model="nat_mini", pretrained=True), config) == (
        "head replaced (10 -> 2); weights of nat_mini (the preset, not the folder ./nat_mini)"
    )
