"""Writes the exported model of this folder: a tiny NAT with random weights, images, and what it makes of them."""

import pathlib
import tempfile

import numpy as np
from flax import nnx

import natjax

FOLDER = pathlib.Path(__file__).parent

config = natjax.NatConfig(depths=(1, 1), num_heads=(2, 4), embed_dim=8, kernel_size=3, num_labels=5, mlp_ratio=1.0)
model = natjax.NatForImageClassification(config, rngs=nnx.Rngs(3))
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
with tempfile.TemporaryDirectory() as folder:
    path = natjax.export(model, folder, image_size=32)
    (FOLDER / path.name).write_bytes(path.read_bytes())
np.savez(FOLDER / "expected.npz", images=images, logits=model(images).logits)
