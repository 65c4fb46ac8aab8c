"""UPerNet on ADE20K's 150 classes, from the backbone's published weights; and fine-tuning one on a folder of masks.

    natjax train --recipe upernet_nat_tiny --data ADEChallengeData2016 --out runs/upernet_nat_tiny
    natjax train --recipe finetune_masks --data photographs --out runs/masks

Expected figures are the papers' mean IoU in percent, at one scale and at several:

    NAT      mini 45.1, 46.4    tiny 47.1, 48.4    small 48.0, 49.5    base 48.5, 49.7
    DiNAT    mini 45.8, 47.2    tiny 47.8, 48.8    small 48.9, 49.9    base 49.6, 50.4
    DiNAT_s                     tiny 46.0, 47.4    small 48.6, 49.9    base 49.4, 50.2

natjax has not run these recipes, and so knows no times: they are 160,000 steps of 16 crops. Figure and time of finetune_masks
depend on the data.

These are the configurations of SHI-Labs' segmentation/ (arXiv 2204.07143 section 4.3, 2209.15001 section 4.3): mmsegmentation's
schedule_160k and its pipeline of ADE20K. A thousand steps count as an epoch.
"""

from __future__ import annotations

from typing import Any

from natjax.presets import IMAGENET_MEAN, IMAGENET_STD
from natjax_train.recipe import Recipe

_DROP_PATH = {
    "nat": {"mini": 0.2, "tiny": 0.3, "small": 0.5, "base": 0.5},
    "dinat": {"mini": 0.2, "tiny": 0.3, "small": 0.5, "base": 0.5},
    "dinat_s": {"tiny": 0.3, "small": 0.3, "base": 0.3},
}
_SEGMENTATION: dict[str, Any] = {
    "task": "segmentation",
    "pretrained": True,
    "image_size": 512,
    "crop": True,
    "eval_crop": False,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "learning_rate": 6e-5,
    "base_batch_size": 16,
    "schedule": "poly",
    "warmup_learning_rate": 6e-11,
    "cooldown_epochs": 0,
    "min_learning_rate": 0.0,
    "weight_decay": 0.01,
    "decayed": "all but norms",
    "clip_norm": None,
}


def _dilations(family: str, size: str) -> list[list[int]]:
    """Returns those of segmentation: the third level's grow from layer to layer and begin again."""
    third = [value for i in range(3 if size in ("mini",) or (family, size) == ("dinat_s", "tiny") else 9)
             for value in (1, 2 + i % 3)]  # fmt: skip
    if family == "dinat_s":
        return [[1, 16], [1, 8], third, [1, 2]]
    return [[1, 16, 1], [1, 4, 1, 8], third, [1, 2, 1, 2, 1]]


RECIPES = {
    f"upernet_{family}_{size}": Recipe(
        **_SEGMENTATION,
        model=f"{family}_{size}",
        model_config={} if family == "nat" else {"dilations": _dilations(family, size)},
        drop_path_rate=rate,
        classes="ade20k",
        reduce_zero_label=True,
        steps=160_000,
        epochs=160,
        warmup_epochs=1.5,
        eval_every=16,
        batch_size=16,
    )
    for family, sizes in _DROP_PATH.items()
    for size, rate in sizes.items()
} | {
    "finetune_masks": Recipe(
        **_SEGMENTATION,
        model="nat_mini",
        drop_path_rate=0.2,
        steps=4000,
        epochs=40,
        warmup_epochs=2,
        eval_every=4,
        batch_size=8,
        log_every=10,
        save_every=200,
    ),
}
