"""Models for tests of the command line, which compile in no time."""

import types

import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.configuration import NatConfig

CONFIG = NatConfig(id2label={0: "dark", 1: "bright", 2: "odd\x1b[31m"})


class Output(types.SimpleNamespace):
    """Has its fields by name, too, as natjax's outputs do."""

    def __getitem__(self, name):
        return getattr(self, name)


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
        return Output(logits=means * self.weight[...], pooler_output=means, feature_maps=maps)


class FakeDetector(nnx.Module):
    """Finds what is bright: score 0.9, class 1, a mask of its left half; and, at 0.3, the whole image, class 0."""

    traces = 0

    def __init__(self, config):
        self.config = config
        self.scores = nnx.Param(np.array([0.9, 0.3, 0.0], np.float32))

    @classmethod
    def from_pretrained(cls, checkpoint, **_):
        return cls(checkpoint.config)

    def __call__(self, pixels, image_sizes, scale_factors, *, output_masks):
        type(self).traces += 1
        batch, height, width, _ = pixels.shape
        inside = (jnp.arange(height)[:, None] < image_sizes[:, :1, None]) & (
            jnp.arange(width) < image_sizes[:, 1:, None]
        )
        bright = inside & (pixels.mean(-1) > 0)
        (top, bottom), (left, right) = (_ends(bright.any(axis)) for axis in (2, 1))
        zero = jnp.zeros(batch, jnp.int32)
        whole = jnp.stack([zero, zero, image_sizes[:, 1], image_sizes[:, 0]], -1)
        boxes = jnp.stack([jnp.stack([left, top, right, bottom], -1), whole, 0 * whole], 1).astype(np.float32)
        halves = jnp.broadcast_to(jnp.arange(28) < 14, (28, 28)).astype(np.float32)
        masks = jnp.stack([halves, jnp.ones((28, 28), np.float32), jnp.zeros((28, 28), np.float32)])
        valid = jnp.stack([bright.any((1, 2)), zero == 0, zero == 1], -1)
        order = jnp.argsort(~valid, axis=1, stable=True)  # detections come first
        return types.SimpleNamespace(
            boxes=jnp.take_along_axis(boxes / scale_factors[:, None], order[..., None], 1),
            scores=jnp.broadcast_to(self.scores[...], (batch, 3))[jnp.arange(batch)[:, None], order],
            labels=jnp.array([1, 0, -1], jnp.int32)[order],
            valid=jnp.take_along_axis(valid, order, 1),
            masks=masks[order] if output_masks else None,
        )


def _ends(flags):
    """Returns the first true index and the one behind the last, of flags [B, N]."""
    return jnp.argmax(flags, 1), flags.shape[1] - jnp.argmax(flags[:, ::-1], 1)
