"""The step in one process: accumulation, rematerialisation, bfloat16, and steps that are not finite."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax_train.mesh import check_batch, make_mesh, put_batch, start_processes
from natjax_train.recipe import override
from natjax_train.recipes import RECIPES
from natjax_train.step import make_eval_step, make_training, split_model
from natjax_train.tasks.classification import Classification

BASE = {"batch_size": "8", "base_batch_size": "8", "warmup_epochs": "0", "epochs": "1"}


@pytest.fixture(autouse=True)
def mesh():
    mesh = make_mesh("data=1")
    with jax.set_mesh(mesh):
        yield mesh


class Plain(Classification):
    """Three classes without augmentation."""

    def __init__(self, recipe):
        super().__init__(recipe, "abc")

    def prepare(self, key, batch):
        return batch["image"] / 255, jax.nn.one_hot(batch["label"], 3)


class Spoiled(Plain):
    def prepare(self, key, batch):
        pixel_values, targets = super().prepare(key, batch)
        return pixel_values.at[0, 0, 0, 0].set(jnp.nan), targets


@functools.cache
def one_step(mesh, task=Plain, *, dtype=None, **changes):
    """Returns the state before and after a step, and its metrics."""
    recipe = override(RECIPES["digits"], {**BASE, **changes})
    config = natjax.NatConfig(num_channels=1, embed_dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_labels=3)
    model = natjax.NatForImageClassification(config, dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, _, params = split_model(model, remat=recipe.remat)
    training = make_training(config, graphdef, params, task(recipe), recipe, 10)
    before = training.init(params)
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 255, (8, 16, 16, 1)).astype(np.uint8), rng.integers(0, 3, 8).astype(np.int32)
    after, metrics = training.step(jax.tree.map(jnp.copy, before), put_batch(mesh, {"image": image, "label": label}))
    return before, after, metrics


def test_one_step(mesh):
    before, after, metrics = one_step(mesh, ema_decay="0.5")
    assert (int(after.step), int(after.skipped)) == (1, 0)
    assert metrics["grad_norms"].shape == (len(jax.tree.leaves(after.params)),)
    assert metrics["loss"] == pytest.approx(np.log(3), abs=0.1)
    assert float(metrics["lr"]) == pytest.approx(2e-3)
    mean = (before.params["classifier"]["kernel"] + after.params["classifier"]["kernel"]) / 2
    np.testing.assert_allclose(after.ema["classifier"]["kernel"], mean, atol=1e-7)


@pytest.mark.parametrize("changes", [{"accumulate": "2"}, {"accumulate": "8"}, {"remat": "true"}], ids=str)
def test_same_step(mesh, changes):
    _, expected, want = one_step(mesh)
    _, found, got = one_step(mesh, **changes)
    assert float(got["loss"]) == pytest.approx(float(want["loss"]), abs=1e-6)
    np.testing.assert_allclose(got["grad_norms"], want["grad_norms"], rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_remat_keeps_less():
    config = natjax.NatConfig(num_channels=1, embed_dim=8, depths=(4,), num_heads=(1,), kernel_size=3, num_labels=3)
    model = natjax.NatForImageClassification(config, rngs=nnx.Rngs(0))

    def kept(remat):
        graphdef, _, params = split_model(model, remat=remat)

        def residuals(params):
            return jax.vjp(lambda p: nnx.merge(graphdef, p)(jnp.ones((2, 64, 64, 1)), rngs=key).logits, params)[1]

        key = jax.random.key(0)
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(residuals, params)))

    assert kept(remat=True) < kept(remat=False) / 4


def test_bfloat16(mesh):
    _, _, want = one_step(mesh)
    _, after, metrics = one_step(mesh, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert 0 < abs(float(metrics["loss"]) - float(want["loss"])) < 0.01


def test_not_finite(mesh):
    before, after, metrics = one_step(mesh, Spoiled, ema_decay="0.9")
    assert not jnp.isfinite(metrics["loss"])
    assert (int(after.step), int(after.skipped)) == (1, 1)
    for name in ("params", "opt_state", "ema"):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, getattr(before, name), getattr(after, name)))


def test_frozen_backbone(mesh):
    before, after, metrics = one_step(mesh, freeze_backbone="true", weight_decay="0.5")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before.params["nat"], after.params["nat"]))
    assert not jnp.array_equal(before.params["classifier"]["bias"], after.params["classifier"]["bias"])
    assert int(jnp.sum(metrics["grad_norms"] > 0)) == 2


def test_eval_step():
    config = natjax.NatConfig(num_channels=1, embed_dim=8, depths=(1,), num_heads=(1,), kernel_size=3, num_labels=3)
    model = natjax.NatForImageClassification(config, rngs=nnx.Rngs(0))
    _, graphdef, params = split_model(model)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    np.testing.assert_allclose(make_eval_step(graphdef, Plain(None))(params, images), model(images).logits, atol=1e-6)


def test_batches_that_do_not_fit(mesh):
    with pytest.raises(ValueError, match=r"multiple of 1 device x 3 micro-batches \(accumulate\); got 8"):
        check_batch(mesh, 8, 3)
    with pytest.raises(ValueError, match=r"multiple of 2 devices; got 5"):  # of an evaluation
        check_batch(types.SimpleNamespace(shape={"data": 2, "fsdp": 1}), 5)


def test_half_an_address():
    with pytest.raises(ValueError, match="needs coordinator"):
        start_processes("localhost:1234", None, 0)


ALL, BY_LOCAL_INDEX = {"local_device_ids": []}, {"local_device_ids": None}
EXPLICIT = ("localhost:1234", 2, 0)


@pytest.mark.parametrize(
    ("tasks", "nodes", "chosen", "arguments", "expected"),
    [
        (2, 2, None, (None, None, None), [((), ALL)]),
        (16, 2, None, (None, None, None), [((), BY_LOCAL_INDEX)]),
        (2, 2, "0,1", (None, None, None), [((), BY_LOCAL_INDEX)]),
        (1, 1, None, (None, None, None), []),
        (2, 2, None, EXPLICIT, [(EXPLICIT, ALL)]),
        (1, 1, None, EXPLICIT, [(EXPLICIT, ALL)]),
        (16, 2, None, EXPLICIT, [(EXPLICIT, BY_LOCAL_INDEX)]),
        (2, 2, "0,1", EXPLICIT, [(EXPLICIT, BY_LOCAL_INDEX)]),
        (None, None, None, EXPLICIT, [(EXPLICIT, BY_LOCAL_INDEX)]),
        (None, None, None, (None, None, None), []),
    ],
)
def test_a_task_of_slurm_that_has_a_node_takes_all_its_devices(monkeypatch, tasks, nodes, chosen, arguments, expected):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    # The allocation's variables, which a batch script without srun has, decide nothing.
    settings = {"SLURM_NTASKS": 4, "SLURM_NNODES": 4, "SLURM_PROCID": 0, "JAX_LOCAL_DEVICE_IDS": chosen}
    settings |= {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes}
    for name, value in settings.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))
    start_processes(*arguments)
    assert calls == expected
