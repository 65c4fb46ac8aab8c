"""Pipelines: results as Hugging Face's, batches of one shape, images that cannot be read."""

import io

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax.image_processing import NatImageProcessor

pytestmark = pytest.mark.once

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
    assert said[1].startswith("skipped image 2: An image array needs 3 channels")


def test_features(folder):
    pooled = natjax.pipeline("image-feature-extraction", folder / "model")([folder / "0.png"] * 2)
    assert [features.shape for features in pooled] == [(8,), (8,)]
    model = natjax.NatModel.from_pretrained(folder / "model")
    pixels = NatImageProcessor(size=16)(folder / "0.png")
    np.testing.assert_allclose(pooled[0], model(pixels).pooler_output[0], rtol=0, atol=1e-6)
    extract = natjax.pipeline("image-feature-extraction", folder / "model", stages="all")  # no word about missing norms
    maps = extract(folder / "0.png")
    assert {name: features.shape for name, features in maps.items()} == {"stem": (4, 4, 8), "stage1": (4, 4, 8)}
    turned = natjax.pipeline("image-feature-extraction", folder / "model", stages=["stage1", "stem"])(folder / "0.png")
    for name, features in turned.items():
        np.testing.assert_array_equal(features, maps[name])


def test_norms_that_only_some_stages_have_are_said(tmp_path):
    NatImageProcessor(size=16).save_pretrained(tmp_path)
    natjax.NatBackbone(CONFIG, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)  # of stage1
    with pytest.warns(UserWarning, match="no norms for the stages stem; they start as the identity"):
        natjax.pipeline("image-feature-extraction", tmp_path, stages="all")


def test_images_that_are_not_resized_make_batches_of_one_shape(folder):
    processor = NatImageProcessor(do_resize=False)
    extract = natjax.pipeline("image-feature-extraction", folder / "model", processor=processor, batch_size=3)
    shapes = []
    apply = extract._apply
    extract._apply = lambda pixels: (shapes.append(pixels.shape), apply(pixels))[1]
    paths = [folder / f"{i}.png" for i in (0, 2, 1)]
    together = extract(paths)
    assert shapes == [(3, 18, 20, 3), (3, 19, 20, 3)]  # padded to the size of a batch
    for path, features in zip(paths, together, strict=True):
        np.testing.assert_allclose(extract(path), features, rtol=0, atol=1e-6)


def test_calls_with_few_images_share_what_is_compiled(folder):
    extract = natjax.pipeline("image-feature-extraction", folder / "model", batch_size=6)
    sizes = []
    apply = extract._apply
    extract._apply = lambda pixels: (sizes.append(len(pixels)), apply(pixels))[1]
    for count in (1, 2, 3, 4, 5, 7):
        assert len(extract([folder / "0.png"] * count)) == count
    assert sizes == [1, 2, 4, 4, 6, 6, 6]
    assert extract([]) == []


def test_a_model_must_be_named():
    for task in ("image-classification", "image-feature-extraction"):
        with pytest.raises(
            natjax.CheckpointError, match=r"no model given\. Name one with --model .*`digits` is a small classifier"
        ):
            natjax.pipeline(task)
    classify = natjax.pipeline("image-classification", "digits", top_k=1)
    assert [entry["label"] for entry in classify(natjax.hub.DIGITS / "digit_3.png")] == ["3"]


def test_how_many_classes(folder, classify):
    path = folder / "0.png"
    assert [len(classify(path, top_k=k)) for k in (1, 3, 4, None, np.int64(2))] == [1, 3, 3, 3, 2]
    assert [len(one) for one in classify([path] * 2, top_k=1)] == [1, 1]
    assert len(natjax.pipeline("image-classification", folder / "model", top_k=None)(path)) == 3
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"top_k must be at least 1 or None; got {bad}"):
            classify(path, top_k=bad)


def test_kinds_of_images(folder, classify):
    path = folder / "0.png"
    expected, data = classify(path), path.read_bytes()
    pixels = np.asarray(PIL.Image.open(path))
    for same in (
        str(path),
        data,
        bytearray(data),
        io.BytesIO(data),
        pixels,
        pixels.transpose(2, 0, 1),
        pixels.tolist(),
    ):
        assert classify(same) == expected
    two = classify([path] * 2)  # in a batch of two, whose numbers may differ in the last digits
    stacked = np.stack([pixels] * 2)
    for same in ((data, pixels), stacked, jnp.asarray(stacked), stacked.tolist(), np.array([str(path)] * 2)):
        assert classify(same) == two
    for bad, message in (
        (3, "got int"),
        ({"image": path}, "got dict"),
        ("http://example.org/cat.png", "natjax downloads no images"),
        (pixels[:3, :5], "channels first or last"),
    ):
        with pytest.raises(natjax.ImageError, match=message):
            classify(bad)


