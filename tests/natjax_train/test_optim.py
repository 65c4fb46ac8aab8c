"""The optimiser: schedule, decay mask, factors of the learning rate, frozen backbones, EMA; AdamW against PyTorch's rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax_convert.shapes import parameters
from natjax_train import optim
from natjax_train.recipe import Recipe, override
from natjax_train.recipes import RECIPES

STEPS = 100  # of an epoch


def rate(recipe, epoch):
    return float(optim.learning_rate(recipe, STEPS, round(epoch * STEPS)))


def test_cosine():
    recipe = RECIPES["nat_mini"]
    assert optim.total_steps(recipe, STEPS) == 310 * STEPS
    assert rate(recipe, 0) == pytest.approx(1e-6)
    assert rate(recipe, 10) == pytest.approx((1e-6 + 1e-3) / 2, rel=1e-5)
    assert rate(recipe, 20) == pytest.approx(5e-6 + (1e-3 - 5e-6) * (1 + np.cos(np.pi / 15)) / 2, rel=1e-5)
    assert rate(recipe, 150) == pytest.approx((1e-3 + 5e-6) / 2, rel=1e-5)
    assert rate(recipe, 300) == rate(recipe, 309.5) == pytest.approx(5e-6)


def test_line_without_warmup():
    recipe = RECIPES["dinat_large_384"]
    assert [rate(recipe, epoch) for epoch in (0, 15, 30)] == pytest.approx([5e-5, 2.5e-5, 0.0])
    assert optim.total_steps(recipe, STEPS) == 30 * STEPS


def test_mmcvs_steps():
    """Of mmcv's step schedule with 500 steps of linear warm-up from a thousandth; an epoch has 7330 steps."""
    settings = {"milestones": (27, 33), "warmup_epochs": 500 / 7330, "warmup_learning_rate": 1e-7}
    settings |= {"batch_size": 16, "learning_rate": 1e-4, "base_batch_size": 16, "cooldown_epochs": 0}
    recipe = Recipe(model="nat_mini", epochs=36, schedule="step", min_learning_rate=0.0, **settings)
    rates = {0: 1e-7, 250: 1e-4 * 0.5005, 499: 1e-4 * (1 - 0.999 / 500), 500: 1e-4}
    rates |= {27 * 7330 - 1: 1e-4, 27 * 7330: 1e-5, 33 * 7330 - 1: 1e-5, 33 * 7330: 1e-6, 36 * 7330 - 1: 1e-6}
    found = [float(optim.learning_rate(recipe, 7330, step)) for step in rates]
    assert found == pytest.approx(list(rates.values()), rel=1e-5)
    assert optim.total_steps(recipe, 7330) == 36 * 7330


def test_batch_size_scales_the_peak():
    recipe = override(RECIPES["nat_mini"], {"batch_size": "2048", "warmup_epochs": "0"})
    assert rate(recipe, 0) == pytest.approx(2e-3)


CONFIG = natjax.NatConfig(
    embed_dim=8, depths=(2, 1), num_heads=(1, 2), kernel_size=3, num_labels=3, layer_scale_init_value=0.1
)


@pytest.fixture(scope="module")
def params():
    return nnx.to_pure_dict(nnx.state(natjax.NatForImageClassification(CONFIG, rngs=nnx.Rngs(0))))


def by_name(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def test_decay_mask(params):
    mask = by_name(optim.decay_mask(params))
    assert all(decays == name.endswith("/kernel") for name, decays in mask.items())
    assert {name.rpartition("/")[2] for name, decays in mask.items() if not decays} == {
        "bias",
        "scale",
        "rpb",
        "layer_scale_parameters",
    }
    assert sum(mask.values()) == 2 + 3 * 4 + 1 + 1  # stem, layers, downsampler, classifier


def test_layer_decay(params):
    factors = by_name(
        optim.learning_rate_factors(params, parameters(CONFIG), override(RECIPES["finetune"], {"layer_decay": "0.5"}))
    )
    expected = {
        "nat/embeddings/norm/scale": 4,
        "nat/embeddings/patch_embeddings/projection/0/kernel": 4,
        "nat/encoder/levels/0/layers/0/attention/rpb": 3,
        "nat/encoder/levels/0/layers/1/output/kernel": 2,
        "nat/encoder/levels/0/downsample/reduction/kernel": 2,
        "nat/encoder/levels/1/layers/0/layernorm_before/bias": 1,
        "nat/layernorm/scale": 0,
        "classifier/kernel": 0,
    }
    assert {name: factors[name] for name in expected} == {name: 0.5**depth for name, depth in expected.items()}


def test_steps_are_adamw(params):
    recipe = override(
        RECIPES["nat_mini"], {"weight_decay": "0.1", "clip_norm": "1.0", "layer_decay": "0.9", "ema_decay": "0.9"}
    )
    factors = optim.learning_rate_factors(params, parameters(CONFIG), recipe)
    optimizer = optim.make_optimizer(recipe, factors)
    grads = jax.tree.map(lambda p: jnp.cos(100 * p), params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    state, found, ema = optimizer.init(params), params, params

    @jax.jit
    def step(state, found, ema):
        updates, state = optimizer.update(grads, state, found)
        found = optim.apply_updates(found, updates, factors, jnp.float32(0.01))
        return state, found, optim.update_ema(ema, found, recipe.ema_decay)

    for _ in range(2):
        state, found, ema = step(state, found, ema)

    def expected(p, g, decays, factor):
        p, g, mean, square = np.float64(p), np.float64(g) / norm, 0.0, 0.0
        for i in (1, 2):
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            p = p - 0.01 * factor * 0.1 * decays * p
            p = p - 0.01 * factor * (mean / (1 - 0.9**i)) / (np.sqrt(square / (1 - 0.999**i)) + 1e-8)
        return p

    want = jax.tree.map(expected, params, grads, optim.decay_mask(params), factors)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, want)
    assert not np.allclose(ema["classifier"]["kernel"], found["classifier"]["kernel"])


def test_frozen_backbone(params):
    recipe = override(RECIPES["finetune"], {"freeze_backbone": "true"})
    factors = optim.learning_rate_factors(params, parameters(CONFIG), recipe)
    optimizer = optim.make_optimizer(recipe, factors)
    state = optimizer.init(params)
    head = sum(leaf.size for leaf in jax.tree.leaves(params["classifier"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * head + 1  # moments and their count
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    found = optim.apply_updates(params, updates, factors, jnp.float32(0.1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found["nat"], params["nat"]))
    assert not jnp.array_equal(found["classifier"]["bias"], params["classifier"]["bias"])
