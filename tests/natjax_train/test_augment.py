"""Augmentation on the device: against plain NumPy definitions, timm's distributions, and on sharded batches."""

import functools
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax_train import augment

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
OFF = {"affine": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}


def settings(**changes):
    fields = OFF | {"image_mean": MEAN, "image_std": STD, "mixup_prob": 1.0, "mixup_switch_prob": 0.5}
    return types.SimpleNamespace(**(fields | changes))


def batch(size=8, height=20, width=24):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, height, width, 3), np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(size) % 5}


@functools.cache
def compiled(**changes):
    return jax.jit(functools.partial(augment.prepare, settings=settings(**changes), num_classes=5))


def same(actual, desired):
    """Returns [..., B, H, W]: which pixels are equal but for what compilers fuse."""
    return np.isclose(actual, desired, rtol=0, atol=1e-5).all(-1)


def prepare(seed=0, data=None, **changes):
    data = batch() if data is None else data
    images, targets = compiled(**changes)(jax.random.key(seed), data)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    assert images.dtype == targets.dtype == jnp.float32
    return np.asarray(images), np.asarray(targets)


def test_off_is_normalisation_and_one_hot():
    images, targets = prepare()
    np.testing.assert_allclose(images, (np.asarray(batch()["image"]) / 255 - MEAN) / STD, atol=1e-5)
    np.testing.assert_array_equal(targets, np.eye(5)[np.arange(8) % 5])


def test_label_smoothing():
    _, targets = prepare(label_smoothing=0.1)
    assert np.unique(targets.round(6)).tolist() == pytest.approx([0.02, 0.92])


@pytest.mark.parametrize("seed", range(3))
def test_mixup(seed):
    plain, one_hot = prepare()
    images, targets = prepare(seed, mixup=0.8)
    weight = targets[0, 0]  # images 0 and 7 have labels 0 and 2
    assert 0 < weight < 1
    np.testing.assert_allclose(targets, weight * one_hot + (1 - weight) * one_hot[::-1], atol=1e-6)
    np.testing.assert_allclose(images, weight * plain + (1 - weight) * plain[::-1], atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix(seed):
    plain, one_hot = prepare()
    images, targets = prepare(seed, cutmix=1.0)
    ours, other = (same(images, x) for x in (plain, plain[::-1]))
    assert (ours | other).all()
    box = other[0]
    assert all((row == box).all() for row in other)
    rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
    assert box.sum() == len(rows) * len(columns)
    if box.any():
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    weight = 1 - box.mean()
    np.testing.assert_allclose(targets, weight * one_hot + (1 - weight) * one_hot[::-1], atol=1e-6)


def test_both_are_chosen_as_often_as_asked():
    data, keys = batch(2, 16, 16), jax.random.split(jax.random.key(1), 2000)
    options = settings(mixup=0.8, cutmix=1.0, mixup_prob=0.6, mixup_switch_prob=0.25)
    images, targets = map(np.asarray, jax.jit(jax.vmap(lambda key: augment.prepare(key, data, options, 5)))(keys))
    plain, _ = prepare(data=data)
    untouched = same(images, plain).all((1, 2, 3))
    exact = (same(images, plain) | same(images, plain[::-1])).all((1, 2, 3))
    assert np.mean(~exact) == pytest.approx(0.6 * 0.75, abs=0.04)  # mixup leaves no pixel as it was
    assert np.mean(exact & ~untouched) == pytest.approx(0.6 * 0.25, abs=0.05)
    mixed = targets[~exact, 0, 0]
    assert mixed.mean() == pytest.approx(0.5, abs=0.05)
    assert mixed.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)  # Beta(0.8, 0.8)


