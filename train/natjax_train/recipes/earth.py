"""A small NAT that says what covers the land, on pictures of the Earth: from names of classes, and from masks.

    natjax train --recipe earth_masks --data earth/masks-0 --out runs/scratch-0
    natjax train --recipe earth_names --data earth/names-0 --out runs/names-0
    natjax train --recipe earth_masks --data earth/masks-0 --out runs/pretrained-0 --model runs/names-0

`examples/earth.py` writes the data, docs/earth.md has the figures. Time: minutes on two cores of a CPU.
"""

from __future__ import annotations

import dataclasses

from natjax_train.recipes import digits, upernet

_TRUNK = {**digits.RECIPES["digits"].model_config, "num_channels": 3}

RECIPES = {
    "earth_names": dataclasses.replace(
        digits.RECIPES["digits"],
        model_config=_TRUNK,
        epochs=30,
        horizontal_flip=0.5,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    ),
    "earth_masks": dataclasses.replace(
        upernet.RECIPES["finetune_masks"],
        model="custom",
        pretrained=False,
        model_config={
            "backbone_config": {"model_type": "nat", **_TRUNK},
            "hidden_size": 64,
            "auxiliary_channels": 64,
        },
        drop_path_rate=0.1,
        image_size=128,
        photometric=False,  # colours are what tells the classes apart
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        steps=300,
        learning_rate=1e-3,
        base_batch_size=8,
        workers=0,
        select="last",
    ),
}
