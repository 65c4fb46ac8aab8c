"""scikit-learn's handwritten digits: small models that classify them, and that find them on photographs.

    natjax train --recipe digits --data digits --out runs/digits
    natjax train --recipe digits_boxes --data digits-boxes --out runs/digits-boxes

digits: a grey model on 8 x 8 pixels, enlarged to 64. Expected figure: top-1 of 98.5 % and more on the 360 held-out digits.

digits_boxes: a Mask R-CNN. `examples/digits.py` writes the data, docs/digits.md has the figures. Expected: box AP 47, mask AP 40.

Time of each: minutes on two cores of a CPU.
"""

from __future__ import annotations

from natjax_train.recipe import Recipe

RECIPES = {
    "digits": Recipe(
        model="custom",
        model_config={
            "num_channels": 1,
            "embed_dim": 16,
            "depths": [2, 2, 2],
            "num_heads": [1, 2, 4],
            "kernel_size": 5,
            "drop_path_rate": 0.1,
            "initializer_range": 0.1,  # so narrow a model learns slowly from 0.02
        },
        image_size=64,
        epochs=60,
        batch_size=64,
        learning_rate=2e-3,
        base_batch_size=64,
        warmup_epochs=5,
        cooldown_epochs=0,
        min_learning_rate=0.0,
        clip_norm=1.0,
        label_smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        auto_augment="",
        horizontal_flip=0.0,
        crop=False,
        affine=1.0,
        train_interpolation="bilinear",
        interpolation="bilinear",
        crop_pct=1.0,
        image_mean=(0.5,),
        image_std=(0.5,),
        workers=0,
        log_every=10,
        eval_every=5.0,
        save_every=200,
        select="last",
    ),
    "digits_boxes": Recipe(
        task="detection",
        model="custom",
        model_config={
            "backbone_config": {
                "model_type": "nat",
                "embed_dim": 24,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 4, 8],
                "kernel_size": 5,
                "initializer_range": 0.1,
            },
            "fpn_channels": 48,
            "rpn_channels": 48,
            "anchor_scale": 4,  # squares of 16, 32, 64 and more pixels
            "box_num_convs": 4,  # with batch normalisation, without which classes are learnt slowly
            "box_conv_channels": 64,
            "box_num_fcs": 1,
            "box_fc_channels": 128,
            "mask_num_convs": 2,
            "mask_channels": 48,
            "rpn_pre_nms": 200,
            "rpn_post_nms": 100,
            "train_rpn_pre_nms": 200,
            "train_rpn_post_nms": 100,
            "rpn_batch_size": 64,
            "box_batch_size": 32,
            "box_positive_fraction": 0.5,
            "max_detections": 20,
        },
        image_size=128,
        longest_edge=128,
        scale_range=(1.0, 1.0),
        crop=False,
        crop_prob=0.0,
        horizontal_flip=0.0,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        epochs=5,
        batch_size=4,
        learning_rate=2e-3,
        base_batch_size=4,
        beta2=0.99,
        warmup_epochs=0.25,
        cooldown_epochs=0,
        min_learning_rate=0.0,
        clip_norm=10.0,
        workers=0,
        log_every=25,
        eval_every=1,
        save_every=500,
        select="last",
    ),
}