def test_iterators_are_read_batch_by_batch(folder, classify):
    taken = []

    def images():
        for name in ("0", "1", "broken", "2", "0", "broken"):
            taken.append(name)
            yield folder / f"{name}.png"

    said = []
    classify = natjax.pipeline("image-classification", folder / "model", batch_size=2, report=said.append)
    results = classify(images(), skip_unreadable=True, top_k=1)
    assert not taken
    first = next(results)
    assert taken == ["0", "1", "broken", "2"]
    rest = list(results)
    assert [result is None for result in rest] == [False, True, False, False, True]
    assert first == rest[3] == classify([folder / "0.png"] * 2, top_k=1)[0]
    assert [text[:15] for text in said] == ["skipped image 2", "skipped image 5"]
    with pytest.raises(natjax.ImageError, match="broken"):
        list(classify(images()))
    with pytest.raises(natjax.ImageError, match="One image was expected here; got 2"):
        list(classify(iter([np.zeros((2, 8, 8, 3), np.uint8)])))


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
        ValueError,
        match="task must be 'image-classification', 'image-feature-extraction', 'image-segmentation' or "
        "'object-detection'; got 'ocr'",
    ):
        natjax.pipeline("ocr", folder / "nothing")  # refused before anything is opened
    with pytest.raises(ValueError, match="stages is for 'image-feature-extraction'"):
        natjax.pipeline("image-classification", folder / "model", stages="all")
    for top_k in (3, None):
        with pytest.raises(
            ValueError, match=f"top_k is for 'image-classification' or 'object-detection'; got {top_k} with"
        ):
            natjax.pipeline("image-feature-extraction", folder / "model", top_k=top_k)
    for argument, message in (
        ({"top_k": 0}, "top_k must be at least 1 or None; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"dtype": "int8"}, "dtype must be floating point, such as 'bfloat16', or None; got 'int8'"),
        ({"dtype": "half-baked"}, "dtype must be floating point"),
        ({"implementation": "cuda"}, "implementation must be .*got 'cuda'"),
        ({"config": "nat_mini"}, "config must be a NatConfig, a UperNetConfig or a MaskRcnnConfig; got 'nat_mini'"),
        ({"processor": "model"}, "processor must be a NatImageProcessor; got 'model'"),
    ):
        with pytest.raises(ValueError, match=message):  # before the missing checkpoint is looked for
            natjax.pipeline("image-classification", folder / "nothing", **argument)
    with pytest.raises(ValueError, match="model must be a checkpoint; got NatModel"):
        natjax.pipeline("image-feature-extraction", natjax.NatModel(CONFIG, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"stages must be 'all' or of stem, stage1; got \['stage9'\]"):
        natjax.pipeline("image-feature-extraction", folder / "model", stages=["stage9"])
    with pytest.raises(ValueError, match=r"takes 3 channels, the image processor makes 1"):
        natjax.pipeline(
            "image-classification", folder / "model", processor=NatImageProcessor(image_mean=[0.5], image_std=[0.5])
        )
    natjax.NatForImageClassification(CONFIG.replace(num_labels=0), rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    with pytest.raises(natjax.CheckpointError, match="no classes to tell apart"):
        natjax.pipeline("image-classification", tmp_path)
    with pytest.warns(UserWarning, match="as for ImageNet"):
        assert natjax.pipeline("image-feature-extraction", tmp_path).processor.do_center_crop


def test_pillow_images_are_turned_upright_as_files_are(folder, classify):
    image = PIL.Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    image.getexif()[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif())
    upright = classify(np.asarray(image.transpose(PIL.Image.Transpose.ROTATE_270)))
    assert classify(file.getvalue()) == classify(PIL.Image.open(file)) == upright


def test_colours_become_grey_for_a_grey_model():
    pipe, colours = natjax.pipeline("image-classification", "digits"), np.zeros((8, 8, 3), np.uint8)
    colours[2:6, 3:5] = 200, 180, 90
    assert pipe(colours) == pipe(PIL.Image.fromarray(colours))
