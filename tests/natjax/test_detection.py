"""Mask R-CNN and Cascade Mask R-CNN: their configuration, and what they return, by small random models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.configuration import config_from_dict
from natjax.detection.anchors import pyramid_anchors
from natjax.detection.boxes import decode, iou
from natjax.models.detection.rpn import propose
from natjax.nn.resizing import upsample_nearest

pytestmark = pytest.mark.nnx

BACKBONE = natjax.NatConfig(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), kernel_size=3, drop_path_rate=0.0)
SIZES = {"fpn_channels": 6, "rpn_channels": 5, "box_conv_channels": 7, "box_fc_channels": 8, "mask_channels": 9}
SIZES |= {"rpn_pre_nms": 30, "rpn_post_nms": 20, "max_detections": 10, "initializer_range": 0.3}
CONFIGS = [
    natjax.MaskRcnnConfig(backbone_config=BACKBONE, num_labels=3, **SIZES),
    natjax.CascadeMaskRcnnConfig(backbone_config=BACKBONE, num_labels=3, **SIZES),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_config_json_comes_back(config):
    config = config.replace(score_threshold=0.1, id2label={0: "cat", 1: "dog"}, extra={"more": [1]})
    read = config_from_dict(json.loads(config.to_json()))
    assert read == config
    assert type(read) is type(config)
    assert hash(read) == hash(config)
    assert read.trunk.out_features == ("stage1", "stage2", "stage3", "stage4")
    assert read.strides == (4, 8, 16, 32, 64)


def test_changes_go_to_the_backbone_where_they_are_its_fields():
    changed = CONFIGS[1].replace(drop_path_rate=0.3, embed_dim=8, fpn_channels=16, initializer_range=0.5)
    assert (changed.trunk.drop_path_rate, changed.trunk.embed_dim, changed.trunk.initializer_range) == (0.3, 8, 0.02)
    assert (changed.fpn_channels, changed.initializer_range) == (16, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fpn_chanels": 3}, "no field 'fpn_chanels'"),
        ({"num_labels": 0}, "a Mask R-CNN without classes detects nothing"),
        ({"fpn_channels": 0}, "fpn_channels must be an integer of at least 1; got 0"),
        ({"box_num_fcs": -1}, "box_num_fcs must be an integer of at least 0; got -1"),
        ({"score_threshold": 1.5}, r"score_threshold must be in \[0, 1\]; got 1.5"),
        ({"rpn_anchor_border": -1}, "rpn_anchor_border must be an integer of at least 0; got -1"),
        ({"box_loss": "l2"}, "box_loss must be one of l1, giou; got 'l2'"),
        ({"box_loss_weight": -1}, "box_loss_weight must not be negative"),
        (
            {"box_positive_fraction": 0.0},
            "must leave 1 at least of the 512 proposals of box_batch_size to objects; got 0.0",
        ),
        ({"box_batch_size": 3}, "box_positive_fraction must leave 1 at least of the 3 proposals .* got 0.25"),
        ({"box_low_quality_matches": 1}, "box_low_quality_matches must be true or false; got 1"),
        ({"anchor_ratios": (1, 0)}, "entries of anchor_ratios must be positive"),
        ({"anchor_ratios": ()}, "anchor_ratios must be a sequence of one or more entries"),
        ({"anchor_scale": "8"}, "anchor_scale must be a finite number; got '8'"),
        ({"box_stds": ((0.1, 0.1),)}, r"box_stds\[0\] must be a sequence of 4 entries"),
        ({"box_stds": 0.1}, "box_stds must be a sequence"),
        ({"box_iou_thresholds": (0.5, 0.6)}, r"box_iou_thresholds needs an entry for each of the 1 stages .*got \(0.5"),
        ({"box_iou_thresholds": (50,)}, r"entries of box_iou_thresholds must be in \[0, 1\]; got 50"),
        (
            {"box_stds": ((1, 1, 1, 1),) * 2, "box_iou_thresholds": (0.5,) * 2, "stage_loss_weights": (1,) * 2},
            "a Mask R-CNN has one stage; got 2. CascadeMaskRcnnConfig has several",
        ),
        ({"backbone_config": BACKBONE.replace(out_features=("stage1",))}, "a Mask R-CNN takes the maps of all levels"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIGS[0].replace(**changes)


def test_a_model_takes_its_own_configuration():
    with pytest.raises(ValueError, match="config must be a CascadeMaskRcnnConfig; got MaskRcnnConfig"):
        natjax.CascadeMaskRcnnForObjectDetection(CONFIGS[0], rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)])
def test_nearest_neighbours_as_in_pytorch(size):
    x = np.random.default_rng(0).standard_normal((2, -(-size[0] // 2), -(-size[1] // 2), 3), np.float32)
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(x.shape[1:3], size, strict=True))
    np.testing.assert_array_equal(jax.jit(upsample_nearest, static_argnums=1)(x, size), x[:, rows][:, :, columns])


def test_proposals_by_their_definition():
    rng = np.random.default_rng(0)
    maps, strides = [(30, 50), (15, 25), (8, 13)], (4, 8, 16)
    anchors = pyramid_anchors(maps, strides, 8, (0.5, 1.0, 2.0))
    logits = [rng.standard_normal((2, len(each))).astype(np.float32).round(1) for each in anchors]  # many are equal
    deltas = [0.3 * rng.standard_normal((2, len(each), 4)).astype(np.float32) for each in anchors]
    sizes = np.array([(117, 200), (40, 10)], np.float32)
    found = jax.jit(lambda *x: propose(*x, sizes, anchors=anchors, pre_nms=1000, post_nms=400, iou_threshold=0.7))(
        logits, deltas
    )
    counts = []
    for i, size in enumerate(sizes):
        boxes, scores, levels = [], [], []
        for level, each in enumerate(anchors):
            best = np.argsort(-logits[level][i], kind="stable")[:1000]
            boxes.append(np.asarray(decode(each[best], deltas[level][i][best], (1.0,) * 4, size)))
            scores.append(1 / (1 + np.exp(-logits[level][i][best])))
            levels.append(np.full(len(best), level))
        boxes, scores, levels = map(np.concatenate, (boxes, scores, levels))
        free = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        overlaps, kept = np.asarray(iou(boxes, boxes)) > 0.7, []
        for j in np.argsort(-scores, kind="stable"):
            if free[j]:
                kept.append(j)
                free &= ~(overlaps[j] & (levels == levels[j]))
        kept = kept[:400]
        counts.append(len(kept))
        np.testing.assert_array_equal(found.valid[i], np.arange(400) < len(kept))
        np.testing.assert_allclose(found.boxes[i][: len(kept)], boxes[kept], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.scores[i][: len(kept)], scores[kept], rtol=1e-6)
        assert not found.boxes[i][len(kept) :].any()
    assert counts[0] == 400
    assert 10 < counts[1] < 400


@pytest.fixture(scope="module")
def program():
    """A Mask R-CNN as a function of its parameters, two images, their sizes and scale factors."""
    with jax.numpy_dtype_promotion("strict"):
        model = natjax.MaskRcnnForObjectDetection(CONFIGS[0], rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(model)
        run = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))
        x = np.random.default_rng(1).standard_normal((2, 64, 96, 3), np.float32)
        sizes, factors = np.array([(64, 96), (37, 50)], np.int32), np.ones((2, 4), np.float32)
        params = nnx.to_pure_dict(state)

        def call(*, bias=None, order=(0, 1), scale=1.0):
            changed = nnx.split(model)[1]
            nnx.replace_by_pure_dict(changed, bias(params) if bias else params)
            order = list(order)
            return run(changed, x[order], sizes[order], np.float32(scale) * factors)

        return call


def test_detections_of_a_batch(program):
    found = program()
    assert found.masks.shape == (2, 10, 28, 28)
    assert found.valid.all()
    assert set(np.unique(found.labels)) <= {0, 1, 2}
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores > 0.05).all()
    for i, (height, width) in enumerate([(64, 96), (37, 50)]):
        boxes = np.asarray(found.boxes[i])
        assert (boxes >= 0).all()
        assert (boxes <= [width, height] * 2).all()
        assert boxes[:, 2].max() > width / 2
    assert 0 < found.masks.min() < found.masks.max() < 1
    swapped = program(order=(1, 0))
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_allclose(swapped[name][::-1], found[name], rtol=1e-4, atol=1e-4)


def test_boxes_are_divided_by_scale_factors(program):
    found, halved = program(), program(scale=2)
    np.testing.assert_array_equal(2 * halved.boxes, found.boxes)
    np.testing.assert_array_equal(halved.masks, found.masks)


def with_values(params, path, value):
    """A nested dict with other values at a path."""
    first, *rest = path
    return {**params, first: with_values(params[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("roi_head", "bbox_head", 0, "fc_cls", "bias"), (0, 0, 0, 50)),  # all is background
        (("rpn_head", "rpn_reg", "bias"), (1e4, 0, 0, 0) * 3),  # no proposal is within its image
    ],
)
def test_an_image_of_nothing(program, path, values):
    found = program(bias=lambda params: with_values(params, path, np.array(values, np.float32)))
    assert not found.valid.any()
    assert (found.labels == -1).all()
    assert not any(found[name].any() for name in ("boxes", "scores", "masks"))


def test_shapes_and_dtypes():
    def run(x):
        model = natjax.MaskRcnnForObjectDetection(CONFIGS[0], dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        return vars(model(x)), vars(model(x, output_masks=False, output_hidden_states=True))

    found, other = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.bfloat16))
    assert found["masks"].shape == (2, 10, 28, 28)
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {np.dtype(np.float32)}
    assert other["masks"] is None
    assert len(other["hidden_states"]) == 5


@pytest.mark.parametrize(
    ("image_sizes", "scale_factors", "message"),
    [
        (np.array([[32, 32, 3]]), None, r"image_sizes must be integers \[1, 2\].*got int.* of shape \(1, 3\)"),
        (np.array([[32.0, 32.0]]), None, r"image_sizes must be integers .*got float"),
        (np.array([[33, 32]]), None, r"from 1 to the \[32, 40\] of the pixel values; got \[\[33, 32\]\]"),
        (np.array([[0, 32]]), None, "from 1 to the"),
        (None, np.ones((1, 2)), r"scale_factors must be floating point \[1, 4\].*of shape \(1, 2\)"),
        (None, np.ones((1, 4), int), "scale_factors must be floating point .*got int"),
        (None, np.array([[1.0, 1.0, 0.0, 1.0]]), r"finite and positive; got \[\[1.0, 1.0, 0.0, 1.0\]\]"),
    ],
)
def test_sizes_and_scale_factors_that_do_not_fit(image_sizes, scale_factors, message):
    model = nnx.eval_shape(lambda: natjax.MaskRcnnForObjectDetection(CONFIGS[0], rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        model(np.zeros((1, 32, 40, 3), np.float32), image_sizes, scale_factors)


def test_lists_are_no_sizes():
    model = nnx.eval_shape(lambda: natjax.MaskRcnnForObjectDetection(CONFIGS[0], rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="image_sizes must be an array of JAX or NumPy; got list"):
        model(np.zeros((1, 32, 40, 3), np.float32), [(32, 40)])


def test_a_training_view_does_not_detect():
    model = nnx.eval_shape(lambda: natjax.CascadeMaskRcnnForObjectDetection(CONFIGS[1], rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="Call its losses to train it"):
        nnx.view(model, use_running_average=False)(np.zeros((1, 32, 40, 3), np.float32))


def test_initial_weights_are_mmdetections():
    """Deviations by layer. Numbers beyond two of them are left out, which leaves 0.88 of a normal distribution's."""
    sizes = {"fpn_channels": 64, "rpn_channels": 48, "box_num_convs": 1, "box_conv_channels": 40, "box_fc_channels": 56}
    config = natjax.MaskRcnnConfig(backbone_config=BACKBONE, num_labels=30, mask_channels=72, **sizes)
    model = natjax.MaskRcnnForObjectDetection(config, rngs=nnx.Rngs(0))
    rpn, box, mask = model.rpn_head, model.roi_head.bbox_head[0], model.roi_head.mask_head[0]
    expected = [
        (model.neck.lateral_convs[3], np.sqrt(2 / (32 + 64))),  # Xavier, of inputs and outputs
        (model.neck.fpn_convs[0], np.sqrt(2 / (2 * 9 * 64))),
        (box.shared_fcs[0], np.sqrt(2 / (49 * 40 + 56))),
        (box.shared_convs[0].conv, np.sqrt(2 / (9 * 40))),  # Kaiming, of outputs
        (mask.convs[0], np.sqrt(2 / (9 * 72))),
        (mask.upsample, np.sqrt(2 / (4 * 72))),
        (mask.conv_logits, 0.88 * np.sqrt(2 / 30)),
        (rpn.rpn_conv, 0.88 * 0.01),
        (rpn.rpn_reg, 0.88 * 0.01),
        (box.fc_cls, 0.88 * 0.01),
        (box.fc_reg, 0.88 * 0.001),
    ]
    for layer, deviation in expected:
        assert np.std(layer.kernel[...]) == pytest.approx(deviation, rel=0.06)
