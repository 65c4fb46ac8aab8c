"""A model for tests of the command line, which compiles in no time."""

import types

import numpy as np
from flax import nnx

from natjax.configuration import NatConfig

CONFIG = NatConfig(id2label={0: "dark", 1: "bright", 2: "odd\x1b[31m"})


class FakeModel(nnx.Module):
    """Says 'bright' the more, the brighter an image is; stands in for every kind of model."""

    traces = 0

    def __init__(self, config, out_features=("stage4",)):
        self.config, self.out_features = config, out_features
        self.weight = nnx.Param(np.array([-1.0, 1.0, 0.0], np.float32))

    @classmethod
    def from_pretrained(cls, checkpoint, *, dtype, implementation, **options):
        return cls(FakeModel.config, **options)

    def __call__(self, pixels):
        type(self).traces += 1
        means = pixels.mean((1, 2, 3))[:, None]
        maps = tuple(pixels[:, :: 2**i, :: 2**i] for i, _ in enumerate(self.out_features))
        return types.SimpleNamespace(logits=means * self.weight[...], pooler_output=means, feature_maps=maps)
