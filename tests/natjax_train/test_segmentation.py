"""The task of segmentation: batch statistics in the step, losses, decay, runs that are interrupted and resumed."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.configuration import NatConfig, UperNetConfig
from natjax_train import optim
from natjax_train.mesh import make_mesh, put_batch, state_shardings
from natjax_train.recipe import Recipe
from natjax_train.step import batch_stats, make_eval_step, make_training, split_model
from natjax_train.tasks.segmentation import Segmentation

CLASSES = ("sky", "sea", "sand")
TRUNK = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "kernel_size": 3}
HEADS = {"hidden_size": 8, "auxiliary_channels": 8, "pool_scales": [1, 2]}
SETTINGS = {
    "task": "segmentation",
    "model": "custom",
    "model_config": {**TRUNK, **HEADS},
    "image_size": 32,
    "batch_size": 8,
    "base_batch_size": 8,
    "epochs": 4,
    "warmup_epochs": 0,
    "cooldown_epochs": 0,
    "learning_rate": 1e-2,
    "clip_norm": None,
    "image_mean": (0.5,) * 3,
    "image_std": (0.25,) * 3,
}


def config(**changes):
    trunk = NatConfig(**TRUNK, out_features=["stage1", "stage2", "stage3"], drop_path_rate=0.0)
    return UperNetConfig(backbone_config=trunk, **HEADS, num_labels=3, head_dropout_prob=0.0).replace(**changes)


def batch_of(count=8, side=32):
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (count, side // 8, side // 8)), np.ones((8, 8), int)).astype(np.uint8)
    image = (rng.integers(0, 90, (count, side, side, 3)) + 60 * label[..., None]).astype(np.uint8)
    label[:, :3] = 255
    return {"image": image, "label": label, "size": np.full((count, 2), (side, side - 4), np.int32)}


def steps(mesh, count=1, **options):
    """Returns the states before and after a few steps, and the last one's metrics."""
    states, metrics = trajectory(mesh, count, **options)
    return states[0], states[-1], metrics


@functools.cache
def trajectory(mesh, count, weights=lambda params: params, **changes):
    """Returns the states before and after each of a few steps, and the last one's metrics."""
    recipe = Recipe(**SETTINGS | changes)
    mesh = make_mesh(mesh)
    with jax.set_mesh(mesh):
        model = natjax.UperNetForSemanticSegmentation(config(), rngs=nnx.Rngs(0))
        graphdef, _, params = split_model(model)
        training = make_training(model.config, graphdef, params, Segmentation(recipe, CLASSES), recipe, 10)
        state = training.init(weights(params), batch_stats(model))
        state = jax.device_put(state, state_shardings(mesh, state))
        states = [jax.device_get(state)]
        for _ in range(count):
            state, metrics = training.step(state, put_batch(mesh, batch_of()))
            states.append(jax.device_get(state))
    return states, jax.device_get(metrics)


def same(one, other, **tolerance):
    compare = functools.partial(np.testing.assert_allclose, **tolerance) if tolerance else np.testing.assert_array_equal
    jax.tree.map(compare, one, other)


def test_statistics_are_those_of_the_batch():
    before, after, _ = steps("data=1")
    recipe = Recipe(**SETTINGS)
    model = natjax.UperNetForSemanticSegmentation(config(), rngs=nnx.Rngs(0))
    with jax.set_mesh(make_mesh("data=1")):
        pixel_values, _ = Segmentation(recipe, CLASSES).prepare(
            jax.random.key(0), jax.tree.map(jnp.asarray, batch_of())
        )
    view = nnx.view(model, use_running_average=False)
    nnx.jit(lambda view, x: view.decode(x))(view, pixel_values)  # operations one by one would each be compiled
    same(after.batch_stats, jax.device_get(batch_stats(model)), rtol=1e-5, atol=1e-6)
    counts = jax.tree.leaves(jax.tree.map(lambda x: x if x.dtype == np.int32 else None, after.batch_stats))
    assert set(map(int, counts)) == {1}
    assert jax.tree.leaves(before.batch_stats)


def test_accumulation_updates_them_once_per_micro_batch():
    _, after, _ = steps("data=1", accumulate=2)
    counts = [int(x) for x in jax.tree.leaves(after.batch_stats) if x.dtype == np.int32]
    assert set(counts) == {2}


