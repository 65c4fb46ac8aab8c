"""Intersection over union: mmsegmentation's counts, exact over batches, meshes and sizes of masks; batches of evaluation."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.errors import ImageError
from natjax.image_processing import NatImageProcessor
from natjax.segmentation import segment
from natjax_train.data.mask_batches import mask_eval_loader, prepared_size
from natjax_train.data.masks import open_masks
from natjax_train.evaluate import measure
from natjax_train.mesh import make_mesh, put_batch
from natjax_train.tasks.iou import Metrics, count
from natjax_train.tasks.segmentation import OUTSIDE, Segmentation

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from test_masks import CLASSES, write

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz"
PROCESSOR = NatImageProcessor.semantic_segmentation(96, 32)
SIZES = ((40, 56), (48, 48), (40, 57), (70, 33), (48, 47))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS) as file:
        return {name.removeprefix("miou/"): file[name] for name in file.files if name.startswith("miou/")}


def reduced(mask):
    return np.where(mask == 0, 255, mask - (mask < 255)).astype(np.uint8)


def test_mmsegmentations_counts(golden):
    counts = sum(count(golden[f"pred_{i}"], reduced(golden[f"gt_{i}"]), 6) for i in range(2))
    np.testing.assert_array_equal(counts, [golden[name] for name in ("intersect", "pred_area", "label_area")])
    assert counts.dtype == np.int64
    metrics = Metrics(counts, 0.0, 2, 1.0)
    np.testing.assert_array_equal(counts[1] + counts[2] - counts[0], golden["union"])
    np.testing.assert_allclose(metrics.iou, golden["IoU"], rtol=1e-6)
    np.testing.assert_allclose(metrics.accuracy, golden["Acc"], rtol=1e-6)
    np.testing.assert_allclose(metrics.pixel_accuracy, golden["aAcc"], rtol=1e-6)
    np.testing.assert_allclose(metrics.score, golden["IoU"].mean(), rtol=1e-6)


def test_mmsegmentations_counts_on_the_device(golden):
    """The same by `judge`, of logits that say the prediction at the mask's own size."""
    masks = [golden[f"gt_{i}"] for i in range(2)]
    label = np.full((2, 48, 64), 255, np.uint8)
    logits = np.zeros((2, 40, 60, 6), np.float32)
    for i, mask in enumerate(masks):
        label[i, : mask.shape[0], : mask.shape[1]] = reduced(mask)
    judged = []
    for i, mask in enumerate(masks):  # one at a time, as inputs have the size of the mask here
        height, width = mask.shape
        logits = np.eye(6, dtype=np.float32)[golden[f"pred_{i}"]][None]
        batch = {
            "image": np.zeros((1, height, width, 3), np.uint8),
            "label": label[i : i + 1],
            "size": np.array([[height, width]], np.int32),
            "mask": np.ones(1, bool),
        }
        mesh = make_mesh("data=1")
        with jax.set_mesh(mesh):
            found = Segmentation(None, range(6)).judge(jnp.asarray(logits), put_batch(mesh, batch))
        judged.append(np.asarray(found["counts"][0]))
    expected = [golden[name] for name in ("intersect", "pred_area", "label_area")]
    np.testing.assert_array_equal(sum(judged), expected)


def test_a_class_that_is_nowhere_does_not_count():
    metrics = Metrics(np.array([[3, 0, 0], [4, 0, 1], [3, 0, 2]]), 1.0, 1, 1.0)
    assert np.isnan(metrics.iou[1])
    np.testing.assert_allclose(metrics.miou, (3 / 4 + 0) / 2)
    assert Metrics(np.zeros((3, 2), int), 1.0, 1, 1.0).score == 0


