"""Detection against mmdetection (tests/goldens): Mask R-CNN over NAT, Cascade Mask R-CNN over DiNAT, every step of theirs.

Many scores of these random models are 1 in float32, and PyTorch sorts equal ones in an order of its own (that of a stable sort
gives other proposals there, too). So the heads are compared on the goldens' boxes, to 2e-5 of the largest number of an array.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.detection.coco import run_lengths
from natjax.detection.masks import paste_masks
from natjax_train.tasks.average_precision import evaluate, results_of

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
MODELS = {
    "mmdet_mask_rcnn": natjax.MaskRcnnForObjectDetection,
    "mmdet_cascade_mask_rcnn": natjax.CascadeMaskRcnnForObjectDetection,
}
COUNTS = {"rpn_pre_nms": 60, "rpn_post_nms": 70, "max_detections": 30}
IMAGE_SIZE, SCALE = (150, 219), 1.5  # of the image within its padding, and to its original
FIELDS = ("boxes", "scores", "labels", "valid", "masks")
OF_TIES = {"mmdet_mask_rcnn": 1, "mmdet_cascade_mask_rcnn": 0}  # detections that follow from the order of equal scores


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def golden(name):
    return np.load(GOLDENS / name / "expected.npz")


@pytest.fixture(scope="module")
def found(name, golden):
    """What the model finds in the golden's image: of its own proposals, and (`heads`) of the golden's boxes."""
    model = MODELS[name].from_pretrained(GOLDENS / name / "checkpoint.pth", **COUNTS)
    sizes, scale_factors = np.array([IMAGE_SIZE]), np.full((1, 4), SCALE, np.float32)

    def run(model, x, boxes, dets, labels):
        image_sizes = jnp.asarray(sizes, jnp.float32)
        pyramid = model.neck(model.backbone(x).feature_maps)
        logits, deltas = model.rpn_head(pyramid)
        proposals = model.propose(pyramid, logits, deltas, image_sizes)
        stages = model.roi_head.stages(pyramid[:-1], boxes, jnp.ones(boxes.shape[:2], bool), image_sizes)
        detections = model.roi_head.detections(stages, proposals.valid, image_sizes, scale_factors)
        masks = model.roi_head.masks(pyramid[:-1], dets * scale_factors, labels)
        heads = {"stages": stages, **detections._asdict(), "masks": masks}
        output = vars(model(x, sizes, scale_factors))
        return {"pyramid": pyramid, "rpn": (logits, deltas), "proposals": proposals, "heads": heads, "output": output}

    graphdef, state = nnx.split(model)
    jitted = jax.jit(lambda state, *arguments: run(nnx.merge(graphdef, state), *arguments))
    boxes, dets = golden["test/proposals"][None, :, :4], golden["test/dets"][None, :, :4]
    return jitted(state, golden["test/input"].transpose(0, 2, 3, 1), boxes, dets, golden["test/labels"][None])


def assert_close(actual, desired, name="", *, tolerance=2e-5):
    actual, largest = np.asarray(actual), np.abs(desired).max()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance * max(largest, 1e-3), err_msg=name)


def test_feature_pyramid(golden, found):
    for i, actual in enumerate(found["pyramid"]):
        step = 1 if i else 2
        assert_close(actual[:, ::step, ::step], golden[f"test/pyramid_{i}"].transpose(0, 2, 3, 1), f"map {i}")


def test_region_proposal_network(golden, found):
    for i, (logits, deltas) in enumerate(zip(*found["rpn"], strict=True)):
        size, step = found["pyramid"][i].shape[1:3], 1 if i else 2
        for actual, name in ((logits, "cls"), (deltas, "reg")):
            expected = golden[f"test/rpn_{name}_{i}"].transpose(0, 2, 3, 1)
            assert_close(actual.reshape(1, *size, -1)[:, ::step, ::step], expected, f"{name} {i}")


def test_proposals(golden, found):
    (boxes, scores, valid), expected = found["proposals"], golden["test/proposals"]
    assert valid.all()
    expected = expected[expected[:, 4] < 1]
    assert len(expected) > 50
    difference = np.abs(np.asarray(boxes[0])[None] - expected[:, None, :4]).max(axis=2)
    nearest = difference.argmin(axis=1)
    assert difference.min(axis=1).max() < 2e-5 * max(IMAGE_SIZE)
    assert_close(scores[0][nearest], expected[:, 4])
    assert (np.diff(scores[0]) <= 0).all()


def test_box_heads(golden, found):
    stages = found["heads"]["stages"]
    names = ["test/roi_"] if len(stages) == 1 else [f"test/stage{i}/" for i in range(3)]
    for stage, name in zip(stages, names, strict=True):
        assert_close(stage.logits[0], golden[name + "cls"], name)
        assert_close(stage.deltas[0].reshape(len(stage.deltas[0]), -1), golden[name + "reg"], name)
        if len(stages) > 1:
            assert_close(stage.boxes[0], golden[name + "rois"], name)


def test_detections_and_their_masks(golden, found):
    heads = found["heads"]
    assert heads["valid"].all()
    np.testing.assert_array_equal(heads["labels"][0], golden["test/labels"])
    assert_close(heads["boxes"][0], golden["test/dets"][:, :4])
    assert_close(heads["scores"][0], golden["test/dets"][:, 4])
    assert_close(heads["masks"][0], golden["test/mask_probabilities"])
    size = tuple(golden["test/masks_shape"][1:].tolist())
    pasted = paste_masks(np.asarray(heads["masks"][0]), golden["test/dets"][:, :4], size, 0.5)
    expected = np.unpackbits(golden["test/masks_packed"], count=pasted.size).reshape(pasted.shape)
    assert (pasted != expected).sum() <= 2  # pixels of probability 0.5, up to float noise


def test_output(name, golden, found):
    output, expected = found["output"], golden["test/dets"]
    assert output["valid"].all()
    difference = np.abs(np.asarray(output["boxes"][0]) - expected[:, :4]).max(axis=1)
    same = difference < 2e-5 * max(IMAGE_SIZE)
    assert same.sum() == len(same) - OF_TIES[name]
    np.testing.assert_array_equal(output["labels"][0][same], golden["test/labels"][same])
    # Proposals differ by float noise, which the three stages of a cascade amplify.
    assert_close(output["scores"][0][same], expected[same, 4], tolerance=1e-4)
    assert_close(output["masks"][0][same], golden["test/mask_probabilities"][same], tolerance=5e-4)


def test_average_precision(golden, found):
    """COCO's figures of what natjax finds are those of mmdetection's detections, of objects that are none of these exactly."""
    heads, dets = found["heads"], golden["test/dets"]
    size = tuple(golden["test/masks_shape"][1:].tolist())
    own = results_of({name: np.asarray(heads[name]) for name in FIELDS}, [size], [0])
    count, results, objects = len(dets), [], []
    rng = np.random.default_rng(0)
    for i, mask in enumerate(np.unpackbits(golden["test/masks_packed"], count=count * np.prod(size))
                             .reshape(count, *size).astype(bool)):  # fmt: skip
        box = [*dets[i, :2].tolist(), *(dets[i, 2:4] - dets[i, :2]).tolist()]
        common = {"image_id": 0, "category_id": int(golden["test/labels"][i])}
        results.append(common | {"bbox": box, "score": float(dets[i, 4]), "segmentation": run_lengths(mask)})
        part = np.where(np.arange(size[1]) < box[0] + box[2] * (share := rng.uniform(0.5, 1)), mask, False)
        left_part = [*box[:2], box[2] * share, box[3]]
        objects.append(common | {"bbox": left_part, "area": float(part.sum()), "segmentation": run_lengths(part)})
    truth = {
        "images": [{"id": 0, "height": size[0], "width": size[1]}],
        "categories": [{"id": label} for label in range(3)],
        "annotations": objects[::2],
    }
    expected, actual = (evaluate(truth, each).summary() for each in (results, own))
    assert actual == pytest.approx(expected, nan_ok=True)
    assert 0 < actual["box_ap"] < 1
    assert 0 < actual["mask_ap"] < 1
