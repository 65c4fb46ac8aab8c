"""Class maps from logits: windows, sizes, scales and mirror images, against the same steps done one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.nn.resizing import resize_bilinear
from natjax.segmentation import inference, segment
from natjax.segmentation.axes import taps_of_windows, window_starts

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 7)).astype(np.float32)
IMAGES = RNG.normal(size=(2, 75, 101, 3)).astype(np.float32)


def segmenter(pixels):
    """Maps patches of 4 x 4 pixels to 7 logits that depend on the place in the window as well."""
    batch, height, width, _ = pixels.shape
    h, w = -(-height // 4), -(-width // 4)
    pixels = jnp.pad(pixels, ((0, 0), (0, 4 * h - height), (0, 4 * w - width), (0, 0)))
    sums = pixels.reshape(batch, h, 4, w, 4, 3).sum((2, 4))
    return sums @ WEIGHT + 0.1 * jnp.arange(w, dtype=np.float32)[:, None] * jnp.arange(7, dtype=np.float32)


def expected(views, size, flip=False, crop=None, stride=None):
    """Returns the classes as mmseg's test makes them, and by how much the largest exceeds the second."""
    total = np.zeros((len(views[0]), *size, 7), np.float32)
    for pixels in views:
        for flipped in (False, True)[: 1 + flip]:
            logits = mean_logits(pixels[:, :, ::-1] if flipped else pixels, crop, stride)
            scores = np.asarray(jax.nn.softmax(resize_bilinear(logits, size)))
            total += scores[:, :, ::-1] if flipped else scores
    best = np.sort(total, -1)
    return total.argmax(-1), best[..., -1] - best[..., -2]


def mean_logits(pixels, crop, stride):
    """Returns logits at the size of the prepared image, averaged over windows."""
    height, width = pixels.shape[1:3]
    if crop is None:
        return np.asarray(resize_bilinear(segmenter(pixels), (height, width)))
    total, count = np.zeros((len(pixels), height, width, 7), np.float32), np.zeros((height, width, 1), np.float32)
    for i in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(i * stride[0] + crop[0], height), min(j * stride[1] + crop[1], width)
            rows, columns = slice(max(bottom - crop[0], 0), bottom), slice(max(right - crop[1], 0), right)
            window = pixels[:, rows, columns]
            total[:, rows, columns] += resize_bilinear(segmenter(window), window.shape[1:3])
            count[rows, columns] += 1
    return total / count


CASES = {
    "whole": ((83, 111), {}),
    "whole, smaller": ((20, 33), {}),
    "flip": ((75, 101), {"flip": True}),
    "windows": ((83, 111), {"crop": (64, 64), "stride": (43, 43)}),
    "windows of another shape, flip": ((75, 101), {"crop": (32, 40), "stride": (20, 13), "flip": True}),
    "windows larger than the image": ((90, 60), {"crop": (320, 40), "stride": (213, 26)}),
    "windows that overlap much": ((40, 50), {"crop": (32, 101), "stride": (5, 101)}),
}


@pytest.mark.parametrize("chunk", [2**23, 5000], ids=["one chunk", "chunks of a few rows"])
@pytest.mark.parametrize("case", CASES)
def test_classes_are_those_of_the_steps_one_by_one(case, chunk, monkeypatch):
    size, options = CASES[case]
    monkeypatch.setattr(inference, "_CHUNK", chunk)
    wanted, margin = expected([IMAGES], size, **options)
    names = {"crop": "crop_size"}
    found = segment(
        segmenter, IMAGES, size, batch_size=3, **{names.get(name, name): value for name, value in options.items()}
    )
    assert found.dtype == np.uint8
    assert found.shape == (2, *size)
    assert margin[np.asarray(found) != wanted].max(initial=0) < 1e-5


def test_scales_are_averaged_after_the_softmax():
    views = [IMAGES, RNG.normal(size=(2, 40, 52, 3)).astype(np.float32)]
    wanted, margin = expected(views, (83, 111), flip=True)
    found = np.asarray(segment(segmenter, views, (83, 111), flip=True))
    assert margin[found != wanted].max(initial=0) < 1e-5
    single, _ = expected(views[:1], (83, 111))
    assert (single != wanted).any()  # or the other scale has no say


def test_windows_have_one_shape_whatever_the_image():
    shapes = set()

    def seen(pixels):
        shapes.add(pixels.shape)
        return segmenter(pixels)

    for pixels in (IMAGES, IMAGES[:1, :70, :90]):
        segment(seen, pixels, (20, 20), crop_size=(32, 40), batch_size=4)
    assert shapes == {(4, 32, 40, 3)}


