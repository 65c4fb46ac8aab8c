"""RoIAlign against mmcv's (tests/goldens/mm_ops), and against the definition in NumPy: values, gradients, and hard RoIs."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.detection.roi_align import levels, roi_align

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz")
IMAGES, BOXES = GOLDEN["roi/rois"][:, 0].astype(int), GOLDEN["roi/rois"][:, 1:]
STRIDES = (4, 8, 16, 32)
FEATURES = [GOLDEN[f"roi/feature_{level}"].transpose(0, 2, 3, 1) for level in range(4)]

# Of maps of one cell, of fewer cells than a tile, and of several tiles, as are these sizes at strides 4, 8, 16.
SIZES = [(40, 23), (20, 50), (1, 1)]
HARD = np.float32(
    [
        [0, 0, 0, 0],
        [30, 20, 30, 60],  # no width
        [50, 50, 20, 70],  # a negative width
        [-300, -200, -250, -120],  # outside
        [200, 300, 280, 420],
        [-20.3, -9.1, 40.2, 33.3],  # partly outside
        [60, 100, 130, 230],
        [-5000, -5000, 5000, 5000],
        [3, 7, 5, 160],  # elongated
        [-50, 40, 400, 43.5],
        [-100, 60, 500, 85],
        [10.3, 10.7, 11.1, 12.2],  # smaller than a cell
        [1, 2, 141, 121],
        [0, 0, 92, 160],
    ]
)


def taps(start, end, cells, bins, sampling_ratio):
    """Returns the [bins, cells] weights of one axis, from one sample after another, in the dtype of the ends."""
    number = type(start)
    size = (end - start) / number(bins)
    samples = sampling_ratio or int(np.ceil(size))
    weights = np.zeros((bins, cells), number)
    for each in range(bins * max(samples, 0)):
        i, j = divmod(each, samples)
        at = start + number(i) * size + (number(j) + number(0.5)) * size / number(samples)
        if -1 <= at <= cells:
            at = np.clip(at, 0, cells - 1)
            before = int(at)
            weights[i, before] += 1 - (at - before)
            weights[i, min(before + 1, cells - 1)] += at - before
    return weights / number(max(samples, 1))


def definition(features, boxes, strides, size, sampling_ratio, cotangent):
    """Returns RoIs' features and the maps' gradients in the dtype of the first map."""
    number = features[0].dtype.type
    out, gradients = (
        np.zeros((*boxes.shape[:2], *size, features[0].shape[-1]), number),
        [np.zeros_like(x) for x in features],
    )
    for b, n in np.ndindex(boxes.shape[:2]):
        level = int(levels(boxes[b, n], len(features)))
        x1, y1, x2, y2 = boxes[b, n].astype(number) * number(1 / strides[level]) - number(0.5)
        x = features[level][b]
        if sampling_ratio == 0 and not (x2 > x1 and y2 > y1):
            continue
        rows, columns = (
            taps(*ends, cells, bins, sampling_ratio)
            for ends, cells, bins in zip(((y1, y2), (x1, x2)), x.shape, size, strict=False)
        )
        out[b, n] = np.einsum("ph,hwc,qw->pqc", rows, x, columns)
        gradients[level][b] += np.einsum("ph,pqc,qw->hwc", rows, cotangent[b, n], columns)
    return out, gradients


@functools.cache
def pooled(size):
    """Returns mmcv's RoIs out of those of both images, as it orders axes, and what pulls gradients back."""

    def both(features):
        return roi_align(features, np.stack([BOXES, BOXES]), strides=STRIDES, output_size=size)

    out, pull = jax.vjp(jax.jit(both), [jnp.asarray(x) for x in FEATURES])
    return out[IMAGES, np.arange(len(BOXES))].transpose(0, 3, 1, 2), pull


def assert_close(actual, desired, atol=1e-6):
    np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=atol)


def test_levels_are_mmdetections():
    np.testing.assert_array_equal(levels(BOXES, 4), GOLDEN["roi/levels"])


@pytest.mark.parametrize("size", [7, 14])
def test_features_are_mmcvs(size):
    assert_close(pooled(size)[0], GOLDEN[f"roi/out_{size}"])


