"""What augmentation and evaluation can be told: the parts of a recipe that they read. Needs neither JAX nor Pillow."""

from __future__ import annotations

import dataclasses

from natjax.presets import IMAGENET_MEAN, IMAGENET_STD
from natjax_train import fields
from natjax_train.augment import policy
from natjax_train.fields import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What training and evaluation have in common.

    Raises:
        ValueError: a field is impossible.
    """

    crop: bool = setting("whether to train on random resized crops; else images are resized whole", True)
    image_mean: tuple[float, ...] = setting("per channel, of pixels 0..1", IMAGENET_MEAN)
    image_std: tuple[float, ...] = setting("per channel", IMAGENET_STD)

    def __post_init__(self):
        fields.check(self)
        if self.image_mean is None or self.image_std is None:  # of a recipe that leaves them to its checkpoint
            return
        if len(self.image_mean) != len(self.image_std) or 0 in self.image_std:
            raise ValueError(
                "image_mean and image_std must have one number per channel, the latter none that is 0; "
                f"got {self.image_mean} and {self.image_std}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings(ImageSettings):
    """How images are prepared for evaluation."""

    interpolation: str = setting("how evaluation resizes", "bicubic", choices=("bicubic", "bilinear"))
    crop_pct: float = setting("part of the resized image that evaluation sees", 0.875, "positive", "fraction")
    eval_crop: bool | None = setting(
        "whether evaluation crops the middle; else images are resized whole; none is as crop says", None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostSettings(ImageSettings):
    """What happens to a training image in the input pipeline."""

    crop_scale: tuple[float, ...] = setting("least and greatest area of a crop", (0.08, 1.0), "range")
    crop_ratio: tuple[float, ...] = setting("least and greatest aspect ratio of a crop", (3 / 4, 4 / 3), "range")
    train_interpolation: str = setting(
        "how training resizes and RandAugment resamples, random meaning one of the two each time, as in timm",
        "random",
        choices=("random", "bicubic", "bilinear"),
    )
    horizontal_flip: float = setting("probability of a horizontal flip", 0.5, "fraction")
    auto_augment: str = setting('"rand-m9-mstd0.5-inc1" and its like; empty is off', "rand-m9-mstd0.5-inc1")
    color_jitter: float = setting("strength of colour jitter where auto_augment is off", 0.0, "fraction")

    def __post_init__(self):
        super().__post_init__()
        if self.auto_augment:
            policy.parse(self.auto_augment)  # raises where it means nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings(ImageSettings):
    """What happens to a training batch on the device."""

    label_smoothing: float = setting("mass that goes to all classes", 0.1, "fraction")
    mixup: float = setting("parameter of mixup's Beta distribution; 0 is off", 0.8)
    cutmix: float = setting("parameter of cutmix's Beta distribution; 0 is off", 1.0)
    mixup_prob: float = setting("probability that a batch is mixed at all", 1.0, "fraction")
    mixup_switch_prob: float = setting("probability of cutmix where both are on", 0.5, "fraction")
    erasing: float = setting("probability of random erasing", 0.25, "fraction")
    affine: float = setting(
        "strength of small random rotations, shears, scales and shifts; 0 is off, 1 suits digits", 0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """What happens to a training image with a mask, see `augment.masks`, and to what size evaluation brings it."""

    scale_range: tuple[float, ...] = setting(
        "segmentation and detection: least and greatest factor of a random scale, of images whose shorter side is image_size; "
        "detection takes it in steps of 0.04",
        (0.5, 2.0),
        "range",
    )
    longest_edge: int = setting(
        "bound of the longer side: in segmentation before the random scale, in detection after it", 2048, "positive"
    )
    cat_max_ratio: float = setting(
        "segmentation: largest part of a crop that one class may have, in ten tries; 1 is off", 0.75, "fraction"
    )
    photometric: bool = setting("segmentation: whether to change brightness, contrast, saturation and hue", True)
    size_divisor: int = setting(
        "segmentation: evaluation rounds the sides of resized images to multiples of this, so that few programs are compiled; "
        "1 leaves them as they are, and every size is a program",
        32,
        "positive",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxSettings:
    """What else happens to a training image with objects, see `augment.boxes`, and which images are trained on."""

    crop_prob: float = setting(
        "detection: probability of a random crop before the random scale, as in DETR", 0.5, "fraction"
    )
    crop_scales: tuple[float, ...] = setting(
        "detection: shorter sides, one of which an image gets before that crop, as parts of image_size",
        (0.5, 0.625, 0.75),
        "all positive",
    )
    crop_sides: tuple[float, ...] = setting(
        "detection: least and greatest height and width of that crop, as parts of image_size", (0.48, 0.75), "range"
    )
    keep_empty: bool = setting("detection: whether images without objects are trained on", False)
    max_objects: int = setting(
        "detection: most objects of a training image; of more, a random part is learnt", 100, "positive"
    )
