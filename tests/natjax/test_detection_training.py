"""Training losses of Mask R-CNN and Cascade Mask R-CNN against mmdetection (tests/goldens), and by small random models."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax.models.detection import mask_rcnn, training
from natjax.models.detection.rpn import Proposals

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
EVERYTHING = {"train_rpn_pre_nms": 250, "train_rpn_post_nms": 180, "rpn_batch_size": 10**6, "box_batch_size": 10**6}


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def load(name):
    model_class = natjax.CascadeMaskRcnnForObjectDetection if "cascade" in name else natjax.MaskRcnnForObjectDetection
    golden = np.load(GOLDENS / name / "expected.npz")
    return golden, model_class.from_pretrained(GOLDENS / name / "checkpoint.pth", **EVERYTHING)


def labels_of(golden, places):
    """Ground truth of both images, which have 7 and 6 objects, in so many places."""
    of_images = []
    for i in range(2):
        shape = golden[f"train/gt_masks_shape_{i}"]
        masks = np.unpackbits(golden[f"train/gt_masks_packed_{i}"], count=np.prod(shape)).reshape(shape)
        boxes = golden[f"train/gt_boxes_{i}"]
        entries = {"boxes": boxes, "class_labels": golden[f"train/gt_labels_{i}"], "masks": masks.astype(bool)}
        entries["valid"] = np.ones(len(boxes), bool)
        of_images.append({k: np.pad(v, [(0, places - len(v))] + [(0, 0)] * (v.ndim - 1)) for k, v in entries.items()})
    return {k: np.stack([entries[k] for entries in of_images]) for k in of_images[0]}


def proposals_of(golden, prefix):
    """The golden's proposals: what is sampled first, without the ground truth that is added."""
    boxes = []
    for i in range(2):
        sampled, truth = golden[f"{prefix}sampled_{i}"], golden[f"train/gt_boxes_{i}"]
        boxes.append(sampled[~(sampled[:, None] == truth).all(axis=2).any(axis=1)])
    assert {len(x) for x in boxes} == {180}
    return np.stack(boxes)


class Step(NamedTuple):
    """Losses by name, what every stage learned from, and gradients and statistics by mmdetection's names."""

    losses: dict
    samples: list
    tensors: dict


def training_step(model, golden, first_sample, monkeypatch, *, use_running_average, gradients=True):
    """A step of both images. It starts with the golden's proposals, as those of equal scores (1 in float32) have no order."""
    labels, sizes = labels_of(golden, 9), np.stack([golden[f"train/img_shape_{i}"] for i in range(2)])
    boxes = proposals_of(golden, first_sample)
    proposals = Proposals(jnp.asarray(boxes), jnp.zeros(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))
    monkeypatch.setattr(mask_rcnn, "propose", lambda *_, **__: proposals)
    sample_proposals, samples = training.sample_proposals, []

    def recorded(*arguments):
        samples.append(sample_proposals(*arguments))
        return samples[-1]

    monkeypatch.setattr(training, "sample_proposals", recorded)
    view = nnx.view(model, use_running_average=use_running_average, raise_if_not_found=False)
    graphdef, params, stats = nnx.split(view, nnx.Param, nnx.BatchStat)

    def losses(params, stats):
        model = nnx.merge(graphdef, params, stats, copy=True)
        found = model.losses(nhwc(golden["train/input"]), labels, sizes, rngs=jax.random.key(0))
        return found["loss"], (found, samples, nnx.state(model, nnx.BatchStat))

    if not gradients:
        _, (found, sampled, _) = jax.jit(losses)(params, stats)
        return Step(found, sampled, {})
    (_, (found, sampled, stats)), of_params = jax.jit(jax.value_and_grad(losses, has_aux=True))(params, stats)
    values = merged(nnx.to_pure_dict(of_params), nnx.to_pure_dict(stats))
    tensors = natjax_convert.from_flax(values, model.config, kind="detection", dialect="mmdet")
    return Step(found, sampled, {name: np.asarray(tensor) for name, tensor in tensors.items()})


