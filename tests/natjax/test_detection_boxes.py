"""Boxes and anchors against mmdetection's (tests/goldens/mm_ops), and against NumPy's rounding."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.detection import anchors, boxes

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz")
STRIDES = (4, 8, 16, 32, 64)
SIZES = [tuple(size) for size in GOLDEN["anchors/sizes"].tolist()]


@pytest.mark.parametrize("level", range(5))
def test_anchors_are_mmdetections(level):
    ours = anchors.pyramid_anchors(SIZES, STRIDES, 8, (0.5, 1, 2))[level]
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, GOLDEN[f"anchors/{level}"])
    flags = anchors.centred_inside(ours, GOLDEN["anchors/pad_shape"])
    np.testing.assert_array_equal(flags, GOLDEN[f"anchors/valid_{level}"])


def test_anchors_inside_of_images_of_several_sizes():
    every = np.concatenate(anchors.pyramid_anchors(SIZES, STRIDES, 2, (0.5, 1, 2)))
    sizes, border = np.array([[40, 56], [33, 21]]), 3
    flags = jax.jit(lambda sizes: anchors.inside(every, sizes, border))(sizes)
    for (height, width), ours in zip(sizes, np.asarray(flags), strict=True):
        above = (every >= -border).all(axis=1)
        below = (every[:, 2] < width + border) & (every[:, 3] < height + border)
        np.testing.assert_array_equal(ours, above & below)
        assert 0 < ours.sum() < len(every)


@pytest.mark.parametrize("stage", range(3))
def test_coding_is_mmdetections(stage):
    golden = {name: GOLDEN[f"coder{stage}/{name}"] for name in ("proposals", "gt", "deltas", "encoded", "decoded")}
    stds = GOLDEN[f"coder{stage}/stds"].tolist()
    proposals, deltas = golden["proposals"], golden["deltas"].reshape(-1, 3, 4)
    encoded = jax.jit(lambda *given: boxes.encode(*given, stds))(proposals, golden["gt"])
    np.testing.assert_allclose(encoded, golden["encoded"], rtol=1e-6, atol=4e-6)
    decode = jax.jit(lambda *given: boxes.decode(*given[:2], stds, *given[2:]))
    clipped = decode(proposals[:, None], deltas, GOLDEN["coder/max_shape"])
    np.testing.assert_allclose(clipped, golden["decoded"].reshape(-1, 3, 4), rtol=1e-6, atol=2e-5)
    unclipped = GOLDEN[f"coder{stage}/decoded_unclipped"]
    np.testing.assert_allclose(decode(proposals, deltas[:, 0]), unclipped, rtol=1e-6, atol=2e-5)
    back = decode(proposals, encoded)
    np.testing.assert_allclose(back, golden["gt"], rtol=1e-5, atol=1e-4)


def test_every_image_has_limits_of_its_own():
    given = np.array([[-3, 5, 60, 70], [10, 20, 30, 40]], np.float32)
    sizes = np.array([[50, 40], [35, 90]], np.float32)
    want = [[[0, 5, 40, 50], [10, 20, 30, 40]], [[0, 5, 60, 35], [10, 20, 30, 35]]]
    np.testing.assert_array_equal(boxes.clip(np.stack([given, given]), sizes[:, None]), want)
    np.testing.assert_array_equal(jax.vmap(boxes.clip)(np.stack([given, given]), sizes), want)


def test_overlaps_are_mmdetections_bit_for_bit():
    a, b = GOLDEN["overlaps/a"], GOLDEN["overlaps/b"]
    np.testing.assert_array_equal(jax.jit(boxes.iou)(a, b), GOLDEN["overlaps/iou"])
    np.testing.assert_array_equal(jax.jit(boxes.giou)(a[:, None], b[None]), GOLDEN["overlaps/giou"])


def test_overlaps_round_alike_in_every_program():
    """A compiler that fuses products with sums makes some differ from NumPy's, and from its own in another program."""
    rng = np.random.default_rng(0)
    centre, side = rng.uniform(0, 500, (2, 500, 2)), rng.uniform(1, 200, (2, 500, 2))
    a, b = np.concatenate([centre - side / 2, centre + side / 2], axis=-1).astype(np.float32)
    want = iou_of_numpy(a, b)
    np.testing.assert_array_equal(boxes.iou(a, b), want)
    np.testing.assert_array_equal(jax.jit(lambda a, b: jnp.max(boxes.iou(a, b), axis=0))(a, b), want.max(axis=0))
    count = jax.jit(lambda a, b: jnp.sum(boxes.iou(a, b) == want.max(axis=1)[:, None], axis=1))(a, b)
    np.testing.assert_array_equal(count, (want == want.max(axis=1)[:, None]).sum(axis=1))


def test_boxes_without_an_area():
    given = np.array([[3, 3, 3, 9], [3, 3, 3, 9], [5, 5, 4, 6], [0, 0, 10, 10]], np.float32)
    np.testing.assert_array_equal(boxes.area(given), [0, 0, 0, 100])
    overlaps = np.asarray(boxes.iou(given, given))
    np.testing.assert_array_equal(overlaps, np.diag([0.0, 0, 0, 1]))
    assert np.isfinite(boxes.giou(given[:, None], given[None])).all()


def iou_of_numpy(a, b):
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]), 0, None)
    intersection = sides[..., 0] * sides[..., 1]
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return intersection / (areas[0][:, None] + areas[1][None] - intersection)
