"""Fine-tuning a published model on a folder of images, on one GPU.

    natjax train --recipe finetune --data photographs --out runs/finetuned

Expected figure and time depend on the data. The rate falls by 0.8 per layer below the head, which keeps what the lower layers
know. Images are prepared as the checkpoint's image processor says.
"""

from __future__ import annotations

from natjax_train.recipe import Recipe

RECIPES = {
    "finetune": Recipe(
        model="nat_mini",
        pretrained=True,
        epochs=30,
        batch_size=64,
        learning_rate=5e-4,
        base_batch_size=64,
        warmup_epochs=3,
        cooldown_epochs=0,
        min_learning_rate=1e-6,
        layer_decay=0.8,
        clip_norm=1.0,
        mixup=0.0,
        cutmix=0.0,
        erasing=0.0,
        crop_scale=(0.25, 1.0),
        log_every=10,
        save_every=200,
    ),
}