def test_no_more_rows_of_windows_are_kept_than_overlap(monkeypatch):
    """Logits of a tall image of 29 rows of windows: at most three rows are joined, and none is computed twice."""
    tall = RNG.normal(size=(1, 300, 16, 3)).astype(np.float32)
    joined, calls = [], []
    original = inference._classes
    monkeypatch.setattr(
        inference, "_classes", lambda logits, *rest: joined.append(logits[0].shape) or original(logits, *rest)
    )

    def counted(pixels):
        calls.append(len(pixels))
        return segmenter(pixels)

    found = segment(counted, tall, (300, 16), crop_size=(20, 16), stride=(10, 16))
    assert sum(calls) == len(window_starts(300, 20, 10)) == 29
    assert len(joined) > 20
    assert max(shape[1] for shape in joined) <= 3 * 5  # a window has five rows of logits
    assert len(set(joined)) == 1  # one compilation
    wanted, margin = expected([tall], (300, 16), crop=(20, 16), stride=(10, 16))
    assert margin[np.asarray(found) != wanted].max(initial=0) < 1e-5


def test_nothing_of_full_size_and_all_classes_is_ever_made():
    """The compiled program of 1024 x 256 pixels and 150 classes: all logits would be 157 MB."""
    logits, size = np.zeros((1, 64, 256, 150), np.float32), (256, 1024)
    view = inference._View(lambda _: logits, np.zeros((1, *size, 3)), size, None, None, 1, flipped=False)
    rows = inference._CHUNK // (1024 * 150)
    view.plan(-(-256 // rows) * rows, rows)
    _, chunks = view.band(0)
    compiled = inference._classes.lower((logits,), (chunks,), (view.columns,), np.uint8).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 80e6


def test_devices_settle_equally_many_rows(monkeypatch):
    """128 rows on each of 8 devices, where memory is for 54 at a time, are 3 chunks of 43."""
    seen = []
    monkeypatch.setattr(inference, "_CHUNK", 54 * 64 * 7)
    monkeypatch.setattr(inference, "shards", lambda *_: 8)
    monkeypatch.setattr(
        inference, "classes_by_part", lambda _, logits, chunks, *__: seen.extend(chunks) or np.zeros((1, 1032, 64))
    )
    segment(segmenter, np.zeros((1, 1024, 64, 3), np.float32), (1024, 64))
    assert [chunks.matrix.shape[:2] for chunks in seen] == [(8 * 3, 43)]


def test_logits_of_any_float_dtype_are_computed_in_float32():
    def rounded(pixels):
        return segmenter(pixels).astype(jnp.bfloat16)

    found = segment(rounded, IMAGES, (83, 111))
    again = segment(lambda pixels: rounded(pixels).astype(np.float32), IMAGES, (83, 111))
    np.testing.assert_array_equal(found, again)


def test_it_can_be_compiled_as_a_whole():
    found = jax.jit(lambda pixels: segment(segmenter, pixels, (30, 41)))(IMAGES)
    np.testing.assert_array_equal(found, segment(segmenter, IMAGES, (30, 41)))


def test_many_classes_take_two_bytes():
    found = segment(lambda _: jnp.zeros((1, 2, 2, 300)).at[..., 299].set(1.0), IMAGES[:1], (3, 3))
    assert found.dtype == np.uint16
    assert (found == 299).all()


@pytest.mark.parametrize(
    ("length", "crop", "stride", "starts"),
    [(101, 64, 43, [0, 37]), (64, 64, 43, [0]), (150, 64, 43, [0, 43, 86]), (151, 64, 43, [0, 43, 86, 87])],
)
def test_window_starts(length, crop, stride, starts):
    assert window_starts(length, crop, stride) == starts


@pytest.mark.parametrize("target", [75, 100, 9])
def test_taps_sum_to_one_and_name_no_value_twice(target):
    starts = window_starts(75, 32, 20)
    taps = taps_of_windows(8, 32, starts, 75, target)
    np.testing.assert_allclose(taps.weight.sum(1), 1, rtol=1e-6)
    for index, weight in zip(*taps, strict=True):
        used = index[weight != 0]
        assert len(used) == len(set(used))
    assert taps.index.max() < 8 * len(starts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size must be a positive integer, or a pair"),
        ({"crop_size": (32, 32, 32)}, "crop_size must be a positive integer, or a pair"),
        (
            {"crop_size": 32, "stride": 33},
            "stride must be at most crop_size, or pixels would be left out; got 33 and 32",
        ),
        ({"stride": 3}, "stride is of sliding windows, which need a crop_size"),
    ],
)
def test_impossible_windows_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        segment(segmenter, IMAGES, (75, 101), **options)