def test_images_of_one_pixel_train():
    model = natjax.UperNetForSemanticSegmentation(config(), rngs=nnx.Rngs(0))
    view, task = nnx.view(model, use_running_average=False), Segmentation(Recipe(**SETTINGS), CLASSES)
    loss, _ = task.training_loss(view, jnp.ones((2, 1, 1, 3)), jnp.zeros((2, 1, 1), jnp.int32), jax.random.key(0))
    assert np.isfinite(loss)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_micro_batch_of_one_image_is_refused(accumulate):
    recipe = Recipe(**SETTINGS | {"batch_size": accumulate, "accumulate": accumulate})
    task = Segmentation(recipe, CLASSES)
    expected = (
        rf"batch_size {accumulate} in {accumulate} micro-batches .* has one: give --batch-size {2 * accumulate} or more"
    )
    with pytest.raises(ValueError, match=expected):
        task.initial_model()
    with pytest.raises(ValueError, match=expected):
        task.resumed_model(config(id2label=dict(enumerate(CLASSES))))


def test_a_run_starts_from_a_classifiers_weights(tmp_path):
    classifier = natjax.NatForImageClassification(
        NatConfig(**TRUNK, dilations=[[1]] * 3, num_labels=5), rngs=nnx.Rngs(1)
    )
    classifier.save_pretrained(tmp_path)
    changes = {"model_config": {**HEADS, "dilations": [[2]] * 3}, "drop_path_rate": 0.1, "seed": 3}
    model = Segmentation(Recipe(**SETTINGS | changes | {"model": str(tmp_path)}), CLASSES).initial_model()
    trunk = model.config.backbone_config
    assert (trunk.dilations, trunk.drop_path_rate, model.config.hidden_size) == (((2,),) * 3, 0.1, 8)
    assert list(model.config.id2label.values()) == list(CLASSES)
    same(
        nnx.to_pure_dict(nnx.state(model.backbone.embeddings, nnx.Param)),
        nnx.to_pure_dict(nnx.state(classifier.nat.embeddings, nnx.Param)),
    )
    options = {"id2label": dict(enumerate(CLASSES)), "resize_biases": True, "rngs": nnx.Rngs(3)}
    expected = natjax.UperNetForSemanticSegmentation.from_backbone(
        tmp_path, **changes["model_config"], drop_path_rate=0.1, **options
    )
    same(*(nnx.to_pure_dict(nnx.state(net, nnx.Param)) for net in (model, expected)))


def test_a_step_that_is_left_out_keeps_them():
    before, after, metrics = steps("data=1", image_std=(1e-45,) * 3, ema_decay=0.5)
    assert not np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    assert int(after.skipped) == 1
    for name in ("params", "ema", "batch_stats", "ema_batch_stats"):
        same(getattr(after, name), getattr(before, name))


def exploded(params):
    conv = params["decode_head"]["bottleneck"]["conv"]
    conv["kernel"] = 1e25 * conv["kernel"]
    return params


def test_an_infinite_variance_leaves_a_step_out():
    """All is divided by it, so that loss and gradients are finite."""
    before, after, metrics = steps("data=1", weights=exploded)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not metrics["finite"]
    assert int(after.skipped) == 1
    same(after.batch_stats, before.batch_stats)
    same(after.params, before.params)


def test_averages_of_weights_and_statistics():
    """As timm's ModelEma: statistics with the decay of the weights, counts are the newest; recomputed in float64."""
    decay = 0.7
    states, _ = trajectory("data=1", 4, ema_decay=decay)

    def expected(first, *others):
        mean = first.astype(np.float64)
        for now in others:
            mean = decay * mean + (1 - decay) * now if now.dtype == np.float32 else now
        return mean

    params, stats = states[-1].averaged
    same(params, jax.tree.map(expected, *(state.params for state in states)), rtol=1e-5, atol=1e-7)
    same(stats, jax.tree.map(expected, *(state.batch_stats for state in states)), rtol=1e-5, atol=1e-7)
    norm, newest = (tree["decode_head"]["bottleneck"]["batch_norm"] for tree in (stats, states[-1].batch_stats))
    assert norm["num_batches_tracked"] == 4
    assert abs(norm["mean"] - newest["mean"]).max() > 1e-2 * abs(newest["mean"]).max()


