"""The image processor's own behaviour: configurations, kinds of input, and errors for what cannot be read.

Equality with Hugging Face is in test_image_processing_parity.py; the golden here stands in for it
where there is no transformers.
"""

import dataclasses
import io
import json
import pathlib
import struct
import sys
import tracemalloc
import zlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from natjax.errors import CheckpointError, ImageError
from natjax.image_processing import NatImageProcessor
from natjax.images import load_image
from natjax_train.data.transforms import decode

pytestmark = pytest.mark.once

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "image_processor"


def pattern(height=40, width=60, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def png(tmp_path):
    PIL.Image.fromarray(pattern()).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_equals_the_golden_of_hugging_face():
    with np.load(GOLDEN / "expected.npz") as golden:
        pixels, names = golden["pixels"], [name for name in golden.files if name != "pixels"]
        configs = json.loads((GOLDEN / "provenance.json").read_text())["configs"]
        assert sorted(names) == sorted(configs)
        for name in names:
            actual = NatImageProcessor.from_dict(configs[name])(pixels)
            np.testing.assert_array_equal(actual, golden[name], err_msg=name, strict=True)


def test_single_list_and_batch_agree(png):
    processor = NatImageProcessor(size=16)
    expected = processor(pattern())
    assert expected.shape == (1, 16, 16, 3)
    assert expected.dtype == np.float32
    image = PIL.Image.open(png)
    for same in (
        png,
        str(png),
        [png],
        image,
        pattern().transpose(2, 0, 1),
        pattern().astype(np.float64),
        pattern()[None],
    ):
        np.testing.assert_array_equal(processor(same), expected)
    np.testing.assert_array_equal(processor([png, image, pattern()]), np.concatenate([expected] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"])
def test_pillow_images_of_any_mode_become_rgb_or_grey(mode):
    grey = PIL.Image.fromarray(pattern()[..., 0])
    image = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    assert NatImageProcessor(size=8)(image).shape == (1, 8, 8, 3)
    assert NatImageProcessor(size=8, image_mean=[0.5], image_std=[0.5])(image).shape == (1, 8, 8, 1)


def test_grey_arrays():
    colour, grey = NatImageProcessor(size=8), NatImageProcessor(size=8, image_mean=[0.5], image_std=[0.5])
    plane = pattern(channels=1)
    assert grey.num_channels == 1
    for same in (plane, plane[..., 0], plane.transpose(2, 0, 1)):
        np.testing.assert_array_equal(colour(same), np.repeat(grey(same), 3, axis=-1))
    np.testing.assert_array_equal(grey(pattern()), grey(PIL.Image.fromarray(pattern())))
    with pytest.raises(ImageError, match=r"1 channel .*\(40, 60, 3\)\. Colours of uint8"):
        grey(pattern().astype(np.float32))
    with pytest.raises(ImageError, match=r"3 channels .*\(40, 60, 4\)"):
        colour(pattern(channels=4))


def test_few_rows_are_not_taken_for_channels():
    image = PIL.Image.fromarray(pattern(3, 20))
    assert NatImageProcessor(do_resize=False)(image).shape == (1, 3, 20, 3)


def test_sizes():
    image = pattern(40, 60)
    assert NatImageProcessor(size=(10, 12))(image).shape == (1, 10, 12, 3)
    assert NatImageProcessor(size={"shortest_edge": 20})(image).shape == (1, 20, 30, 3)
    assert NatImageProcessor(size={"shortest_edge": 20})(pattern(60, 40)).shape == (1, 30, 20, 3)
    assert NatImageProcessor.imagenet(32, crop_pct=0.8)(image).shape == (1, 32, 32, 3)
    assert NatImageProcessor.imagenet(32, num_channels=1)(image[..., 0]).shape == (1, 32, 32, 1)
    with pytest.raises(ValueError, match="1 or 3 channels; got 4"):
        NatImageProcessor.imagenet(num_channels=4)
    for crop_pct in (0, -0.5, 1.1, float("nan"), "1"):
        with pytest.raises(ValueError, match="crop_pct must be above 0 and at most 1"):
            NatImageProcessor.imagenet(crop_pct=crop_pct)
    assert NatImageProcessor(do_resize=False)(image).shape == (1, 40, 60, 3)


def test_crop_pads_small_images_to_the_asked_size():
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    processor = NatImageProcessor(**plain, do_center_crop=True, crop_size=8)
    for height in range(1, 12):
        column = processor(PIL.Image.new("RGB", (8, height), (1, 1, 1)))[0, :, 0, 0]
        assert column.shape == (8,)
        assert column.sum() == min(height, 8)
        assert abs(int(column[:4].sum()) - int(column[4:].sum())) <= 1


def test_images_of_different_sizes_make_no_batch():
    with pytest.raises(ImageError, match=r"one size.*\(40, 60, 3\), \(60, 40, 3\)"):
        NatImageProcessor(do_resize=False)([pattern(40, 60), pattern(60, 40)])


@pytest.mark.parametrize(
    "bad",
    [None, 3, [], [[1, 2]], np.zeros(4), np.zeros((0, 4, 3)), np.array([["a"]]), np.zeros((2, 2, 2, 2, 3)), object()],
)
def test_refuses_what_is_no_image(bad):
    with pytest.raises(ImageError):
        NatImageProcessor(size=8)(bad)


RAMP = np.arange(256, dtype=np.uint16)[None].repeat(8, 0)  # [8, 256]: every grey
GREY = NatImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, image_mean=[0.5], image_std=[0.5])


def saved(pixels, kind, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_sixteen_bits_become_eight_by_their_range(kind):
    data = saved(RAMP * 257, kind)
    opened = PIL.Image.open(io.BytesIO(data))
    for read in (GREY(data), GREY(opened), np.asarray(decode(data, 1))[None, ..., None]):
        np.testing.assert_array_equal(read[0, ..., 0], RAMP)
    np.testing.assert_array_equal(np.asarray(load_image(data))[..., 2], RAMP)
    turned = opened.copy()
    turned.getexif()[0x0112] = 6
    if kind == "PNG":
        np.testing.assert_array_equal(
            np.asarray(load_image(saved(turned, kind, exif=turned.getexif()))), load_image(turned)
        )
        assert load_image(turned).size == (8, 256)


def test_sixteen_bits_of_any_byte_order_or_made_by_hand():
    for image in (PIL.Image.fromarray(RAMP * 257), PIL.Image.fromarray((RAMP * 257).astype(">u2"))):
        assert image.mode.startswith("I;16")
        np.testing.assert_array_equal(GREY(image)[0, ..., 0], RAMP)


def test_tiffs_say_their_depth_and_which_value_is_white():
    twelve = PIL.Image.fromarray(RAMP * 16)
    twelve.tag_v2 = {258: (12,), 262: 1}  # as of a file that Pillow opens with 12 bits
    np.testing.assert_array_equal(GREY(twelve)[0, ..., 0], RAMP)
    np.testing.assert_array_equal(GREY(tiff(RAMP * 257, photometric=0))[0, ..., 0], 255 - RAMP)
    colours = np.stack([RAMP * 257] * 3, -1)
    np.testing.assert_array_equal(GREY(tiff(colours, photometric=2))[0, ..., 0], RAMP)
    with pytest.raises(ImageError, match=r"16 bits in planes of their own, which Pillow misreads\. Save it as PNG"):
        load_image(tiff(colours, photometric=2, planes=2))
    with pytest.raises(
        ImageError, match=r"not an image that Pillow can read: it is TIFF, .* with pixels that Pillow does not"
    ):
        load_image(tiff(colours.astype(np.uint32), photometric=2))


def tiff(pixels, *, photometric, planes=1):
    """Returns a TIFF of whole numbers, [H, W] or [H, W, C], in one strip or one per plane."""
    height, width, channels = *pixels.shape[:2], pixels[0, 0].size
    data = (pixels if planes == 1 else np.moveaxis(pixels, -1, 0)).tobytes()
    strips, tables = channels if planes == 2 else 1, 8 + 2 + 10 * 12 + 4
    start = tables + 3 * 4 * 8
    bits = [8 * pixels.dtype.itemsize] * channels
    offsets, lengths = [start + i * len(data) // strips for i in range(strips)], [len(data) // strips] * strips
    entries, more = b"", b""
    for tag, kind, values in (
        (256, "I", [width]), (257, "I", [height]), (258, "H", bits), (259, "H", [1]), (262, "H", [photometric]),
        (273, "I", offsets), (277, "H", [channels]), (278, "I", [height]), (279, "I", lengths), (284, "H", [planes]),
    ):  # fmt: skip
        content = struct.pack(f"<{len(values)}{kind}", *values)
        if len(content) > 4:
            content, more = struct.pack("<I", tables + len(more)), more + content
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + content.ljust(4, b"\0")
    return (b"II*\0" + struct.pack("<IH", 8, 10) + entries + bytes(4) + more).ljust(start, b"\0") + data


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ((RAMP / 255).astype(np.float32), r"floating point pixels, 0\.\.1 in this image"),
        (RAMP.astype(np.float32) * 2, r"floating point pixels, 0\.\.510 in this image"),
        (np.full((2, 2), np.nan, np.float32), r"floating point pixels, nan\.\.nan in this image"),
        (RAMP.astype(np.int32) * 257, r"integer pixels, 0\.\.65535 in this image"),
        (RAMP.astype(np.int32) - 3, r"integer pixels, -3\.\.252 in this image"),
    ],
)
def test_pixels_of_unknown_range_are_refused(pixels, message):
    data = saved(pixels, "TIFF")
    for image in (data, PIL.Image.open(io.BytesIO(data)), PIL.Image.fromarray(pixels)):
        for read in (GREY, load_image, lambda image: decode(image, 3)):
            with pytest.raises(ImageError, match=f"^The image: {message}, do not say which value is white"):
                read(image)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_taken_if_they_are_those_of_eight_bits(kind):
    np.testing.assert_array_equal(GREY(saved(RAMP.astype(kind), "TIFF"))[0, ..., 0], RAMP)
    assert not GREY(saved(np.zeros((2, 2), kind), "TIFF")).any()


def test_what_else_holds_an_image(png):
    processor = NatImageProcessor(size=16)
    expected, data = processor(png), png.read_bytes()
    with open(png, "rb") as file:
        for same in (data, bytearray(data), memoryview(data), io.BytesIO(data), file, [file, data], iter([data])):
            for one in processor(same):
                np.testing.assert_array_equal(one, expected[0])
    assert load_image(data).size == load_image(io.BytesIO(data)).size == (60, 40)
    with (
        open(png) as text,
        pytest.raises(ImageError, match="opened with mode 'rb' or a Pillow image; got TextIOWrapper"),
    ):
        load_image(text)
    with pytest.raises(ImageError, match=r"got ndarray\. Arrays go to natjax\.NatImageProcessor"):
        load_image(pattern())
    address = "https://example.org/cat.png"
    with pytest.raises(
        ImageError, match=r"cat\.png: there is no such file\. natjax downloads no images: fetch it, and give the file"
    ):
        processor(address)
    with pytest.raises(ImageError, match=r"^x{300}\.\.\.: cannot be read: File name too long"):
        processor("x" * 10_000)


def test_what_else_holds_numbers(png):
    processor = NatImageProcessor(size=16)
    expected, pixels = processor(pattern()), pattern()
    for same in (pixels.tolist(), [pixels.tolist()], pixels[None].tolist(), jnp.asarray(pixels), np.array([str(png)])):
        np.testing.assert_array_equal(processor(same), expected)
    plain = NatImageProcessor(do_resize=False, do_rescale=False)
    half = jnp.full((4, 4, 3), 0.5, jnp.bfloat16)
    for same in (half, Tensor(half)):
        np.testing.assert_array_equal(plain(same), np.zeros((1, 4, 4, 3)))
    for bad in ([[[1, 2], [3]]], Tensor(None)):
        with pytest.raises(ImageError, match="An image cannot be had from this"):
            processor(bad)


class Tensor:
    """As a tensor of PyTorch's in bfloat16 with gradients and on a device."""

    def __init__(self, values, dtype="torch.bfloat16", device="cuda", gradients=True):
        self.values, self.dtype, self.device, self.gradients = values, dtype, device, gradients

    def detach(self):
        return Tensor(self.values, self.dtype, self.device, False)

    def cpu(self):
        return Tensor(self.values, self.dtype, "cpu", self.gradients)

    def float(self):
        return Tensor(self.values, "torch.float32", self.device, self.gradients)

    def __array__(self, *_, **__):
        if self.values is None or self.gradients or self.device != "cpu" or self.dtype != "torch.float32":
            raise TypeError("can't convert")
        return np.asarray(self.values, np.float32)


def test_the_layout_is_not_guessed_where_there_are_two():
    processor = NatImageProcessor(size=8)
    for shape in ((3, 5, 3), (1, 5, 3), (3, 5, 1), (1, 5, 1), (3, 3, 3)):
        image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        for ambiguous in (image, image[None], [image]):
            with pytest.raises(ImageError, match=r"channels first or last\. Say which: .*channels_last.*Pillow image"):
                processor(ambiguous)
        last, first = (processor(image, input_data_format=f"channels_{end}") for end in ("last", "first"))
        np.testing.assert_array_equal(first, processor(image.transpose(1, 2, 0), input_data_format="channels_last"))
        if shape == (3, 5, 3):
            np.testing.assert_array_equal(last, processor(PIL.Image.fromarray(image)))
    with pytest.raises(
        ValueError, match="input_data_format must be 'channels_first', 'channels_last' or None; got 'HWC'"
    ):
        processor(pattern(), input_data_format="HWC")


@pytest.mark.parametrize("resize", [True, False])
def test_implausible_ranges_are_refused_or_said(resize):
    processor = NatImageProcessor(size=8, do_resize=resize)
    with pytest.raises(ImageError, match=r"got 0\.\.65535 \(uint16\)\. .* \(image // 257\)\.astype"):
        processor((RAMP * 257)[..., None])
    for bad in (
        np.full((4, 4, 3), -1),
        np.full((4, 4, 3), 256),
        np.full((4, 4, 3), np.inf),
        np.full((4, 4, 3), np.nan),
    ):
        with pytest.raises(ImageError, match=r"whole numbers 0\.\.255 or floats 0\.\.1; got .* Scale them to 0\.\.255"):
            processor(bad)
    scaled = dataclasses.replace(processor, do_rescale=False)
    with pytest.warns(
        UserWarning, match=r"within 0\.\.1 already .* dataclasses\.replace\(processor, do_rescale=False\)"
    ):
        processor(np.full((4, 4, 3), 0.5))
    assert (processor(np.zeros((4, 4, 3))) == processor(np.zeros((4, 4, 3), np.uint8))).all()  # black, as it is
    unscaled = pattern().astype(np.float32)
    with pytest.warns(
        UserWarning, match=r"Pixels are within 0\.\.255 and get normalised by a mean for 0\.\.1.*do_rescale=True"
    ):
        scaled(unscaled)
    dataclasses.replace(scaled, image_mean=[120.0] * 3)(unscaled)  # a mean for 0..255
    dataclasses.replace(processor, rescale_factor=2.0)(
        np.full((4, 4, 3), 0.5)
    )  # a factor for 0..1, and one for 16 bits
    deep = dataclasses.replace(processor, do_resize=False, rescale_factor=1 / 65535)
    np.testing.assert_allclose(deep((RAMP * 257)[..., None])[0, 0, -1], 1)


@pytest.mark.parametrize("bad", [-1.0, 0.5 + 1, 256.0, np.nan])
def test_refuses_pixels_that_cannot_be_resized(bad):
    with pytest.raises(ImageError, match=r"0\.\.255 or floats 0\.\.1"):
        NatImageProcessor(size=8)(np.full((4, 4, 3), bad))


def test_warns_of_pixels_that_are_scaled_already():
    with pytest.warns(UserWarning, match="do_rescale=False"):
        NatImageProcessor(size=8)(np.full((4, 4, 3), 0.5))


def truncated(path):
    PIL.Image.fromarray(pattern(200, 200)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-4000])


def huge(path):  # 30000 x 30000 in 100 bytes
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.touch(), "the file is empty"),
        (lambda path: path.write_text("not an image"), r"not an image that Pillow can read\.$"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
            "not an image .*: run git lfs pull",
        ),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(16)), "not an image .* pip install pillow-heif"),
        (lambda path: path.write_text("\n<svg/>"), "not an image .* drawing"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
        (truncated, "cannot be read: .*truncated"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50), r"cannot be read|not an image"),
        (huge, "too large to decode safely"),
    ],
    ids=["missing", "directory", "empty", "text", "lfs", "heic", "svg", "eps", "truncated", "broken", "bomb"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="opening a directory is a permission error there")