def merged(a, b):
    """A nested dict with the leaves of two others."""
    if not isinstance(a, dict):
        return a
    return {key: merged(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in {**a, **b}}


def check_losses(step, golden, beginning):
    names = {name.removeprefix(beginning) for name in golden.files if name.startswith(beginning) and "loss" in name}
    assert set(step.losses) == names
    for name, loss in step.losses.items():
        np.testing.assert_allclose(loss, np.sum(golden[beginning + name]), rtol=5e-6, err_msg=name)


def check_samples(step, golden, beginnings):
    for stage, beginning in zip(step.samples, beginnings, strict=True):
        for i in range(2):
            boxes = np.asarray(stage.boxes[i][stage.valid[i]])
            np.testing.assert_allclose(boxes, golden[f"{beginning}sampled_{i}"], rtol=0, atol=5e-4)
            assert np.sum(stage.matched[i] > 0) == golden[f"{beginning}positives_{i}"]


def check_tensors(step, name, golden, mode, *, count):
    """Errors are parts of the largest number of an array.

    Rounding may turn a ReLU on or off. So mmdetection's own gradients change when its pyramid does by 1e-6, and nobody's can be
    closer than that; most are, by far.
    """
    beginning = f"train_{mode}/"
    of_arrays = [each for each in golden.files if each.startswith((f"{beginning}grad/", f"{beginning}stats/"))]
    assert len(of_arrays) == count
    errors = {}
    for each in of_arrays:
        ours, theirs = step.tensors[each.removeprefix(beginning).split("/")[1]], golden[each]
        errors[each] = np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0)
    stability = json.loads((GOLDENS / name / "provenance.json").read_text())["stability"]
    own_change = max(change["gradients"] for change in stability["training_relative_change"][mode])
    assert max(errors.values()) < own_change, max(errors.items(), key=lambda item: item[1])
    assert np.median(list(errors.values())) < 5e-6


def test_training_step_of_mask_rcnn(monkeypatch):
    golden, model = load("mmdet_mask_rcnn")
    step = training_step(model, golden, "train_running/", monkeypatch, use_running_average=True)
    check_losses(step, golden, "train_running/")
    check_samples(step, golden, ["train_running/"])
    check_tensors(step, "mmdet_mask_rcnn", golden, "running", count=117)


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_training_step_of_cascade_mask_rcnn(mode, monkeypatch):
    """The gradients are those of the step with batch statistics, as either of the two takes half a minute to compile."""
    golden, model = load("mmdet_cascade_mask_rcnn")
    stages = [f"train_{mode}/stage{i}/" for i in range(3)]
    running = mode == "running"
    step = training_step(model, golden, stages[0], monkeypatch, use_running_average=running, gradients=not running)
    check_losses(step, golden, f"train_{mode}/")
    check_samples(step, golden, stages)
    if not running:
        check_tensors(step, "mmdet_cascade_mask_rcnn", golden, "batch", count=148)


BACKBONE = natjax.NatConfig(embed_dim=4, depths=(1, 1), num_heads=(1, 1), kernel_size=3, drop_path_rate=0.0)
SMALL = natjax.MaskRcnnConfig(
    backbone_config=BACKBONE,
    num_labels=3,
    anchor_scale=2,
    fpn_channels=6,
    rpn_channels=5,
    box_num_convs=1,
    box_conv_channels=7,
    box_num_fcs=1,
    box_fc_channels=8,
    mask_num_convs=1,
    mask_channels=9,
    train_rpn_post_nms=30,
    rpn_batch_size=12,
    box_batch_size=10,
    initializer_range=0.3,
)
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
SIZES = np.array([[64, 64], [50, 40]])


def objects(places=3):
    """Two objects in the first image, one in the second."""
    boxes = np.zeros((2, places, 4), np.float32)
    boxes[0, :2], boxes[1, 0] = [[4, 6, 30, 40], [20, 20, 60, 50]], [5, 10, 35, 30]
    masks = np.zeros((2, places, 64, 64), bool)
    masks[0, 0, 10:40, 4:25] = masks[0, 1, 20:45, 30:60] = masks[1, 0, 12:30, 5:30] = True
    valid = np.arange(places) < np.array([[2], [1]])
    return {"boxes": boxes, "class_labels": np.where(valid, [[1], [2]], 0), "valid": valid, "masks": masks}


