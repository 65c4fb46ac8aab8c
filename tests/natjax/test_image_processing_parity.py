"""Equality, bit for bit, with transformers 4.40.2's image processors, on real photos of many sizes and modes."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from natjax.image_processing import NatImageProcessor
from natjax.images import load_image
from natjax.presets import IMAGENET_MEAN, IMAGENET_STD

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("sklearn.datasets")
from transformers.image_utils import load_image as hf_load_image  # noqa: E402

IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
FORMATS = [
    "RGB",
    "RGBA",
    "P",
    "P-transparent",
    "P-bytes",
    "L",
    "LA",
    "1",
    "CMYK",
    "webp",
    *map(str, range(1, 9)),
]


@pytest.fixture(scope="module")
def photos():
    return [PIL.Image.fromarray(photo) for photo in datasets.load_sample_images().images]


def write(photo, kind, folder):
    """Saves a photo in a format, mode, palette or EXIF orientation (a digit), and returns the path."""
    if kind == "CMYK":
        photo.convert("CMYK").save(path := folder / "cmyk.jpg")
    elif kind == "webp":
        photo.save(path := folder / "photo.webp", lossless=True)
    elif kind.isdigit():
        exif = PIL.Image.Exif()
        exif[0x0112] = int(kind)
        photo.save(path := folder / f"orientation{kind}.jpg", exif=exif)
    elif kind == "RGBA":
        photo.putalpha(photo.convert("L"))
        photo.save(path := folder / "alpha.png")
    elif kind.startswith("P"):
        options = {"P": {}, "P-transparent": {"transparency": 3}, "P-bytes": {"transparency": bytes(range(256))}}
        photo.quantize(256).save(path := folder / f"{kind}.png", **options[kind])
    else:
        photo.convert(kind).save(path := folder / f"{kind}.png")
    return path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # Hugging Face lets it through
def test_files(kind, photos, tmp_path):
    path = write(photos[0].resize((320, 213)), kind, tmp_path)
    assert load_image(path).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(hf_load_image(str(path))))
    expected = transformers.ViTImageProcessor(**IMAGENET)(hf_load_image(str(path)), return_tensors="np")["pixel_values"]
    actual = NatImageProcessor(**IMAGENET)(path)
    np.testing.assert_array_equal(actual, expected.transpose(0, 2, 3, 1), strict=True)
    with PIL.Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(load_image(image)), np.asarray(hf_load_image(str(path))))


def test_sixteen_bits_are_prepared_as_hugging_face_prepares_the_same_picture_of_eight(photos, tmp_path):
    grey = photos[0].convert("L")  # Hugging Face makes nearly all of the deep one white
    PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    expected = transformers.ViTImageProcessor(**IMAGENET)(grey.convert("RGB"), return_tensors="np")["pixel_values"]
    actual = NatImageProcessor(**IMAGENET)(tmp_path / "deep.png")
    np.testing.assert_array_equal(actual, expected.transpose(0, 2, 3, 1), strict=True)


CONFIGS = {
    "default": {},
    "imagenet": IMAGENET,
    "bicubic": {"resample": 3, "size": {"height": 384, "width": 256}, **IMAGENET},
    "lanczos": {"resample": 1, "size": 96},
    "nearest": {"resample": 0, "size": 61},
    "box": {"resample": 4, "size": [33, 47]},
    "no resize": {"do_resize": False},
    "no rescale": {"do_rescale": False},
    "no normalize": {"do_normalize": False},
    "only resize": {"do_normalize": False, "do_rescale": False},
    "factor": {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    "whole factor": {"rescale_factor": 2},
    "unknown entries": {"do_center_crop": True, "crop_size": 64, "crop_pct": 0.9, "note": [1]},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [None, (224, 224), (97, 301), (1, 5), (37, 29)], ids=str)
def test_configs_and_sizes(config, size, photos, tmp_path):
    hf = transformers.ViTImageProcessor(**config)
    hf.save_pretrained(tmp_path)
    processor = NatImageProcessor.from_pretrained(tmp_path)
    for photo in photos:
        photo = photo if size is None else photo.resize(size)
        expected = hf(photo, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1).astype(np.float32)
        np.testing.assert_array_equal(processor(photo), expected, strict=True)
    processor.save_pretrained(tmp_path)  # and Hugging Face reads it back
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(again.transpose(0, 2, 3, 1), expected)


ARRAYS = {
    "uint8": lambda x: x,
    "channels first": lambda x: x.transpose(2, 0, 1),
    "int32": lambda x: x.astype(np.int32),
    "float32 0..255": lambda x: x.astype(np.float32),
    "float16 0..255": lambda x: x.astype(np.float16),
    "float64 0..1": lambda x: x / 255,
    "float32 0..1": lambda x: x.astype(np.float32) / 255,
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("config", [{}, {"do_rescale": False}, {"do_resize": False}, {"do_normalize": False}], ids=str)
@pytest.mark.filterwarnings("ignore:Pixels are within")
def test_arrays(make, config, photos):
    pixels = make(np.asarray(photos[1].resize((90, 60))))
    expected = transformers.ViTImageProcessor(**config)(pixels, return_tensors="np")["pixel_values"]
    actual = NatImageProcessor(**config)(pixels)
    np.testing.assert_array_equal(actual, expected.transpose(0, 2, 3, 1).astype(np.float32))


def test_grey_arrays(photos):
    config = {"size": 32, "image_mean": [0.5], "image_std": [0.25]}
    pixels = np.asarray(photos[0].convert("L"))[..., None]
    expected = transformers.ViTImageProcessor(**config)(pixels, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(NatImageProcessor(**config)(pixels), expected.transpose(0, 2, 3, 1))


CROPS = {
    "clip": {},
    "imagenet 0.875": {"size": {"shortest_edge": 256}, "crop_size": 224, **IMAGENET},
    "integers": {"size": 249, "crop_size": {"height": 224, "width": 100}},
    "padded": {"size": {"height": 30, "width": 50}, "crop_size": {"height": 40, "width": 40}},
    "crop only": {"do_resize": False, "crop_size": 301},
    "no crop": {"do_center_crop": False, "size": {"shortest_edge": 61}},
}


@pytest.mark.parametrize("config", CROPS.values(), ids=CROPS)
@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "BitImageProcessor"])
def test_crops(kind, config, photos, tmp_path):
    if kind == "BitImageProcessor" and config is CROPS["padded"]:
        pytest.skip("it resizes the shortest edge only")
    hf = getattr(transformers, kind)(**config)
    hf.save_pretrained(tmp_path)
    processor = NatImageProcessor.from_pretrained(tmp_path)
    for photo in (*photos, photos[0].transpose(PIL.Image.Transpose.ROTATE_90)):
        expected = hf(photo, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(processor(photo), expected, strict=True)
    processor.save_pretrained(tmp_path)
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(again.transpose(0, 2, 3, 1), expected)


def test_the_golden_is_what_transformers_says():
    """With `python tests/natjax/test_image_processing_parity.py` this file writes the golden anew."""
    folder = pathlib.Path(__file__).parents[1] / "goldens" / "image_processor"
    with np.load(folder / "expected.npz") as golden:
        for name, expected in golden_arrays().items():
            np.testing.assert_array_equal(golden[name], expected, strict=True, err_msg=name)


GOLDEN_CONFIGS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 28}, **IMAGENET},
    "crop": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 20, **IMAGENET},
}


def golden_arrays():
    photo = PIL.Image.fromarray(datasets.load_sample_images().images[0])
    pixels = np.asarray(photo.crop((300, 150, 348, 190)))
    arrays = {"pixels": pixels}
    for name, config in GOLDEN_CONFIGS.items():
        hf = getattr(transformers, config["image_processor_type"])(**config)
        arrays[name] = hf(pixels, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1).copy()
    return arrays


if __name__ == "__main__":
    import json

    target = pathlib.Path(__file__).parents[1] / "goldens" / "image_processor"
    target.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target / "expected.npz", **golden_arrays())
    provenance = {
        "what": "A piece of scikit-learn's sample photo china.jpg, and what image processors make of it (NHWC).",
        "made_by": "python tests/natjax/test_image_processing_parity.py",
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        "photo": "china.jpg, some rights reserved by danielbuechele (Flickr), CC BY 2.0, from scikit-learn",
        "configs": GOLDEN_CONFIGS,
    }
    (target / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
