"""Augmentation on the device: what each part does, that its odds are those asked for, and that sharding changes nothing."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax_train.augment import device
from natjax_train.recipe import Recipe

PLAIN = Recipe(
    model="nat_mini",
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
    label_smoothing=0.0,
    image_mean=(0.5,) * 3,
    image_std=(0.25,) * 3,
)


def prepare(key, batch, settings, classes=10):
    return jax.jit(lambda key, batch: device.prepare(key, batch, settings, classes))(key, batch)


def batch(count=8, side=16):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(count, dtype=jnp.int32) % 10}


def with_(**changes):
    return dataclasses.replace(PLAIN, **changes)


def test_without_augmentation_images_are_normalised():
    images, targets = prepare(jax.random.key(0), batch(), PLAIN)
    expected = (np.asarray(batch()["image"]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert (targets == jnp.eye(10)[:8]).all()


def test_label_smoothing():
    _, targets = prepare(jax.random.key(0), batch(), with_(label_smoothing=0.1))
    np.testing.assert_allclose(targets, 0.01 + 0.9 * np.eye(10)[:8], atol=1e-7)


def test_mixup_is_a_mean_of_neighbours():
    plain, _ = prepare(jax.random.key(0), batch(), PLAIN)
    own, neighbours = np.eye(10)[:8], np.eye(10)[[1, 0, 3, 2, 5, 4, 7, 6]]
    swapped = np.asarray(plain)[[1, 0, 3, 2, 5, 4, 7, 6]]
    shares = []
    for seed in range(200):
        images, targets = prepare_mixup(jax.random.key(seed), batch())
        share = float(targets[0, 0])
        np.testing.assert_allclose(images, share * plain + (1 - share) * swapped, atol=1e-5)
        np.testing.assert_allclose(targets, share * own + (1 - share) * neighbours, atol=1e-6)
        shares.append(share)
    shares = np.array(shares)
    assert abs(shares.mean() - 0.5) < 0.06
    assert abs(shares.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.02  # of Beta(0.8, 0.8)


prepare_mixup = jax.jit(lambda key, batch: device.prepare(key, batch, with_(mixup=0.8), 10))
prepare_cutmix = jax.jit(lambda key, batch: device.prepare(key, batch, with_(cutmix=1.0), 10))


def test_cutmix_takes_a_box_of_the_neighbour():
    plain, _ = prepare(jax.random.key(0), batch(), PLAIN)
    plain, shares = np.asarray(plain), []
    for seed in range(200):
        images, targets = map(np.asarray, prepare_cutmix(jax.random.key(seed), batch()))
        other = plain[[1, 0, 3, 2, 5, 4, 7, 6]]
        foreign = np.isclose(images, other, atol=1e-5).all(axis=-1)
        assert (np.isclose(images, plain, atol=1e-5).all(axis=-1) | foreign).all()
        assert (foreign == foreign[0]).all()  # one box for the batch
        rows, columns = np.nonzero(foreign[0])
        if len(rows):
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert box == len(rows)
        np.testing.assert_allclose(targets[0, 0], 1 - len(rows) / 256, atol=1e-6)
        shares.append(targets[0, 0])
    assert 0.55 < np.mean(shares) < 0.75  # boxes are cut at the border, so more than half is kept
    assert min(shares) < 0.3


def test_the_switch_and_the_probability_of_mixing():
    settings = with_(mixup=0.8, cutmix=1.0, mixup_prob=0.7, mixup_switch_prob=0.25)
    run = jax.jit(lambda key, batch: device.prepare(key, batch, settings, 10))
    plain = np.asarray(prepare(jax.random.key(0), batch(), PLAIN)[0])
    kinds = {"none": 0, "cutmix": 0, "mixup": 0}
    for seed in range(400):
        images = np.asarray(run(jax.random.key(seed), batch())[0])
        same = (np.abs(images - plain) < 1e-6).all(axis=-1).mean()
        foreign = (np.abs(images - plain[[1, 0, 3, 2, 5, 4, 7, 6]]) < 1e-6).all(axis=-1).mean()
        kinds["none" if same == 1 else "cutmix" if abs(same + foreign - 1) < 1e-3 else "mixup"] += 1
    assert abs(kinds["none"] / 400 - 0.3) < 0.09  # and the few boxes that are empty
    assert abs(kinds["cutmix"] / 400 - 0.7 * 0.25) < 0.07
    assert abs(kinds["mixup"] / 400 - 0.7 * 0.75) < 0.09


def test_erasing():
    images = jnp.full((512, 32, 32, 3), 7.0)
    erased = np.asarray(jax.jit(lambda key: device.erase(key, images, 0.25))(jax.random.key(0)))
    foreign = (erased != 7).any(axis=-1)
    touched = foreign.any(axis=(1, 2))
    assert abs(touched.mean() - 0.25) < 0.06
    areas, aspects, noise = [], [], []
    for image, box in zip(erased[touched], foreign[touched], strict=True):
        rows, columns = np.nonzero(box)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == box.sum()
        areas.append(box.mean())
        aspects.append(height / width)
        noise.append(image[box])
    assert 0.01 < min(areas) < 0.06
    assert 0.25 < max(areas) < 0.36
    assert 0.25 < min(aspects) < 0.5
    assert 2 < max(aspects) < 4
    noise = np.concatenate(noise)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_erasing_comes_after_mixing(kind):
    white = {"image": jnp.full((64, 32, 32, 3), 255, jnp.uint8), "label": jnp.zeros(64, jnp.int32)}
    images = np.asarray(prepare(jax.random.key(0), white, with_(erasing=1.0, **{kind: 1.0}))[0])
    foreign = (np.abs(images - 2) > 1e-5).all(axis=-1)  # white is 2, mixed with white as well
    for box in foreign:  # its own alone, and no trace of its neighbour's
        rows, columns = np.nonzero(box)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    noise = images[foreign]  # of mean 0 and deviation 1 among normalised pixels, in no part mixed with white
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_affine():
    side = 32
    image = np.zeros((64, side, side, 1), np.float32)
    image[:, 8:24, 8:24] = 1
    moved = np.asarray(device.affine(jax.random.key(0), jnp.asarray(image) - 1, 1.0, jnp.full((1, 1, 1, 1), -1.0))) + 1
    assert np.abs(moved[:, 0]).max() < 1e-6  # background enters at the border
    assert np.abs(moved.sum(axis=(1, 2, 3)) / 256 - 1).max() < 0.45
    centres = np.array([[(m[..., 0] * grid).sum() / m.sum() for grid in np.mgrid[:side, :side]] for m in moved])
    assert 0.5 < np.abs(centres - 15.5).max() <= 0.07 * side
    still = device.affine(jax.random.key(0), jnp.asarray(image), 0.0, jnp.zeros((1, 1, 1, 1)))
    np.testing.assert_allclose(still, image, atol=1e-5)


def test_keys_decide():
    settings = with_(mixup=0.8, cutmix=1.0, erasing=0.5)
    run = jax.jit(lambda key: device.prepare(key, batch(), settings, 10))
    a, b, c = (np.asarray(run(jax.random.key(seed))[0]) for seed in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize("count", [7])
def test_odd_batches(count):
    images, targets = prepare(jax.random.key(3), batch(count), with_(mixup=0.8))
    assert images.shape == (7, 16, 16, 3)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from natjax_train.augment import device
from natjax_train.recipes import RECIPES
import dataclasses
settings = dataclasses.replace(RECIPES["nat_mini"], affine=1.0, erasing=0.5)
images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8))
batch = {"image": images, "label": jnp.arange(32) % 10}
run = jax.jit(lambda key, batch: device.prepare(key, batch, settings, 10))
key = jax.random.key(5)
one = run(key, batch)
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
spread = {k: jax.device_put(v, NamedSharding(mesh, P("data"))) for k, v in batch.items()}
many = run(key, spread)
for a, b in zip(one, many):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)
text = run.lower(key, spread).compile().as_text()
print(sorted(set(re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\\(", text))))
"""


def test_sharding_changes_nothing_and_needs_no_communication(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
