"""The loop in this process: what a step may not do."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from natjax_train import loop
from natjax_train.recipe import override
from natjax_train.recipes import RECIPES

MODEL = {"num_channels": 1, "embed_dim": 8, "depths": [1], "num_heads": [1], "kernel_size": 3}
CHANGES = {"image_size": "16", "batch_size": "16", "epochs": "0.03", "warmup_epochs": "0"}


def test_a_step_moves_nothing_between_host_and_devices(monkeypatch, tmp_path):
    make = loop.make_training

    def make_training(*arguments):
        training = make(*arguments)

        def step(state, batch):
            return training.step(state, batch | {"image": batch["image"] + np.zeros(1, np.uint8)})

        return dataclasses.replace(training, step=step)

    monkeypatch.setattr(loop, "make_training", make_training)
    recipe = override(RECIPES["digits"], CHANGES | {"model_config": json.dumps(MODEL)})
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(recipe, "digits", tmp_path / "run")
