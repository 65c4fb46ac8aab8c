"""Images to model input: resize, crop, rescale and normalise as Hugging Face's image processors do.

Configured by Hugging Face's `preprocessor_config.json`. Without a crop the numbers are those of transformers 4.40.2's
`ViTImageProcessor`, the one its NAT and DiNAT use; with a crop those of its `CLIPImageProcessor`, which is how ImageNet
evaluation prepares images. Both bit for bit, but channels-last: `[B, H, W, C]` float32. Images of semantic segmentation and
object detection can be prepared as mmsegmentation and mmdetection do, within a box and with OpenCV's numbers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image

from natjax.configuration import CONFIG_NAME, PROCESSOR_NAME
from natjax.errors import CheckpointError, ImageError
from natjax.hub import locate
from natjax.image_arrays import channels_last, out_of_range, split_images, to_numpy
from natjax.image_sizes import center_crop, multiple_of, resize, resized_shape
from natjax.images import decode_image, is_image_source
from natjax.presets import IMAGENET_MEAN, IMAGENET_STD
from natjax.text import counted

if TYPE_CHECKING:
    from jaxtyping import Float32

    from natjax.images import Encoded

    ImageLike = Encoded | np.ndarray
    Size = Any  # given as a mapping, an integer or a pair; a mapping once the processor is made

_TYPE_KEYS = ("image_processor_type", "feature_extractor_type")  # the second is of older files
_VIT_TYPES = ("ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor")
_CROP_TYPES = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor", "BitImageProcessor")
_SEGFORMER_TYPES = ("SegformerImageProcessor", "SegformerImageProcessorFast", "SegformerFeatureExtractor")
_BOX_TYPES = ("DetrImageProcessor", "DetrImageProcessorFast", "DetrFeatureExtractor")
_BAND = 2**18  # pixels that are normalised at a time, as intermediate results take several times their memory
_CROP_DEFAULTS = {
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NatImageProcessor:
    """Prepares images for a model. Fields, defaults and results are those of Hugging Face's `ViTImageProcessor`.

    Colour or grey follows `image_mean`: one entry means a grey model (`num_channels` 1), anything else RGB.

    Attributes:
        do_resize: whether to resize to `size`.
        size: `{"height": h, "width": w}`, or `{"shortest_edge": n}` to keep the aspect ratio, or with a `"longest_edge": m` as
            well for the largest size at which neither side exceeds its edge. An integer n becomes an n x n square, a pair
            (height, width).
        resample: Pillow's resampling filter: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming.
        antialias: whether a smaller image averages over the pixels that it leaves out, as Pillow has it. False, for bilinear
            resizing alone, samples with the numbers of OpenCV's `resize`.
        do_center_crop: whether to crop the middle after resizing; smaller images are padded with zeros.
        crop_size: `{"height": h, "width": w}` of the crop, an integer or a pair.
        do_rescale: whether to multiply by `rescale_factor`.
        rescale_factor: takes pixel values from 0..255 to 0..1.
        do_normalize: whether to subtract `image_mean` and divide by `image_std`.
        image_mean: one number per channel, or one for all.
        image_std: likewise.
        size_divisor: after all else, zeros are added at the bottom and at the right until both sides are multiples of it; None
            adds none.
        extra: entries of a preprocessor_config.json that have no effect, kept so that writing it back loses nothing.

    Raises:
        ValueError: a field is impossible; the message names field, value and expectation.
    """

    do_resize: bool = True
    size: Size = 224
    resample: int = 2
    antialias: bool = True
    do_center_crop: bool = False
    crop_size: Size = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] | float = (0.5, 0.5, 0.5)
    image_std: Sequence[float] | float = (0.5, 0.5, 0.5)
    size_divisor: int | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("do_resize", "antialias", "do_center_crop", "do_rescale", "do_normalize"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {getattr(self, name)!r}.")
        if isinstance(self.resample, bool) or self.resample not in range(6):
            raise ValueError(f"resample must be one of Pillow's filters 0 to 5; got {self.resample!r}.")
        if not self.antialias and self.resample != 2:
            raise ValueError(f"antialias=False is of bilinear resizing, resample=2; got resample {self.resample!r}.")
        if self.size_divisor is not None and (type(self.size_divisor) is not int or self.size_divisor < 1):
            raise ValueError(f"size_divisor must be a positive integer or None; got {self.size_divisor!r}.")
        if not _is_number(self.rescale_factor):
            raise ValueError(f"rescale_factor must be a finite number; got {self.rescale_factor!r}.")
        crop_size = None if self.crop_size is None else _size("crop_size", self.crop_size, ({"height", "width"},))
        if self.do_center_crop and crop_size is None:
            raise ValueError("do_center_crop needs a crop_size; got none.")
        values = {
            "size": _size(
                "size", self.size, ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"})
            ),
            "crop_size": crop_size,
            "resample": int(self.resample),
            "image_mean": _per_channel("image_mean", self.image_mean),
            "image_std": _per_channel("image_std", self.image_std),
        }
        mean, std = values["image_mean"], values["image_std"]
        if isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) != len(std):
            raise ValueError(f"image_mean and image_std must have as many entries; got {len(mean)} and {len(std)}.")
        if 0 in (std if isinstance(std, tuple) else (std,)):
            raise ValueError("image_std must not be zero.")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def num_channels(self) -> int:
        """Channels of the output: 1 where `image_mean` has one entry, else 3."""
        return 1 if isinstance(self.image_mean, tuple) and len(self.image_mean) == 1 else 3

    @property
    def mode(self) -> str:
        """Pillow's mode of the images that it prepares: "L" for grey ones, else "RGB"."""
        return "L" if self.num_channels == 1 else "RGB"

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], *, input_data_format: str | None = None
    ) -> Float32[np.ndarray, "B H W C"]:
        """Prepares one image, a list of them or an array `[B, H, W, C]`.

        Paths, bytes and files are read by `load_image`. Pillow images are converted to RGB (or grey) and, as in Hugging Face, not
        turned by their EXIF orientation: call `load_image` for that. Arrays (NumPy's, JAX's, PyTorch's, nested lists) are
        `[H, W, C]`, `[C, H, W]` or `[H, W]`, of whole numbers 0..255 or, with do_rescale=False, floats 0..1; C is 1 or 3. Grey
        ones become RGB for a model of RGB.

        Args:
            images: what to prepare.
            input_data_format: "channels_first" or "channels_last": the layout of arrays, which is guessed where it is None.

        Raises:
            natjax.ImageError: an image cannot be read, has another shape, type or range, may be in either layout or would be
                resized to more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or sizes differ once prepared.
            ValueError: `input_data_format` is none of these.
        """
        if input_data_format not in (None, "channels_first", "channels_last"):
            raise ValueError(
                f"input_data_format must be 'channels_first', 'channels_last' or None; got {input_data_format!r}."
            )
        images, _ = split_images(images)
        if not images:
            raise ImageError("There is no image to prepare: the list is empty.")
        prepared = [self._prepare(image, input_data_format) for image in images]
        if len(shapes := {image.shape for image in prepared}) > 1:
            raise ImageError(f"Prepared images must be of one size to form a batch; got {sorted(shapes)} (see `size`).")
        return np.stack(prepared) if len(prepared) > 1 else prepared[0][None]

    def _prepare(self, image: ImageLike, layout: str | None) -> Float32[np.ndarray, "H W C"]:
        pixels = self._pixels(image, layout)
        if self.do_resize:
            shape = resized_shape(image, pixels.shape[:2], self.size)
            pixels = resize(pixels, shape, self.resample if self.antialias else None)
        if self.do_center_crop:
            pixels = center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        height, width, channels = pixels.shape
        sides = (multiple_of(self.size_divisor or 1, side) for side in (height, width))
        prepared = np.zeros((*sides, channels), np.float32)
        rows = max(1, _BAND // width)
        for band in (slice(start, min(start + rows, height)) for start in range(0, height, rows)):
            prepared[band, :width] = self._normalised(pixels[band])
        return prepared

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        # The casts are where Hugging Face has them: integers times a Python float are float64 until rescaled.
        if self.do_rescale:
            pixels = (pixels * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            if not np.issubdtype(pixels.dtype, np.floating):
                pixels = pixels.astype(np.float32)
            pixels = (pixels - np.array(self.image_mean, pixels.dtype)) / np.array(self.image_std, pixels.dtype)
        return pixels

    def _pixels(self, image: ImageLike, layout: str | None) -> np.ndarray:
        if is_image_source(image):
            pixels = np.array(
                decode_image(cast("Encoded", image), self.mode, upright=not isinstance(image, PIL.Image.Image))
            )
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels  # [H, W, C], however few rows there are
        else:
            pixels = channels_last(image, layout)
            channels = pixels.shape[-1]
            if channels == 1 and self.num_channels == 3:
                pixels, channels = np.repeat(pixels, 3, axis=-1), 3
            if channels == 3 and self.num_channels == 1 and pixels.dtype == np.uint8:  # as for a Pillow image
                pixels, channels = np.asarray(PIL.Image.fromarray(pixels).convert("L"))[..., None], 1
            if channels != self.num_channels:
                raise ImageError(
                    f"An image array needs {counted(self.num_channels, 'channel')} first or last; got {to_numpy(image).shape}. "
                    "Colours of uint8, 0..255, become grey for a model of grey images."
                )
        self._check_range(pixels)
        return pixels

    def _check_range(self, pixels: np.ndarray) -> None:
        """Refuses impossible pixels, and warns of improbable ones. Eight bits are always in range."""
        if pixels.dtype == np.uint8:
            return
        low, high = pixels.min(), pixels.max()
        # Resizing is of 8 bits. Smaller factors are for deeper pixels, larger ones for something else than pixels of 8 bits.
        bounded = self.do_resize or (self.do_rescale and self.rescale_factor > 1 / 256)
        if not np.isfinite([low, high]).all() or (bounded and (low < 0 or high > 255)):
            raise ImageError(out_of_range(pixels))
        advice = (
            "dataclasses.replace(processor, do_rescale={}) makes such a processor; pipelines take it as `processor=`."
        )
        if self.do_rescale and self.rescale_factor < 0.1 and 0 < high <= 1:
            warnings.warn(
                "Pixels are within 0..1 already and get rescaled again. Give pixels of 0..255, or set do_rescale=False: "
                + advice.format(False),
                stacklevel=5,
            )
        if not self.do_rescale and self.do_normalize and np.max(self.image_mean) <= 1 and (low < 0 or high > 1):
            warnings.warn(
                f"Pixels are within {low:g}..{high:g} and get normalised by a mean for 0..1. Give pixels of 0..1, or set "
                "do_rescale=True for pixels of 0..255: " + advice.format(True),
                stacklevel=5,
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a preprocessor_config.json with which Hugging Face prepares images the same way.

        One difference: within a box, the side that follows is rounded to the nearest pixel, as in mmsegmentation. Hugging Face's
        `DetrImageProcessor` rounds it down, and knows no `antialias` and no `size_divisor`.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        if self.antialias:
            del fields["antialias"]
        if self.size_divisor is None:
            del fields["size_divisor"]
        if "longest_edge" in self.size and not self.do_center_crop:
            fields |= {"image_processor_type": _BOX_TYPES[0], "do_pad": False}
            del fields["do_center_crop"], fields["crop_size"]
        elif self.do_center_crop or "shortest_edge" in self.size:
            fields |= {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": self.num_channels == 3}
            fields["crop_size"] = self.crop_size or {"height": 224, "width": 224}
        else:
            fields["image_processor_type"] = self.extra.get("image_processor_type", "ViTImageProcessor")
            del fields["do_center_crop"], fields["crop_size"]
        return json.loads(json.dumps({**self.extra, **fields}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NatImageProcessor:
        """Makes a processor from the content of a preprocessor_config.json.

        `image_processor_type` decides what the entries mean. A `ViTImageProcessor` ignores `do_center_crop` and
        `crop_size`, as it does in Hugging Face; a `CLIPImageProcessor` or `BitImageProcessor` crops, and an integer
        `size` is its shortest edge. A `SegformerImageProcessor` is one with other defaults; a `DetrImageProcessor` keeps images
        within a box. Without a type every field counts. Unknown entries are kept and have no effect.

        Raises:
            ValueError: it is of another processor, or a value is impossible.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"An image processor's configuration is a JSON object; got {type(values).__name__}.")
        kind = next((values[key] for key in _TYPE_KEYS if values.get(key)), None)
        known = _VIT_TYPES + _CROP_TYPES + _SEGFORMER_TYPES + _BOX_TYPES
        if kind is not None and kind not in known:
            raise ValueError(f"It is of a {kind!r}; natjax reads {', '.join(known)}.")
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        if kind in _VIT_TYPES + _SEGFORMER_TYPES + _BOX_TYPES:
            names -= {"do_center_crop", "crop_size"}
        if kind is not None and kind not in _BOX_TYPES:
            names -= {"size_divisor"}
        fields = _defaults(kind) | {k: v for k, v in values.items() if k in names and v is not None}
        if kind in _CROP_TYPES and isinstance(fields["size"], int):
            fields["size"] = {"shortest_edge": fields["size"]}
        extra = {k: v for k, v in values.items() if k not in names and k not in (*_TYPE_KEYS, "do_convert_rgb")}
        if kind in _SEGFORMER_TYPES:  # Hugging Face's pipeline needs what it does afterwards
            extra["image_processor_type"] = _SEGFORMER_TYPES[0]
        return cls(**fields, extra=extra)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike | None = None,
    ) -> NatImageProcessor:
        """Reads the processor of a checkpoint.

        Args:
            source: a preprocessor_config.json, a checkpoint with one beside it, or what else `NatModel.from_pretrained` takes.
            revision: of the Hub: branch, tag or commit.
            local_files_only: use only what is in the Hub's cache, without a network.
            cache_dir: the Hub's cache.

        Raises:
            natjax.CheckpointError: the file is missing, is not JSON or describes another processor.
        """
        options: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only, "cache_dir": cache_dir}
        path = locate(source, weights=False, **options)
        if path.is_file() and (path.suffix != ".json" or path.name == CONFIG_NAME):
            path = path.parent  # of weights or the architecture
        file = path / PROCESSOR_NAME if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise CheckpointError(
                f"{file}: cannot read the image processor: {error.strerror or error}. Without one, "
                "NatImageProcessor.imagenet() prepares images as ImageNet evaluation of NAT does."
            ) from error
        except (ValueError, RecursionError) as error:  # also JSON and text decoding errors
            raise CheckpointError(f"{file}: not a usable image processor: {error}") from error

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes preprocessor_config.json into a directory, which is made where it is missing."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(directory, PROCESSOR_NAME).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Returns the text of a preprocessor_config.json."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def imagenet(cls, image_size: int = 224, crop_pct: float = 0.875, num_channels: int = 3) -> NatImageProcessor:
        """Makes a processor that prepares as ImageNet evaluation of NAT does (SHI-Labs' classification/validate.py).

        The shorter side is resized to `image_size / crop_pct`, bicubic; then the middle is cropped and normalised by ImageNet's
        mean and standard deviation per channel, 0.5 where images are grey.

        Args:
            image_size: side of the crop in pixels.
            crop_pct: part of the resized shorter side that the crop keeps, above 0 and at most 1.
            num_channels: 3 for RGB, 1 for grey.

        Raises:
            ValueError: an argument is impossible.
        """
        if not _is_number(crop_pct) or not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1; got {crop_pct!r}.")
        return cls(
            size={"shortest_edge": int(image_size / crop_pct)},
            resample=3,
            do_center_crop=True,
            crop_size=image_size,
            **_imagenet_colours(num_channels),
        )

    @classmethod
    def semantic_segmentation(
        cls, longest_edge: int = 2048, shortest_edge: int = 512, num_channels: int = 3
    ) -> NatImageProcessor:
        """Makes a processor that prepares as mmsegmentation's test of UPerNet does: within a box, with OpenCV's numbers.

        Hugging Face reads what it saves as a `DetrImageProcessor`, which has the same box, rounds sides down where this one
        rounds them to the nearest, and averages.

        Args:
            longest_edge: what the longer side may be at most, in pixels.
            shortest_edge: what the shorter side may be at most.
            num_channels: 3 for RGB, 1 for grey.

        Raises:
            ValueError: an argument is impossible.
        """
        return cls(
            size={"shortest_edge": shortest_edge, "longest_edge": longest_edge},
            antialias=False,
            **_imagenet_colours(num_channels),
        )

    @classmethod
    def object_detection(
        cls, longest_edge: int = 1333, shortest_edge: int = 800, num_channels: int = 3
    ) -> NatImageProcessor:
        """Makes a processor that prepares as mmdetection's test does: within a box, with OpenCV's numbers, sides multiples of 32.

        See `semantic_segmentation`; the `size_divisor` of 32 is what differs beside the box.

        Args:
            longest_edge: what the longer side may be at most before zeros are added, in pixels.
            shortest_edge: what the shorter side may be at most, likewise.
            num_channels: 3 for RGB, 1 for grey.

        Raises:
            ValueError: an argument is impossible.
        """
        within = cls.semantic_segmentation(longest_edge, shortest_edge, num_channels)
        return dataclasses.replace(within, size_divisor=32)


def _imagenet_colours(num_channels: int) -> dict[str, Any]:
    """Returns ImageNet's mean and deviation as fields of a processor; 0.5 where images are grey."""
    if num_channels not in (1, 3):
        raise ValueError(f"Images have 1 or 3 channels; got {num_channels}.")
    grey = num_channels == 1
    return {"image_mean": (0.5,) if grey else IMAGENET_MEAN, "image_std": (0.5,) if grey else IMAGENET_STD}


def _defaults(kind: str | None) -> dict[str, Any]:
    """Returns the fields that a processor of Hugging Face's has by default, where they are not those of `NatImageProcessor`."""
    if kind in _CROP_TYPES:
        return dict(_CROP_DEFAULTS)
    if kind in _SEGFORMER_TYPES:
        return {"size": 512, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    if kind in _BOX_TYPES:
        size = {"shortest_edge": 800, "longest_edge": 1333}
        return {"size": size, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    return {}


def _size(name: str, value: Any, allowed: tuple[set[str], ...]) -> dict[str, int]:
    if isinstance(value, int):
        value = {"height": value, "width": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping) or set(value) not in allowed:
        keys = " or ".join(str(sorted(keys)) for keys in allowed)
        raise ValueError(f"{name} must be an integer, a pair (height, width) or a mapping with {keys}; got {value!r}.")
    if not all(type(side) is int and side > 0 for side in value.values()):
        raise ValueError(f"{name} must be in positive integers; got {dict(value)}.")
    return dict(value)


def _per_channel(name: str, value: Any) -> tuple[float, ...] | float:
    if _is_number(value):
        return value
    if not isinstance(value, list | tuple) or len(value) not in (1, 3) or not all(map(_is_number, value)):
        raise ValueError(f"{name} must be a finite number or 1 or 3 of them; got {value!r}.")
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0  # not inf, not nan
