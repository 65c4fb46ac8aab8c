"""Where a run's model comes from and what becomes of it."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax_train.data import eval_processor
from natjax_train.recipes import RECIPES
from natjax_train.step import split_model
from natjax_train.tasks.classification import Classification

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
DIGITS = tuple("0123456789")
EMBEDDED = str(pathlib.Path(natjax.__file__).parent / "demo" / "digits")


def initial_model(recipe, class_names):
    return Classification(recipe, class_names).initial_model()


def test_custom():
    model = initial_model(RECIPES["digits"], DIGITS)
    assert (model.config.embed_dim, model.config.num_labels, model.config.id2label[3]) == (16, 10, "3")


def test_the_map_of_a_vit_follows_the_size_of_images():
    small = {"embed_dim": 24, "depths": (1,), "num_heads": (3,)}
    recipe = dataclasses.replace(RECIPES["vitrpb_small"], model_config=small, image_size=160)
    task = Classification(recipe, ("cat", "dog"))
    config = task.initial_model().config
    assert (config.image_size, config.kernel_size) == (160, 10)
    assert task.resumed_model(config).config == config


def test_the_biases_of_a_pretrained_vit_are_interpolated(tmp_path):
    natjax_convert.convert(GOLDENS / "shilabs_vitrpb" / "checkpoint.pth", tmp_path / "vit")
    recipe = dataclasses.replace(RECIPES["finetune"], model=str(tmp_path / "vit"), image_size=32)
    model = initial_model(recipe, ("cat", "dog"))
    assert (model.config.image_size, model.config.kernel_size, model.config.num_labels) == (32, 4, 2)
    assert model.nat.encoder.levels[0].layers[0].attention.rpb.shape == (3, 7, 7)


def test_preset():
    recipe = dataclasses.replace(
        RECIPES["nat_mini"], model_config={"depths": (1,), "num_heads": (2,)}, drop_path_rate=0.4
    )
    model = initial_model(recipe, ("cat", "dog"))
    assert (model.config.num_labels, model.config.drop_path_rate) == (2, 0.4)


def test_checkpoint_keeps_its_head_for_its_classes():
    recipe = dataclasses.replace(RECIPES["digits"], model=EMBEDDED, model_config={})
    original = natjax.NatForImageClassification.from_pretrained(EMBEDDED)
    same, other = initial_model(recipe, DIGITS), initial_model(recipe, ("cat", "dog", "cow"))
    np.testing.assert_array_equal(same.classifier.kernel[...], original.classifier.kernel[...])
    assert other.classifier.kernel.shape == (64, 3)
    np.testing.assert_array_equal(other.nat.layernorm.scale[...], original.nat.layernorm.scale[...])
    assert dict(other.config.id2label) == {0: "cat", 1: "dog", 2: "cow"}


def test_channels():
    with pytest.raises(ValueError, match=r'model.s 1 channel.*add "num_channels": 3 to --model-config'):
        initial_model(dataclasses.replace(RECIPES["digits"], image_mean=(0.5,) * 3, image_std=(0.5,) * 3), DIGITS)


def test_bfloat16():
    model = initial_model(dataclasses.replace(RECIPES["digits"], dtype="bfloat16"), DIGITS)
    assert jax.eval_shape(lambda x: model(x).logits, jnp.ones((1, 32, 32, 1))).dtype == jnp.bfloat16
    assert model.classifier.kernel.dtype == jnp.float32


def test_export(tmp_path):
    recipe = dataclasses.replace(RECIPES["digits"], crop=True, crop_pct=0.8, interpolation="bicubic")
    model = initial_model(recipe, DIGITS)
    _, graphdef, params = split_model(model)
    params["classifier"]["bias"] = np.arange(10, dtype=np.float32)
    processor = eval_processor(recipe, recipe.image_size)
    nnx.merge(graphdef, params).save_pretrained(tmp_path / "model", processor=processor)
    loaded = natjax.NatForImageClassification.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.classifier.bias[...], np.arange(10))
    assert not np.asarray(model.classifier.bias[...]).any()  # the run's own model is as it was
    processor = natjax.NatImageProcessor.from_pretrained(tmp_path / "model")
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 80}, {"height": 64, "width": 64})
    assert (processor.resample, processor.image_mean) == (3, (0.5,))