def apply(pixel_values):
    """Logits at a quarter of the size, of three classes."""
    x = pixel_values[:, ::4, ::4]
    return jnp.stack([x[..., 0], 1.5 * x[..., 1] ** 2 - 0.5, jnp.cos(3 * x[..., 2])], -1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make(folder)
    return folder


def make(folder):
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES * 2):
        mask = np.kron(rng.integers(0, 3, (18, 15)), np.ones((4, 4), int))[: size[0], : size[1]]
        mask[:2] = 255
        write(folder, "val", f"{i}", mask, rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def measured(data, batch_size, mesh="data=1", divisor=16):
    source = open_masks(data, "val")
    source.inspect()
    devices = make_mesh(mesh)
    task = Segmentation(None, CLASSES, size_divisor=divisor)
    statistics = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    with jax.set_mesh(devices):
        return measure(task, apply, source, PROCESSOR, batch_size=batch_size, mesh=devices, **statistics)


def expected(data, divisor=16):
    """Returns counts and loss, by the class maps of `natjax.segmentation` and by interpolation in float64."""
    counts, loss = np.zeros((3, 3), np.int64), 0.0
    source = open_masks(data, "val")
    source.inspect()
    for batch in mask_eval_loader(source, batch_size=1, processor=PROCESSOR, divisor=divisor):
        height, width = batch["size"][0]
        label = batch["label"][0, :height, :width]
        pixel_values = (jnp.asarray(batch["image"], jnp.float32) / 255 - 0.5) / 0.25
        counts += count(np.asarray(segment(apply, pixel_values, (int(height), int(width))))[0], label, 3)
        logits = np.asarray(apply(pixel_values)[0], np.float64)
        for size in (pixel_values.shape[1:3], label.shape):
            logits = bilinear(bilinear(logits, 0, size[0]), 1, size[1])
        largest = logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
        right = np.take_along_axis(logits, np.minimum(label, 2)[..., None].astype(int), -1)[..., 0]
        loss += (log_sum - right)[label != 255].sum()
    return counts, loss / counts[2].sum()


def bilinear(x, axis, after):
    at = np.clip((np.arange(after) + 0.5) * x.shape[axis] / after - 0.5, 0, x.shape[axis] - 1)
    low = np.floor(at).astype(int)
    part = (at - low).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, x.shape[axis] - 1), axis) * part


@pytest.mark.once
@pytest.mark.parametrize(("batch_size", "divisor"), [(1, 16), (4, 16), (3, 1)])
def test_exact_whatever_the_batches(data, batch_size, divisor):
    metrics = measured(data, batch_size, divisor=divisor)
    counts, loss = expected(data, divisor)
    np.testing.assert_array_equal(metrics.counts, counts)
    np.testing.assert_allclose(metrics.loss, loss, rtol=2e-6)
    assert metrics.images == len(SIZES) * 2
    assert metrics.counts[2].sum() == sum((height - 2) * width for height, width in SIZES) * 2


def test_examples(data):
    examples = measured(data, 4).examples
    assert {name: array.shape[0] for name, array in examples.items()} == {"image": 6, "truth": 6, "predicted": 6}
    for truth, predicted in zip(examples["truth"], examples["predicted"], strict=True):
        np.testing.assert_array_equal(truth == OUTSIDE, predicted == OUTSIDE)
        assert set(np.unique(truth)) <= {0, 1, 2, OUTSIDE, 255}


def test_sizes_are_few():
    box = NatImageProcessor.semantic_segmentation()
    assert prepared_size((480, 640), box) == (512, 683)
    assert prepared_size((480, 640), box, 32) == (512, 672)
    assert prepared_size((100, 1000), box) == (205, 2048)
    rng = np.random.default_rng(0)
    sizes = {prepared_size(tuple(map(int, rng.integers(200, 2000, 2))), box, 32) for _ in range(2000)}
    assert len(sizes) <= 2 * (2048 - 512) // 32 + 1 + 2 * 512 // 32


def test_batches_have_one_size(data):
    source = open_masks(data, "val")
    source.inspect()
    batches = list(mask_eval_loader(source, batch_size=4, processor=PROCESSOR, divisor=16))
    shapes = [batch["image"].shape[1:3] for batch in batches]
    assert len(set(shapes)) == 3  # of five sizes
    indices = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert sorted(indices.tolist()) == list(range(10))
    halves = [mask_eval_loader(source, batch_size=4, processor=PROCESSOR, divisor=16, share=i, shares=2)
              for i in range(2)]  # fmt: skip
    for batch, *parts in zip(batches, *halves, strict=True):
        np.testing.assert_array_equal(batch["label"], np.concatenate([part["label"] for part in parts]))


def test_images_that_inspection_could_not_read_count_as_unreadable(data):
    source = open_masks(data, "val")
    source.inspect()
    source.sizes[3] = 0
    options = {"batch_size": 4, "processor": PROCESSOR, "divisor": 16}
    with pytest.raises(ImageError, match=r"^Images cannot be read: .*3\.png\. Mend it\.$"):
        mask_eval_loader(source, advice="Mend it.", **options)
    batches = list(mask_eval_loader(source, max_corrupt=1, **options))
    assert sum(batch["mask"].sum() for batch in batches) == len(source)  # it can be read by now


@pytest.mark.slow
def test_mesh(data):
    command = [sys.executable, __file__, str(data)]
    import os

    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    metrics = measured(data, 8)
    assert found["counts"] == metrics.counts.tolist()
    np.testing.assert_allclose(found["loss"], metrics.loss, rtol=1e-6)


if __name__ == "__main__":
    metrics = measured(pathlib.Path(sys.argv[1]), 8, "data=4,fsdp=2")
    print(json.dumps({"counts": metrics.counts.tolist(), "loss": metrics.loss}))