def small_model(**changes):
    """Parameters, and a function of them, labels and a key: the loss, then all losses and new statistics."""
    model = natjax.MaskRcnnForObjectDetection(SMALL.replace(**changes), rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(nnx.view(model, use_running_average=False), nnx.Param, nnx.BatchStat)

    def losses(params, labels, key):
        model = nnx.merge(graphdef, params, stats, copy=True)
        found = model.losses(IMAGES, labels, SIZES, rngs=key)
        return found["loss"], (found, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return params, losses


@pytest.fixture(scope="module")
def step():
    """A function of labels and a key: losses and new statistics, and gradients."""
    params, losses = small_model()
    gradient = jax.jit(jax.grad(losses, has_aux=True))

    def step(labels, key):
        gradients, (found, stats) = gradient(params, labels, key)
        return found, stats, nnx.to_pure_dict(gradients)

    return step


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.nnx
def test_a_key_decides_the_samples(step):
    first, again, other = (step(objects(), jax.random.key(seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first[0]["loss_rpn_cls"], other[0]["loss_rpn_cls"])
    assert not same(first[0]["loss_cls"], other[0]["loss_cls"])
    assert all(float(loss) > 0 for loss in first[0].values())
    np.testing.assert_allclose(first[0]["loss"], sum(float(loss) for loss in first[0].values()) / 2, rtol=1e-6)


def test_places_without_an_object_change_nothing(step):
    labels = objects()
    want = step(labels, jax.random.key(0))
    empty = ~labels["valid"]
    labels["boxes"][empty], labels["class_labels"][empty], labels["masks"][empty] = [7, 8, 30, 30], -1, True
    assert same(step(labels, jax.random.key(0)), want)


def test_traced_objects_without_a_box_count_as_none(step):
    labels, drawn = objects(), objects()
    for box in ([5, 5, 5, 9], [30, 20, 10, 40], [5, 5, np.nan, 9], [5, 5, np.inf, 9]):
        drawn["boxes"][1, 2], drawn["valid"][1, 2] = box, True
        assert same(step(drawn, jax.random.key(0)), step(labels, jax.random.key(0)))


@pytest.mark.parametrize("border", [None, 1000])
def test_anchors_that_learn_are_centred_in_the_image_with_its_own_padding(border, monkeypatch):
    """All are of the background here, so the loss is that of their logits."""
    padded, labels = np.array([[64, 64], [32, 40]]), objects()
    monkeypatch.setattr(mask_rcnn, "roi_losses", lambda *_: {})
    config = SMALL.replace(rpn_anchor_border=border, rpn_batch_size=10**6)
    model = natjax.MaskRcnnForObjectDetection(config, rngs=nnx.Rngs(0))
    labels["valid"][:] = False

    @nnx.jit
    def losses_and_logits(model):
        found = model.losses(IMAGES, labels, padded - 5, padded, rngs=jax.random.key(0))
        return found["loss_rpn_cls"], model.rpn_head(model.neck(model.backbone(IMAGES).feature_maps))[0]

    got, logits = losses_and_logits(model)
    total, number = 0.0, 0
    for of_map, stride in zip(logits, config.strides, strict=True):
        maps = np.asarray(of_map).reshape(2, -(-64 // stride), -(-64 // stride), 3)
        for image, (height, width) in zip(maps, padded, strict=True):
            learn = image[: -(-height // stride), : -(-width // stride)]
            total, number = total + np.sum(np.logaddexp(0, learn, dtype=np.float64)), number + learn.size
    np.testing.assert_allclose(got, total / (number + 2), rtol=1e-5)  # at least one positive of each image, it is said


def test_images_without_objects(step):
    labels = objects()
    found, _, gradients = step({**labels, "valid": np.zeros_like(labels["valid"])}, jax.random.key(0))
    assert [name for name, loss in found.items() if loss == 0] == ["loss_bbox", "loss_mask", "loss_rpn_bbox"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((found, gradients)))


@pytest.mark.once
def test_places_without_a_proposal_change_nothing():
    """Neither losses nor batch statistics, whatever the number of places, if there are some for all boxes."""
    everything = {"train_rpn_pre_nms": 15, "rpn_batch_size": 10**6, "box_batch_size": 10**6}
    found = []
    for proposals, places in ((80, 2), (200, 5)):
        params, losses = small_model(**everything, train_rpn_post_nms=proposals)
        found.append(jax.jit(losses)(params, objects(places), jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


def test_labels_that_do_not_fit():
    model = natjax.MaskRcnnForObjectDetection(SMALL, rngs=nnx.Rngs(0))
    labels, key = objects(), jax.random.key(0)
    for change, message in (
        (
            {"boxes": labels["boxes"][..., :3]},
            r"labels\['boxes'\] must be floating point \[B, G, 4\] for B = 2 .*\(2, 3, 3\)",
        ),
        ({"masks": labels["masks"][:, :, :50]}, r"labels\['masks'\] must be bool \[B, G, 64, 64\]"),
        ({"class_labels": labels["class_labels"] + 2}, r"of objects must be in \[0, 3\); got \[3, 3, 4\]"),
        (
            {"boxes": labels["boxes"][..., [2, 1, 0, 3]]},
            r"labels\['boxes'\] of objects must be x1, y1, x2, y2 in pixels with sides above 0; got \[\[30.0, 6.0, 4.0, 40.0\], ",
        ),
        ({"boxes": np.where(labels["boxes"] == 60, np.inf, labels["boxes"])}, r"got \[\[20.0, 20.0, inf, 50.0\]\]"),
        ({"areas": labels["boxes"]}, r"labels must be a dict of boxes, class_labels, valid, masks; got \['areas', "),
    ):
        with pytest.raises(ValueError, match=message):
            model.losses(IMAGES, {**labels, **change}, rngs=key)
    with pytest.raises(ValueError, match="padded_sizes must be integers"):
        model.losses(IMAGES, labels, padded_sizes=SIZES * 2, rngs=key)
    with pytest.raises(ValueError, match=r"pass rngs, a jax\.random\.key or nnx\.Rngs"):
        model.losses(IMAGES, labels, rngs=None)
