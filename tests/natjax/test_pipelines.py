"""Pipelines: results as Hugging Face's, batches of one shape, images that cannot be read."""

import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax.image_processing import NatImageProcessor

LABELS = {0: "dark", 1: "bright", 2: "odd"}
CONFIG = natjax.NatConfig(embed_dim=8, depths=(1,), num_heads=(1,), kernel_size=3, id2label=LABELS, mlp_ratio=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint `model` and images of two sizes."""
    folder = tmp_path_factory.mktemp("pipelines")
    model = natjax.NatForImageClassification(CONFIG.replace(initializer_range=0.5), rngs=nnx.Rngs(0))
    model.save_pretrained(folder / "model", processor=NatImageProcessor(size=16))
    for i in range(3):
        PIL.Image.new("RGB", (20, 18 + i % 2), (80 * i, 100, 50)).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def classify(folder):
    return natjax.pipeline("image-classification", folder / "model", batch_size=2, top_k=2)


def test_one_image_and_several(folder, classify):
    path = folder / "0.png"
    one = classify(path)
    assert [list(entry) for entry in one] == [["label", "score"]] * 2
    logits = classify.model(classify.processor(path)).logits[0]
    desired = np.sort(np.asarray(nnx.softmax(logits)))[::-1][:2]
    np.testing.assert_allclose([entry["score"] for entry in one], desired, rtol=1e-5)
    assert one[0]["label"] == LABELS[int(np.argmax(logits))]

    image = PIL.Image.open(path)
    paths = [folder / f"{i}.png" for i in range(3)]  # the third makes a batch that is not full
    for several in (classify([str(path), image, np.asarray(image)]), classify(np.stack([image] * 2)), classify(paths)):
        assert [entry["label"] for entry in several[0]] == [entry["label"] for entry in one]
        np.testing.assert_allclose([e["score"] for e in several[0]], [e["score"] for e in one], rtol=1e-5)
    assert len(classify(paths)) == 3
    assert classify([]) == []


def test_unreadable_images_end_the_call_or_are_named(folder, classify):
    images = [str(folder / "0.png"), str(folder / "broken.png"), np.zeros((4, 4, 5), np.uint8)]
    with pytest.raises(natjax.ImageError, match=r"broken\.png: not an image"):
        classify(images)
    said = []
    classify = natjax.pipeline("image-classification", folder / "model", report=said.append)
    results = classify(images, skip_unreadable=True)
    assert [result is None for result in results] == [False, True, True]
    assert said[0].startswith(f"skipped {images[1]}: not an image")
    assert said[1].startswith("skipped image 2: An image array needs 3 channel(s)")


def test_features(folder):
    pooled = natjax.pipeline("image-feature-extraction", folder / "model")([folder / "0.png"] * 2)
    assert [features.shape for features in pooled] == [(8,), (8,)]
    model = natjax.NatModel.from_pretrained(folder / "model")
    pixels = NatImageProcessor(size=16)(folder / "0.png")
    np.testing.assert_allclose(pooled[0], model(pixels).pooler_output[0], rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="start as the identity"):
        extract = natjax.pipeline("image-feature-extraction", folder / "model", stages="all")
    maps = extract(folder / "0.png")
    assert {name: features.shape for name, features in maps.items()} == {"stem": (4, 4, 8), "stage1": (4, 4, 8)}


def test_images_that_are_not_resized_make_batches_of_one_shape(folder):
    processor = NatImageProcessor(do_resize=False)
    extract = natjax.pipeline("image-feature-extraction", folder / "model", processor=processor, batch_size=3)
    shapes = []
    forward = extract._forward
    extract._forward = lambda state, pixels: (shapes.append(pixels.shape), forward(state, pixels))[1]
    paths = [folder / f"{i}.png" for i in (0, 2, 1)]
    together = extract(paths)
    assert shapes == [(3, 18, 20, 3), (3, 19, 20, 3)]  # padded to the size of a batch
    for path, features in zip(paths, together, strict=True):
        np.testing.assert_allclose(extract(path), features, rtol=0, atol=1e-6)


def test_the_default_is_the_classifier_of_digits():
    with pytest.warns(UserWarning, match="no model given: using the built-in classifier of handwritten digits"):
        classify = natjax.pipeline("image-classification", top_k=1)
    image = next(natjax.hub.DIGITS.glob("*.png"))
    assert [entry["label"] for entry in classify(image)]


def test_open_checkpoints_keep_their_configuration(folder, tmp_path):
    natjax_convert.convert(folder / "model", tmp_path / "nat.pth", to="shilabs")
    checkpoint = natjax_convert.Checkpoint.open(tmp_path / "nat.pth", config=CONFIG)
    processor = NatImageProcessor.from_pretrained(folder / "model")
    extract = natjax.pipeline("image-feature-extraction", checkpoint, processor=processor)
    assert extract.model.config.depths == CONFIG.depths
    with pytest.raises(ValueError, match="An open checkpoint has its configuration"):
        natjax.pipeline("image-feature-extraction", checkpoint, config=CONFIG)
    plain = natjax.pipeline("image-feature-extraction", folder / "model")
    np.testing.assert_array_equal(extract(folder / "0.png"), plain(folder / "0.png"))


def test_what_does_not_fit(folder, tmp_path):
    with pytest.raises(
        ValueError, match="task must be 'image-classification' or 'image-feature-extraction'; got 'ocr'"
    ):
        natjax.pipeline("ocr", folder / "nothing")  # refused before anything is opened
    with pytest.raises(ValueError, match="stages is for 'image-feature-extraction'"):
        natjax.pipeline("image-classification", folder / "model", stages="all")
    for name in ("top_k", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            natjax.pipeline("image-classification", folder / "model", **{name: 0})
    natjax.NatForImageClassification(CONFIG.replace(num_labels=0), rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    with pytest.raises(natjax.CheckpointError, match="no classes to tell apart"):
        natjax.pipeline("image-classification", tmp_path)
    with pytest.warns(UserWarning, match="as for ImageNet"):
        assert natjax.pipeline("image-feature-extraction", tmp_path).processor.do_center_crop
