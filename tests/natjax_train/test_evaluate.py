"""Evaluation: exact on ragged batches, on meshes of explicit axes, in two processes, with ties, NaNs and few classes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax_train.evaluate import evaluate
from natjax_train.mesh import make_mesh, own_share, start_processes
from natjax_train.tasks.classification import Classification

CLASSES, IMAGES = 7, 45
WEIGHTS = np.random.default_rng(1).standard_normal((12, CLASSES)).astype(np.float32)


def loader(batch_size, count=IMAGES, share=0, shares=1):
    """Batches of uint8 images [B, 2, 2, 3], the last one padded."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 2, 2, 3), np.uint8)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    local = batch_size // shares
    for start in range(0, count, batch_size):
        index = start + share * local + np.arange(local)
        inside = np.minimum(index, count - 1)
        yield {"image": images[inside], "label": labels[inside], "mask": index < count}


@jax.jit
def apply(pixel_values):
    return pixel_values.reshape(pixel_values.shape[0], 12) @ WEIGHTS


def measure(batches, apply=apply, mesh="", num_classes=CLASSES, **options):
    devices, task = make_mesh(mesh), Classification(None, range(num_classes))
    with jax.set_mesh(devices):
        return evaluate(task, apply, batches, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), mesh=devices, **options)


def desired():
    (batch,) = loader(IMAGES)
    pixels = (batch["image"] / 255 - (0.4, 0.5, 0.6)) / (0.2, 0.3, 0.4)
    logits = pixels.reshape(IMAGES, 12) @ WEIGHTS.astype(np.float64)
    own = logits[np.arange(IMAGES), batch["label"]]
    ranks = (logits > own[:, None]).sum(1)
    losses = np.log(np.exp(logits).sum(1)) - own
    return losses.mean(), np.mean(ranks < 1), np.mean(ranks < 5), batch["label"], logits.argmax(1)


@pytest.mark.parametrize("batch_size", [45, 9, 16, 64, 1])
def test_exact_whatever_the_batches(batch_size):
    loss, top1, top5, labels, predicted = desired()
    seen = []
    metrics = measure(loader(batch_size), progress=seen.append)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert (metrics.top1, metrics.top5) == (top1, top5)
    assert 0 < top1 < top5 < 1
    assert metrics.images_per_second > 0
    assert seen == [min(n, IMAGES) for n in range(batch_size, IMAGES + batch_size, batch_size)]
    assert metrics.confusion.dtype == np.int64
    expected = np.zeros((CLASSES, CLASSES), int)
    np.add.at(expected, (labels, predicted), 1)
    np.testing.assert_array_equal(metrics.confusion, expected)
    for c, (images, recall, precision) in enumerate(metrics.per_class()):
        assert images == (labels == c).sum()
        assert recall == pytest.approx(np.mean(predicted[labels == c] == c))
        assert precision == pytest.approx(np.mean(labels[predicted == c] == c), nan_ok=True)


def batch_of(labels):
    size = len(labels)
    return [
        {"image": np.zeros((size, 2, 2, 3), np.uint8), "label": np.array(labels, np.int32), "mask": np.ones(size, bool)}
    ]


def test_ties_go_to_the_first_class():
    metrics = measure(batch_of(range(7)), lambda x: jnp.zeros((len(x), CLASSES)))
    assert metrics.top1 == pytest.approx(1 / 7)
    assert metrics.top5 == pytest.approx(5 / 7)
    assert metrics.loss == pytest.approx(np.log(7))


def test_nans_are_wrong():
    metrics = measure(batch_of([1, 2]), lambda x: jnp.full((len(x), CLASSES), jnp.nan))
    assert metrics.top1 == metrics.top5 == 0
    assert np.isnan(metrics.loss)


def test_top5_of_few_classes_is_everything():
    metrics = measure(batch_of([2, 2]), lambda x: x[:, 0, 0], num_classes=3)
    assert metrics.top5 == 1


def test_nothing_and_wrong_classes():
    with pytest.raises(ValueError, match="no images"):
        measure([])
    with pytest.raises(ValueError, match="has 3 classes, the data 7"):
        measure(loader(5), lambda x: x[:, 0, 0])


def _child(*arguments, devices):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, env=env)


def _same_as_here(output):
    here, there = measure(loader(16)), json.loads(output.splitlines()[-1])  # after words of gloo
    assert there["loss"] == pytest.approx(here.loss, rel=1e-6)
    assert [there["top1"], there["top5"]] == [here.top1, here.top5]
    assert there["confusion"] == here.confusion.tolist()


def test_mesh():
    child = _child("0", "1", "0", "data=2,fsdp=2", devices=4)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    _same_as_here(output)


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", "space=4"])  # each its images, both the same
def test_two_processes(mesh):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    children = [_child(str(i), "2", port, mesh, devices=2) for i in range(2)]
    for child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        _same_as_here(output)


def main() -> None:
    (index, count, port), mesh = map(int, sys.argv[1:4]), sys.argv[4]
    if count > 1:
        start_processes(f"localhost:{port}", count, index)
    share, shares = own_share(make_mesh(mesh))
    metrics = measure(loader(16, share=share, shares=shares), mesh=mesh)
    found = {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5}
    print(json.dumps(found | {"confusion": metrics.confusion.tolist()}))


if __name__ == "__main__":
    main()
