"""Mask R-CNN and Cascade Mask R-CNN on COCO, from the backbone's published weights; and fine-tuning one on a folder of objects.

    natjax train --recipe mask_rcnn_nat_tiny --data coco --out runs/mask_rcnn_nat_tiny
    natjax train --recipe finetune_boxes --data apples --out runs/apples

Expected figures are the papers' AP of boxes and masks in percent, which `natjax list '*mask_rcnn*'` shows: 46.5 and 41.7 for
mask_rcnn_nat_mini to 55.3 and 47.8 for cascade_mask_rcnn_dinat_large. natjax has not run these recipes, and so knows no times:
they are 36 epochs of 117,266 images. Figure and time of finetune_boxes depend on the data.

These are the configurations of SHI-Labs' detection/ (arXiv 2204.07143 section 4.2, 2209.15001 section 4.2): mmdetection's
schedule_3x, and the images of DETR in its pipeline of COCO.
"""

from __future__ import annotations

from typing import Any

from natjax.presets import DETECTION_PRESETS, IMAGENET_MEAN, IMAGENET_STD
from natjax_train.recipe import Recipe

_STEPS_OF_COCO = 7330  # of an epoch: 117,266 images with objects
_RATES = {"dinat_base": 7.5e-5, "dinat_large": 7.5e-5, "dinat_s_base": 7.5e-5, "dinat_s_large": 5e-5}
_OF_IMAGENET_22K = {"dinat_large": "shi-labs/dinat-large-in22k-224", "dinat_s_large": "dinat_s_large_22k"}
_DETECTION: dict[str, Any] = {
    "task": "detection",
    "pretrained": True,
    "image_size": 800,
    "longest_edge": 1333,
    "scale_range": (0.6, 1.0),
    "crop": False,
    "eval_crop": False,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "epochs": 36,
    "base_batch_size": 16,
    "schedule": "step",
    "milestones": (27, 33),
    "cooldown_epochs": 0,
    "min_learning_rate": 0.0,
    "weight_decay": 0.05,
    "decayed": "all but norms",
    "clip_norm": None,
}


def _published(name: str) -> Recipe:
    """Returns the recipe of a published model."""
    config = DETECTION_PRESETS[name].config
    trunk, backbone = config.trunk, name.removeprefix(f"{config.model_type}_")
    rate = _RATES.get(backbone, 1e-4)
    return Recipe(
        **_DETECTION,
        detector=config.model_type,
        model=_OF_IMAGENET_22K.get(backbone, backbone),
        model_config={} if trunk.dilations is None else {"dilations": [list(level) for level in trunk.dilations]},
        drop_path_rate=trunk.drop_path_rate,
        batch_size=16,
        learning_rate=rate,
        warmup_epochs=500 / _STEPS_OF_COCO,
        warmup_learning_rate=1e-3 * rate,
    )


RECIPES = {name: _published(name) for name in DETECTION_PRESETS} | {
    "finetune_boxes": Recipe(
        **_DETECTION,
        model="nat_mini",
        drop_path_rate=0.2,
        steps=4000,
        batch_size=8,
        learning_rate=1e-4,
        warmup_epochs=4.5,  # 500 steps
        warmup_learning_rate=5e-8,
        eval_every=3,
        log_every=10,
        save_every=200,
    ),
}