def test_averaged_weights_and_a_frozen_backbone():
    before, after, _ = steps("data=1", ema_decay=0.5, freeze_backbone=True)
    same(after.params["backbone"], before.params["backbone"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params["decode_head"], before.params["decode_head"])
    assert any(jax.tree.leaves(moved))
    assert jax.tree.structure(after.ema) == jax.tree.structure(after.params)
    same(after.batch_stats, steps("data=1")[1].batch_stats, rtol=1e-5, atol=1e-7)  # as they are


def test_changes_of_a_pretrained_backbone_are_of_its_weights_too():
    digits = str(pathlib.Path(natjax.__file__).parent / "demo" / "digits")
    settings = {**SETTINGS, "model": digits, "image_mean": (0.5,), "image_std": (0.25,)}
    task = Segmentation(Recipe(**settings | {"model_config": {**HEADS, "kernel_size": 3}}), CLASSES)
    model, original = task.initial_model(), natjax.NatModel.from_pretrained(digits)
    ours, theirs = (trunk.encoder.levels[1].layers[0] for trunk in (model.backbone, original))
    np.testing.assert_array_equal(ours.intermediate.kernel[...], theirs.intermediate.kernel[...])
    assert (model.config.trunk.kernel_size, ours.attention.rpb.shape) == (3, (2, 5, 5))
    task = Segmentation(Recipe(**settings | {"model_config": {**HEADS, "embed_dim": 8}}), CLASSES)
    with pytest.raises(natjax.CheckpointError, match=r"does not fit the model"):
        task.initial_model()


def test_new_classes_have_the_colours_of_the_masks(tmp_path):
    palette = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    source = types.SimpleNamespace(class_names=CLASSES, palette=palette)
    assert Segmentation.of(Recipe(**SETTINGS), source).initial_model().config.extra == {"palette": palette.tolist()}
    source.palette = None
    assert Segmentation.of(Recipe(**SETTINGS), source).initial_model().config.extra == {}
    # A segmenter's own colours are of its own classes.
    before = config(id2label={0: "a", 1: "b", 2: "c"}, extra={"palette": palette.tolist()})
    natjax.UperNetForSemanticSegmentation(before, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    recipe = Recipe(**SETTINGS | {"model": str(tmp_path), "model_config": {}})
    assert "palette" not in Segmentation.of(recipe, source).initial_model().config.extra
    source.palette = palette[::-1]
    assert Segmentation.of(recipe, source).initial_model().config.extra["palette"] == palette[::-1].tolist()


def test_channels_are_those_of_the_model():
    grey = {**SETTINGS, "model_config": {**TRUNK, **HEADS, "num_channels": 1}}
    with pytest.raises(ValueError, match=r"each of the model's 1 channel; got \(0.5, 0.5, 0.5\).*--image-mean"):
        Segmentation(Recipe(**grey), CLASSES).initial_model()


def test_a_backbone_config_beside_a_checkpoint_changes_what_it_names(tmp_path):
    trunk = natjax.NatConfig(
        **{
            **TRUNK,
            "num_labels": 2,
            "hidden_act": "relu",
            "dilations": [[2]] * len(TRUNK["depths"]),
            "layer_norm_eps": 1e-3,
        }
    )
    natjax.NatForImageClassification(trunk, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "relu")

    def model(source, **backbone_config):
        model_config = {**HEADS, "backbone_config": backbone_config}
        return Segmentation(
            Recipe(**SETTINGS | {"model": source, "model_config": model_config}), CLASSES
        ).initial_model()

    source = str(tmp_path / "relu")
    ours = model(source, model_type="nat", mlp_ratio=trunk.mlp_ratio, num_labels=9, drop_path_rate=0.25).config.trunk
    assert (ours.hidden_act, ours.layer_norm_eps, ours.dilations) == ("relu", 1e-3, trunk.dilations)
    with pytest.raises(ValueError, match=r"model_type 'dinat_s', the backbone of .*relu is of 'dinat'"):
        model(source, model_type="dinat_s")
    with pytest.raises(ValueError, match="the model is nat_mini with random weights: give --model custom"):
        model("nat_mini", model_type="nat", embed_dim=4)


def test_what_fills_up_a_crop_is_zero_and_the_loss_is_over_all_pixels():
    recipe = Recipe(**SETTINGS)
    task = Segmentation(recipe, CLASSES)
    batch = jax.tree.map(jnp.asarray, batch_of())
    pixel_values, targets = task.prepare(jax.random.key(0), batch)
    assert float(jnp.abs(pixel_values[:, :, 28:]).max()) == 0
    np.testing.assert_allclose(pixel_values[:, :, :28], (batch["image"][:, :, :28] / 255 - 0.5) / 0.25, rtol=1e-6)

    def loss(task, *logits):
        weight = types.SimpleNamespace(auxiliary_loss_weight=0.4)
        model = types.SimpleNamespace(decode=lambda pixel_values, rngs: logits, config=weight)
        return task.training_loss(model, pixel_values, targets, jax.random.key(0))[0]

    logits, auxiliary = jnp.zeros((8, 8, 8, 3)), jnp.zeros((8, 2, 2, 3))
    counted = float((batch["label"] != 255).mean())
    np.testing.assert_allclose(loss(task, logits, auxiliary), 1.4 * np.log(3) * counted, rtol=1e-6)
    valid = Segmentation(Recipe(**SETTINGS, loss_average="valid"), CLASSES)
    np.testing.assert_allclose(loss(valid, logits, None), np.log(3), rtol=1e-6)


def test_the_loss_falls():
    losses = [float(steps("data=1", count)[2]["loss"]) for count in (1, 30)]
    assert losses[1] < 0.7 * losses[0]


def test_evaluation_uses_the_running_statistics():
    model = natjax.UperNetForSemanticSegmentation(config(), rngs=nnx.Rngs(0))
    _, graphdef, params = split_model(model)
    stats = jax.tree.map(lambda x: x + 1, batch_stats(model))
    pixel_values = jnp.ones((1, 32, 32, 3))
    with jax.set_mesh(make_mesh("data=1")):
        logits = make_eval_step(graphdef, Segmentation(None, CLASSES))(params, pixel_values, stats)
    nnx.update(model, jax.tree.map(jnp.asarray, stats))
    expected = nnx.jit(lambda model, x: model.decode(x)[0])(model, pixel_values)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_what_decays():
    """The authors' rule goes by mmsegmentation's names."""
    model = natjax.UperNetForSemanticSegmentation(config(), rngs=nnx.Rngs(0))
    _, _, params = split_model(model)
    mask = optim.decay_mask(params, "all but norms")
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): value
        for path, value in jax.tree_util.tree_flatten_with_path(mask)[0]
    }
    assert not any(value for name, value in found.items() if "layernorm" in name or "states_norms" in name)
    assert not any(value for name, value in found.items() if name.endswith("rpb"))
    assert all(value for name, value in found.items() if "head" in name)  # their batch norms and biases, too
    assert found["backbone.embeddings.patch_embeddings.projection.0.bias"]
    assert not found["backbone.embeddings.norm.scale"]