def test_unreadable_files_are_named(tmp_path, make, message):
    make(path := tmp_path / "x.jpg")
    for read in (load_image, NatImageProcessor()):
        with pytest.raises(ImageError, match=f"x.jpg: {message}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_truncated_pillow_image(tmp_path):
    truncated(tmp_path / "x.jpg")
    with PIL.Image.open(tmp_path / "x.jpg") as image, pytest.raises(ImageError, match="The image: cannot be read"):
        NatImageProcessor()(image)
    with pytest.raises(ImageError, match="got int"):
        load_image(3)


@pytest.mark.parametrize("read", [load_image, NatImageProcessor(size=8), lambda image: decode(image.read_bytes(), 3)])
def test_one_limit_of_size_everywhere(png, monkeypatch, read):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40 * 60)
    read(png)
    for fewer in (1, 2000):  # Pillow warns of the one, which makes nothing of it, and refuses the other
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40 * 60 - fewer)
        with pytest.raises(
            ImageError, match=rf"too large to decode safely: more than {2400 - fewer} pixels .* higher\.$"
        ):
            read(png)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    read(png)


@pytest.mark.parametrize("band", [1, 100, 240])  # rows are 40 pixels; the last is all of the image
def test_large_images_are_normalised_in_bands(monkeypatch, band):
    processor, pixels = NatImageProcessor(do_resize=False, size_divisor=32), pattern(60, 40)
    expected = processor(pixels)
    monkeypatch.setattr("natjax.image_processing._BAND", band)
    np.testing.assert_array_equal(processor(pixels), expected)