def test_gradients_are_mmcvs():
    cotangent = np.zeros((2, len(BOXES), 7, 7, 2), np.float32)
    cotangent[IMAGES, np.arange(len(BOXES))] = GOLDEN["roi/cotangent_7"].transpose(0, 2, 3, 1)
    finest, *others = (x.transpose(0, 3, 1, 2) for x in pooled(7)[1](cotangent)[0])
    assert_close(finest.sum(-1), GOLDEN["roi/grad_7_0_rowsum"], atol=5e-6)  # sums of 128 values
    for level, gradient in enumerate(others, 1):
        assert_close(gradient, GOLDEN[f"roi/grad_7_{level}"])


def test_other_numbers_of_bins_and_samples_are_mmcvs():
    out = roi_align(FEATURES[1:2], np.stack([BOXES, BOXES]), strides=[8], output_size=(7, 5), sampling_ratio=2)
    assert_close(out[IMAGES, np.arange(len(BOXES))].transpose(0, 3, 1, 2), GOLDEN["roi/single_ratio2"])


@pytest.mark.parametrize("sampling_ratio", [0, 3])
def test_hard_rois_and_their_gradients(sampling_ratio):
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((2, *size, 3)) for size in SIZES]
    boxes = np.stack([HARD, HARD[::-1]])
    size = (5, 4)
    cotangent = rng.standard_normal((*boxes.shape[:2], *size, 3))
    want, gradients = definition(features, boxes, STRIDES[:3], size, sampling_ratio, cotangent)
    options = {"strides": STRIDES[:3], "output_size": size, "sampling_ratio": sampling_ratio}
    with jax.enable_x64(True):
        align = jax.jit(lambda features: roi_align(features, boxes.astype(np.float64), **options))
        out, pull = jax.vjp(align, features)
        assert_close(out, want, atol=1e-12)
        for actual, desired in zip(pull(cotangent)[0], gradients, strict=True):
            assert_close(actual, desired, atol=1e-12)


def test_boxes_of_no_size_that_a_detector_means_give_numbers():
    boxes = np.float32([[[-1e9, 0, 1e9, 1e9], [np.nan, 0, 10, 10], [0, 0, np.inf, 10], [-np.inf, 0, np.inf, 10]]])
    assert np.isfinite(roi_align(FEATURES[3:], np.concatenate([boxes] * 2), strides=[32], output_size=7)).all()


def test_a_bin_of_whole_cells_has_as_many_samples():
    """In float32, where 49 times 1 / 7 is more than 7, for one."""
    x = np.random.default_rng(0).standard_normal((1, 1, 500, 1), np.float32)
    cells = 7 * np.arange(1, 70, dtype=np.float32)
    ones = np.ones_like(cells)
    boxes = np.stack([0.5 * ones, 0.5 * ones, 0.5 + cells, 1.5 * ones], axis=1)[None]
    want, _ = definition([x], boxes, [1], (1, 7), 0, np.zeros((1, len(cells), 1, 7, 1), np.float32))
    assert_close(roi_align([x], boxes, strides=[1], output_size=(1, 7)), want)


def test_bfloat16_is_computed_in_float32():
    features = [jnp.asarray(x[:1], jnp.bfloat16) for x in FEATURES[2:]]
    out = roi_align(features, BOXES[None], strides=STRIDES[2:], output_size=7)
    assert out.dtype == jnp.bfloat16
    exact = roi_align([x.astype(jnp.float32) for x in features], BOXES[None], strides=STRIDES[2:], output_size=7)
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_what_is_not_finite_reaches_only_rois_over_it():
    x = np.ones((1, 40, 40, 1), np.float32)
    x[:, 20:, 20:] = np.nan
    boxes = np.float32([[[1, 1, 18, 18], [2, 15, 18, 35], [15, 15, 30, 30]]])
    out = roi_align([x], boxes, strides=[1], output_size=2)
    assert_close(out[:, :2], 1)
    assert np.isnan(out[:, 2]).any()


def test_one_stride_per_map():
    with pytest.raises(ValueError, match="got 4 strides, 3 maps"):
        roi_align(FEATURES[:3], np.stack([BOXES, BOXES]), strides=STRIDES, output_size=7)
