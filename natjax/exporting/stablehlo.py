"""StableHLO: what `jax.export` writes and reads, for several platforms at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax import export

if TYPE_CHECKING:
    from natjax.exporting.functions import Function
    from natjax.exporting.options import Options


def serialized(function: Function, options: Options) -> bytes:
    """Returns the bytes of a `jax.export.Exported`."""
    batch = export.symbolic_shape("batch")[0] if options.batch is None else options.batch
    exported = export.export(jax.jit(function.call), platforms=tuple(options.platforms))(function.images(batch))
    return bytes(exported.serialize())


class Program:
    """A file of StableHLO.

    Attributes:
        shape: of the images [B, H, W, C]; B is None where it takes any number.
        dtype: of the images.
        outputs: names of what it returns.
    """

    def __init__(self, path: Path):
        """Reads it; whatever is wrong with the file is an exception of any kind."""
        exported = export.deserialize(bytearray(path.read_bytes()))
        (images,) = exported.in_avals
        shapes = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        self.shape = tuple(side if isinstance(side, int) else None for side in images.shape)
        self.dtype, self.outputs = np.dtype(images.dtype), tuple(shapes)
        self._call = jax.jit(exported.call)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns its outputs by name."""
        return jax.device_get(self._call(images))
