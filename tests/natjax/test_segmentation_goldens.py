"""Class maps of genuine checkpoints, against mmsegmentation's test and Hugging Face's post-processing; see tests/goldens.

Classes are compared wherever the largest logit exceeds the second by more than float32's noise.
"""

import pathlib

import jax
import numpy as np
import pytest

import natjax
from natjax.segmentation import segment
from natjax.segmentation.axes import taps_of_windows, window_starts

pytestmark = pytest.mark.once
GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NOISE = 1e-3  # of a logit; margins are recorded in float16


def load(name, checkpoint=""):
    arrays = np.load(GOLDENS / name / "expected.npz")
    model = natjax.UperNetForSemanticSegmentation.from_pretrained(GOLDENS / name / checkpoint)
    return {key: arrays[key] for key in arrays.files}, jax.jit(lambda pixels: model.decode(pixels)[0])


@pytest.fixture(scope="module")
def mmseg():
    return load("mmseg_upernet_nat", "checkpoint.pth")


@pytest.fixture(scope="module")
def hugging_face():
    return load("hf_upernet_nat")


def channels_last(array):
    return array.transpose(0, 2, 3, 1)


def check(found, wanted, margin=None):
    found = np.asarray(found)
    assert found.shape == wanted.shape
    wrong = found != wanted
    if margin is None:
        assert not wrong.any()
    else:
        assert margin[wrong].max(initial=0) <= NOISE
        assert wrong.mean() < 1e-3


def test_whole_images_are_mmsegmentations(mmseg):
    """Logits are resized to the input's size, and from there to the original's."""
    golden, segmenter = mmseg
    check(segment(segmenter, channels_last(golden["b/input"]), (75, 101)), golden["b/seg"], golden["b/margin"])
    check(segment(segmenter, channels_last(golden["b/input"]), (83, 111)), golden["b/seg_ori"], golden["b/margin_ori"])


def test_sliding_windows_are_mmsegmentations(mmseg):
    golden, segmenter = mmseg
    pixels = channels_last(golden["b/input"])
    found = segment(segmenter, pixels, (75, 101), crop_size=64, stride=43, batch_size=4)
    check(found, golden["b/seg_slide"])


def test_logits_of_sliding_windows_are_mmsegmentations(mmseg):
    """The tables of the two axes, applied to the logits of all windows, are mmsegmentation's sums divided by counts."""
    golden, segmenter = mmseg
    pixels = channels_last(golden["b/input"])
    starts = [window_starts(length, 64, 43) for length in (75, 101)]
    windows = np.concatenate([pixels[:, y : y + 64, x : x + 64] for y in starts[0] for x in starts[1]])
    logits = np.asarray(segmenter(windows)).reshape(len(starts[0]), len(starts[1]), 16, 16, 7)
    logits = logits.transpose(0, 2, 1, 3, 4).reshape(len(starts[0]) * 16, len(starts[1]) * 16, 7)
    for axis, length in ((0, 75), (1, 101)):
        index, weight = taps_of_windows(16, 64, starts[axis], length, length)
        weight = np.expand_dims(weight, (2, 3) if axis == 0 else (0, 3))
        logits = (np.take(logits, index, axis=axis) * weight).sum(axis + 1)
    wanted = channels_last(golden["b/slide_logits"])[0]
    np.testing.assert_allclose(logits[::3, ::3], wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_scales_and_mirror_images_are_mmsegmentations(mmseg):
    golden, segmenter = mmseg
    views = [channels_last(golden[f"b/{name}"]) for name in ("input", "aug_input_small")]
    check(segment(segmenter, views, (83, 111), flip=True), golden["b/seg_aug"])


def test_post_processing_is_hugging_faces(hugging_face):
    """`post_process_semantic_segmentation` resizes what the model has resized to its input already."""
    golden, segmenter = hugging_face
    pixels = channels_last(golden["b/input"])
    check(segment(segmenter, pixels, (75, 101)), golden["b/seg"], golden["b/margin"])
    check(segment(segmenter, pixels, (97, 132)), golden["b/seg_target"])