def test_mmcvs_schedule():
    """Of mmcv's poly and linear warm-up: (1 - k) * regular, k = (1 - i / 1500) * (1 - ratio)."""
    recipe = Recipe(**SETTINGS | {
        "epochs": 160, "steps": 160_000, "schedule": "poly", "warmup_epochs": 1.5, "learning_rate": 6e-5,
        "warmup_learning_rate": 6e-11, "min_learning_rate": 0.0,
    })  # fmt: skip
    epoch = optim.schedule_epoch(recipe, 7)
    assert optim.total_steps(recipe, epoch) == 160_000
    for step in (0, 1, 749, 1499, 1500, 80_000, 159_999):
        regular = 6e-5 * (1 - step / 160_000)
        warm = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1
        np.testing.assert_allclose(optim.learning_rate(recipe, epoch, step), regular * warm, rtol=2e-5, atol=6e-12)


@pytest.mark.slow
def test_batch_normalisation_over_the_global_batch():
    """A step of two micro-batches on eight devices, which split batch and height, does what one does.

    In programs with all of XLA's optimisations.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": ""}
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr[-3000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    for one, other in zip(*reports, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-6)


def trace_wide_statistics():
    """Traces a step whose statistics are large enough to be split along fsdp."""
    recipe, mesh = Recipe(**SETTINGS | {"ema_decay": 0.5}), make_mesh("fsdp=8")
    wide = config(auxiliary_channels=2048)
    with jax.set_mesh(mesh):
        model = nnx.eval_shape(lambda: natjax.UperNetForSemanticSegmentation(wide, rngs=nnx.Rngs(0)))
        graphdef, _, params = split_model(model)
        training = make_training(wide, graphdef, params, Segmentation(recipe, CLASSES), recipe, 10)
        state = jax.eval_shape(training.init, params, batch_stats(model))
        shardings = state_shardings(mesh, state)
        placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
        after, _ = jax.eval_shape(training.step, placed, put_batch(mesh, batch_of()))

    def axes(state):
        leaves = jax.tree.leaves((state.batch_stats, state.averaged))
        return [(*leaf.sharding.spec, *(None,) * leaf.ndim)[: leaf.ndim] for leaf in leaves]

    assert ("fsdp",) in axes(placed)
    assert axes(after) == axes(placed)


if __name__ == "__main__":
    trace_wide_statistics()
    reports = []
    for name in ("data=1", "data=2,fsdp=2,space=2"):
        _, after, metrics = steps(name, 1, accumulate=2)
        arrays = [*jax.tree.leaves(after.batch_stats), metrics["loss"], metrics["grad_norms"]]
        reports.append([np.asarray(array).tolist() for array in arrays])
    print(json.dumps(reports))