def test_cutmix_boxes_have_timms_distribution():
    size, count = 32, 4000
    data, keys = batch(2, size, size), jax.random.split(jax.random.key(2), count)
    options = settings(cutmix=1.0)
    _, targets = jax.jit(jax.vmap(lambda key: augment.prepare(key, data, options, 5)))(keys)
    rng = np.random.default_rng(0)
    weights = []
    for _ in range(count):  # rand_bbox and the correction of lam
        cut = int(size * np.sqrt(1 - rng.beta(1.0, 1.0)))
        y, x = rng.integers(size), rng.integers(size)
        ends = [np.clip([c - cut // 2, c + cut // 2], 0, size) for c in (y, x)]
        weights.append(1 - np.prod([b - a for a, b in ends]) / size**2)
    quantiles = np.linspace(0.05, 0.95, 10)
    ours, theirs = (np.quantile(x, quantiles) for x in (np.asarray(targets)[:, 0, 0], weights))
    np.testing.assert_allclose(ours, theirs, atol=0.04)


def test_erasing_fills_one_rectangle_of_some_images():
    data = {"image": jnp.zeros((1500, 24, 32, 3), jnp.uint8), "label": jnp.zeros(1500, int)}
    images, _ = prepare(data=data, erasing=0.25)
    plain = (0 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    erased = ~np.isclose(images, plain, atol=1e-6).all(-1)
    hit = erased.any((1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.04)
    noise = images[erased]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    heights, widths = erased.any(2).sum(1)[hit], erased.any(1).sum(1)[hit]
    np.testing.assert_array_equal(erased.sum((1, 2))[hit], heights * widths)  # rectangles without holes
    area = heights * widths / (24 * 32)
    assert area.min() > 0.01
    assert area.max() < 0.36
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert np.log(heights / widths).mean() == pytest.approx(0, abs=0.12)
    first, last = erased.any(2).argmax(1)[hit], 24 - erased.any(2)[:, ::-1].argmax(1)[hit]
    assert first.min() == 0
    assert last.max() == 24


def test_affine_moves_little_and_brings_in_black():
    image = np.zeros((64, 33, 33, 1), np.uint8)
    image[:, 16, 16] = 255
    moved = np.asarray(augment.affine(jax.random.key(0), jnp.asarray(image), 1.0))[..., 0] / 255
    ys, xs = np.mgrid[:33, :33]
    centres = np.stack([(moved * at).sum((1, 2)) / moved.sum((1, 2)) for at in (ys, xs)])
    assert np.abs(centres - 16).max() < 0.06 * 33 * 1.5
    assert centres.std() > 0.5
    full = np.asarray(augment.affine(jax.random.key(0), jnp.full((8, 33, 33, 1), 255, jnp.uint8), 1.0))
    assert full.min() == 0
    still = augment.affine(jax.random.key(0), jnp.asarray(image), 1e-6)
    np.testing.assert_allclose(still, image, atol=0.01)


def test_keys_decide():
    options = {"affine": 1.0, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    first, again, other = (prepare(seed, **options)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


SHARDED = """
import jax, numpy as np, sys
from jax.sharding import NamedSharding, PartitionSpec as P
import importlib.util
spec = importlib.util.spec_from_file_location("test_augment", sys.argv[1])
tests = importlib.util.module_from_spec(spec); spec.loader.exec_module(tests)
options = tests.settings(affine=1.0, erasing=0.5, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2)
split = NamedSharding(mesh, P(("data", "fsdp")))
prepare = lambda key, batch: tests.augment.prepare(key, batch, options, 5)
for seed in range(4):
    key, batch = jax.random.key(seed), tests.batch()
    one = jax.jit(prepare)(key, batch)
    many = jax.jit(prepare, out_shardings=split)(key, jax.device_put(batch, split))
    for a, b in zip(one, many):
        assert len(b.addressable_shards) == 4
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
"""


def test_sharded_batches_are_augmented_alike():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", SHARDED, str(pathlib.Path(__file__))],
        env=os.environ | {"XLA_FLAGS": flags},
        check=True,
        timeout=300,
    )