def test_memory_of_large_images():
    pixels = np.zeros((3000, 2000, 3), np.uint8)
    tracemalloc.start()
    try:
        NatImageProcessor(do_resize=False)(pixels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 4 * pixels.size  # the result in float32, and the work on a band


@pytest.mark.parametrize("size", [(70_000, 1), (1, 70_000)])
def test_strips_that_would_be_resized_to_gigabytes_are_refused(tmp_path, size):
    PIL.Image.new("L", size).save(tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"strip\.png: .* would be resized to .*2520000"):
        NatImageProcessor.imagenet(32)(tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"The image: .* would be resized"):
        NatImageProcessor.imagenet(32)(PIL.Image.new("RGB", size))


def test_the_bound_on_resizing_is_pillows(monkeypatch):
    processor = NatImageProcessor(size={"shortest_edge": 20})
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20 * 30)
    assert processor(pattern(40, 60)).shape == (1, 20, 30, 3)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20 * 30 - 1)
    with pytest.raises(ImageError, match="40 x 60 pixels"):
        processor(pattern(40, 60))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)  # Pillow's way to switch its own off
    assert processor(pattern(40, 60)).shape == (1, 20, 30, 3)


def test_config_round_trip(tmp_path):
    for processor in (
        NatImageProcessor(),
        NatImageProcessor(size=(64, 96), resample=3, image_mean=0.5, image_std=[0.1, 0.2, 0.3], do_rescale=False),
        NatImageProcessor.imagenet(),
        NatImageProcessor(image_mean=[0.5], image_std=[0.25], extra={"note": "kept"}),
        NatImageProcessor(size={"shortest_edge": 32}, do_resize=False),
    ):
        processor.save_pretrained(tmp_path / "deep" / "er")
        for path in (tmp_path / "deep" / "er", tmp_path / "deep" / "er" / "preprocessor_config.json"):
            back = NatImageProcessor.from_pretrained(path)
            assert back.to_dict() == processor.to_dict()
        assert dataclasses.replace(back, crop_size=processor.crop_size) == processor


