"""The task of detection: what its models start from, what a step learns from, and what is kept of an evaluation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.detection.coco import run_lengths
from natjax_train import start
from natjax_train.recipe import Recipe
from natjax_train.tasks.detection import Detection

CLASSES = ("ant", "bee")
TRUNK = {"embed_dim": 4, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "kernel_size": 3}
HEADS = {"fpn_channels": 6, "rpn_channels": 5, "box_conv_channels": 7, "box_fc_channels": 8, "mask_channels": 9}
HEADS |= {"rpn_pre_nms": 30, "rpn_post_nms": 20, "train_rpn_pre_nms": 30, "train_rpn_post_nms": 20}
HEADS |= {"max_detections": 10, "rpn_batch_size": 32, "box_batch_size": 16}
RECIPE = {
    "task": "detection",
    "model": "custom",
    "model_config": {**TRUNK, **HEADS},
    "image_size": 64,
    "longest_edge": 96,
    "scale_range": (0.5, 1.0),
    "crop": False,
    "eval_crop": False,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "image_mean": (0.5,) * 3,
    "image_std": (0.25,) * 3,
    "seed": 3,
}


def task(classes=CLASSES, **changes):
    return Detection(Recipe(**RECIPE | changes), classes)


def same(one, other, *parts):
    """Whether parts of two models have the same parameters."""
    states = (
        [nnx.to_pure_dict(nnx.state(getattr(model, part), nnx.Param)) for part in parts] for model in (one, other)
    )
    return jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape and bool((a == b).all()), *states))


@pytest.fixture(scope="module")
def mask_rcnn():
    return task().initial_model()


@pytest.fixture(scope="module")
def saved(mask_rcnn, tmp_path_factory):
    """Folders of a classifier, a Mask R-CNN and a Cascade Mask R-CNN."""
    folder = tmp_path_factory.mktemp("models")
    trunk = natjax.NatConfig(**TRUNK, num_labels=5)
    natjax.NatForImageClassification(trunk, rngs=nnx.Rngs(1)).save_pretrained(folder / "classifier")
    mask_rcnn.save_pretrained(folder / "mask_rcnn")
    task(detector="cascade_mask_rcnn").initial_model().save_pretrained(folder / "cascade")
    return folder


def test_random_weights(mask_rcnn):
    assert type(mask_rcnn) is natjax.MaskRcnnForObjectDetection
    assert mask_rcnn.config.id2label == dict(enumerate(CLASSES))
    assert mask_rcnn.config.trunk.embed_dim == 4
    again, other = task().initial_model(), task(seed=4).initial_model()
    parts = ("backbone", "neck", "rpn_head", "roi_head")
    assert same(mask_rcnn, again, *parts)
    assert not same(mask_rcnn, other, "roi_head")


START = {"model_config": HEADS, "drop_path_rate": 0.1, "seed": 5}


@pytest.mark.parametrize(
    ("source", "classes", "changes", "kept", "words"),
    [
        ("classifier", CLASSES, {}, (), "new head (2)"),
        ("mask_rcnn", CLASSES, {}, ("neck", "rpn_head", "roi_head"), "head kept"),
        ("mask_rcnn", ("ant", "wasp"), {}, ("neck", "rpn_head"), "head replaced (2 -> 2)"),
        ("mask_rcnn", CLASSES, {"detector": "cascade_mask_rcnn"}, (), "new head (2)"),
        ("cascade", CLASSES, {}, ("neck", "rpn_head", "roi_head"), "head kept"),
        ("cascade", CLASSES, {"detector": "mask_rcnn"}, (), "new head (2)"),
    ],
)
def test_checkpoints(saved, source, classes, changes, kept, words):
    """A backbone is kept in any case; heads are where their architecture and the classes are those of the run."""
    run = task(classes, model=str(saved / source), **START, **changes)
    model = run.initial_model()
    cascade = changes.get("detector", source) in ("cascade", "cascade_mask_rcnn")
    expected = natjax.CascadeMaskRcnnForObjectDetection if cascade else natjax.MaskRcnnForObjectDetection
    assert type(model) is expected
    assert (list(model.config.id2label.values()), model.config.trunk.drop_path_rate) == (list(classes), 0.1)
    assert start.origin(run.recipe, model.config, run.kind) == words
    bare = natjax.NatModel if source == "classifier" else natjax.NatBackbone
    before = bare.from_pretrained(saved / source)
    assert same(model.backbone, before, "embeddings")
    if source != "classifier":
        before = natjax.CascadeMaskRcnnForObjectDetection if source == "cascade" else natjax.MaskRcnnForObjectDetection
        before = before.from_pretrained(saved / source)
        if type(model) is type(before):
            assert [part for part in ("neck", "rpn_head", "roi_head") if same(model, before, part)] == list(kept)
            assert same(model.roi_head, before.roi_head, "mask_head") == (words == "head kept")
            assert same(model.roi_head.bbox_head[0], before.roi_head.bbox_head[0], "shared_fcs")
        else:
            assert not same(model, before, "neck")
            assert kept == ()


def test_a_resumed_run_has_the_models_architecture(mask_rcnn):
    resumed = task().resumed_model(mask_rcnn.config)
    assert resumed.config == mask_rcnn.config
    shapes = (nnx.to_pure_dict(nnx.state(model, nnx.Param)) for model in (resumed, mask_rcnn))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, *shapes))
    with pytest.raises(ValueError, match=r"classes \(ant, wasp\) are not the run's 2 \(ant, bee\)"):
        task(("ant", "wasp")).resumed_model(mask_rcnn.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": (0.5,), "image_std": (0.5,)}, r"the model's 3 channels; got \(0.5,\)"),
        ({"model": "nat_mini", "model_config": {"backbone_config": {}}}, "give --model custom"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes).initial_model()


def test_what_the_recipe_leaves_open():
    settings = dict.fromkeys(
        ("image_size", "crop", "eval_crop", "crop_pct", "interpolation", "image_mean", "image_std")
    )
    recipe, words = Detection.resolve(Recipe(**RECIPE | settings))
    assert (recipe.image_size, recipe.crop, recipe.interpolation) == (800, False, "bilinear")
    assert start.is_resolved(recipe)
    assert words == "colours normalised as the recipe says"


def batch_of():
    """An upright image that fills its array and one that does not; the second one has no object."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 2, 64, 96), np.uint8)
    masks[0, 0, 10:40, 20:60] = 1
    return {
        "image": rng.integers(0, 256, (2, 64, 96, 3), np.uint8),
        "size": np.array([[64, 96], [40, 70]], np.int32),
        "boxes": np.array([[[20, 10, 60, 40], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2], np.float32),
        "class_labels": np.array([[1, 0], [0, 0]], np.int32),
        "valid": np.array([[True, False], [False, False]]),
        "masks": np.packbits(masks, axis=-1),
    }


def test_a_batch_of_training():
    batch = batch_of()
    pixel_values, targets = task().prepare(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(pixel_values[0], (batch["image"][0] / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pixel_values[1, :40, :70], (batch["image"][1, :40, :70] / 255 - 0.5) / 0.25, atol=1e-6)
    assert not np.any(pixel_values[1, 40:])
    assert not np.any(pixel_values[1, :, 70:])
    assert targets["masks"].shape == (2, 2, 64, 96)
    np.testing.assert_array_equal(np.argwhere(targets["masks"][0, 0])[[0, -1]], [[10, 20], [39, 59]])
    assert targets["masks"].sum() == 30 * 40


def test_the_loss_is_that_of_the_model(mask_rcnn):
    """Anchors learn within each image's sides up to multiples of 32; parts have mmdetection's names."""
    run = task()
    pixel_values, targets = run.prepare(jax.random.key(0), jax.tree.map(jnp.asarray, batch_of()))
    graphdef, state = nnx.split(nnx.view(mask_rcnn, deterministic=False))
    key = jax.random.key(1)

    @jax.jit
    def both(state, padded):
        ours = run.training_loss(nnx.merge(graphdef, state), pixel_values, targets, key)
        labels = {name: targets[name] for name in ("boxes", "class_labels", "valid", "masks")}
        theirs = nnx.merge(graphdef, state).losses(pixel_values, labels, targets["size"], padded, rngs=key)
        return ours, theirs

    (loss, parts), theirs = both(state, jnp.array([[64, 96], [64, 96]], jnp.int32))
    assert set(parts) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}
    np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
    assert {"loss": loss, **parts} == theirs


def test_detections_are_kept_as_results(mask_rcnn):
    """Boxes and masks in pixels of the original image, the latter from the model's threshold on."""
    rng = np.random.default_rng(0)
    judged = {
        "boxes": np.array([[[2, 1, 8, 5]] * 3, [[0, 0, 4, 4]] * 3], np.float32),
        "scores": np.array([[0.9, 0.8, 0.0], [0.0, 0.0, 0.0]], np.float32),
        "labels": np.array([[1, 0, 0], [0, 0, 0]], np.int32),
        "valid": np.array([[True, True, False], [False] * 3]),
        "masks": np.stack([np.full((3, 28, 28), 0.7), rng.random((3, 28, 28))]).astype(np.float32),
        "size": np.array([[60, 80], [64, 64]], np.int32),
        "scale": np.array([[80 / 12, 60 / 9] * 2, [64 / 7] * 4], np.float32),
        "index": np.array([4, 2], np.int32),
    }
    kept = Detection(None, CLASSES).kept(judged)
    first, second = kept["results"].tolist()
    assert (first["image_id"], first["category_id"], first["bbox"]) == (4, 1, [2, 1, 6, 4])
    assert second["category_id"] == 0
    assert first["segmentation"]["size"] == [9, 12]
    assert kept["index"].tolist() == [4, 2]
    strict = task()
    strict.resumed_model(mask_rcnn.config.replace(mask_threshold=0.9))
    nowhere = run_lengths(np.zeros((9, 12), bool))
    assert strict.kept(judged)["results"][0]["segmentation"] == nowhere != first["segmentation"]
    none = Detection(None, CLASSES).kept({name: value[:0] for name, value in judged.items()})
    assert none["results"].shape == none["index"].shape == (0,)
