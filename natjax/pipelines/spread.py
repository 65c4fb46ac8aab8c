"""Images that are split over devices: padded to what divides, and outputs cut back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from natjax.configuration import NatConfig
from natjax.image_sizes import multiple_of


class Spread:
    """Runs a model on images that lie on several devices, each of which has a part.

    Every map of the model has to be split equally, so sides are padded with zeros to a multiple of the pixels per token of the
    last level, times devices. Padded images give what they give alone: the model is told which pixels are theirs.
    """

    def __init__(self, sharding: NamedSharding, config: NatConfig):
        """Takes where images [B, H, W, C] lie, and the configuration of the model that takes them.

        Raises:
            ValueError: something else than height and width is split.
        """
        self.images, devices = sharding, sharding.mesh.size
        self.parameters = NamedSharding(sharding.mesh, PartitionSpec())
        batch, height, width, channels = (devices // part for part in sharding.shard_shape((devices,) * 4))
        if batch > 1 or channels > 1:
            raise ValueError(
                f"images may be split by height and width, as by PartitionSpec(None, 'space'); got {sharding.spec}."
            )
        stride = config.patch_size * 2 ** (config.num_levels - 1)
        self.multiples = tuple(stride * parts if parts > 1 else 1 for parts in (height, width))

    def __call__(self, forward: Any, state: Any, pixels: np.ndarray) -> Any:
        """Returns a model's outputs, [B, ...] each, on the host; for arguments see `on_devices`."""
        outputs, alone = self.on_devices(forward, state, pixels)
        return jax.tree.map(lambda x, own: x[tuple(map(slice, own.shape))], jax.device_get(outputs), alone)

    def on_devices(self, forward: Any, state: Any, pixels: np.ndarray) -> tuple[Any, Any]:
        """Returns a model's outputs, [B, ...] each, of images that may be padded, and arrays with the shapes of images alone.

        Args:
            forward: of the model's state, images and, where these are padded, their own (height, width), or None; jitted, the
                last one static.
            state: lies as `parameters` says.
            pixels: [B, H, W, C] on the host.
        """
        batch, *sides, channels = pixels.shape
        shape = (batch, *map(multiple_of, self.multiples, sides), channels)
        if shape == pixels.shape:
            outputs = forward(state, self._placed(pixels, shape), None)
            return outputs, outputs
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, pixels))
        return forward(state, self._placed(pixels, shape), tuple(sides)), forward.eval_shape(*abstract, None)

    def _placed(self, array: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
        """Returns an array with zeros up to a shape, each part of which is made where it is put on its device."""

        def part(index: Any) -> np.ndarray:
            own = array[index]
            sides = [len(range(*s.indices(side))) for s, side in zip(index, shape, strict=True)]
            return np.pad(own, [(0, side - have) for side, have in zip(sides, own.shape, strict=True)])

        return jax.make_array_from_callback(shape, self.images, part)