def test_the_type_of_a_config_decides_about_cropping():
    crop = {"do_center_crop": True, "crop_size": 8, "size": 16}
    vit = NatImageProcessor.from_dict({**crop, "feature_extractor_type": "ViTFeatureExtractor"})
    assert not vit.do_center_crop
    assert vit.size == {"height": 16, "width": 16}
    assert vit.to_dict()["crop_size"] == 8  # kept, without effect
    clip = NatImageProcessor.from_dict({**crop, "image_processor_type": "CLIPImageProcessor"})
    assert clip.do_center_crop
    assert clip.size == {"shortest_edge": 16}
    assert clip.to_dict()["image_processor_type"] == "CLIPImageProcessor"
    assert NatImageProcessor.from_dict(crop).do_center_crop


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"size": {"height": 3}},
        {"size": "large"},
        {"size": True},
        {"resample": 9},
        {"do_resize": "yes"},
        {"do_center_crop": True},
        {"crop_size": {"shortest_edge": 3}},
        {"rescale_factor": float("nan")},
        {"image_mean": [0.5, 0.5]},
        {"image_std": [1, 0, 1]},
        {"image_std": 0},
        {"image_mean": [0.5]},
        {"image_processor_type": "ConvNextImageProcessor"},
        [],
    ],
    ids=str,
)
def test_bad_configs(bad, tmp_path):
    with pytest.raises(ValueError, match=r"got|natjax reads|must not be zero"):
        NatImageProcessor.from_dict(bad)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(bad))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: not a usable image processor"):
        NatImageProcessor.from_pretrained(tmp_path)


def test_missing_and_damaged_config_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: cannot read .*NatImageProcessor\.imagenet"):
        NatImageProcessor.from_pretrained(tmp_path)
    processor = NatImageProcessor(size=77)
    processor.save_pretrained(tmp_path)
    for name in ("model.safetensors", "nat.pth", "config.json"):  # the configuration is that beside them
        (tmp_path / name).write_text("{}")
        assert NatImageProcessor.from_pretrained(tmp_path / name) == processor
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    processor.save_pretrained(tmp_path / "run" / "model")
    assert NatImageProcessor.from_pretrained(tmp_path / "run") == processor
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match="not a usable image processor"):
        NatImageProcessor.from_pretrained(tmp_path)
