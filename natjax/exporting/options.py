"""What an exported model is to take, checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from natjax.checks import check_count
from natjax.exporting.exported import FILES

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DTYPES = (None, "float32", "bfloat16", "float16")
_ANY_SIZE = (
    "image_size may not be 'any': windows, tiles and borders of neighborhood attention are settled for one height and width when "
    "a model is traced. Export it once for each size that you need."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of `natjax.export`, see there. Once made, `image_size` is (height, width) or None.

    Raises:
        ValueError: one is impossible.
    """

    format: str
    platforms: Sequence[str]
    batch: int | None
    image_size: Any
    input_dtype: str
    dtype: Any

    def __post_init__(self):
        if self.format not in FILES:
            raise ValueError(f"format must be {' or '.join(map(repr, FILES))}; got {self.format!r}.")
        unknown = isinstance(self.platforms, str) or not self.platforms or set(self.platforms) - set(PLATFORMS)
        if unknown:
            raise ValueError(f"platforms must be of {', '.join(PLATFORMS)}; got {self.platforms!r}.")
        if self.batch is not None:
            object.__setattr__(self, "batch", check_count("batch", self.batch, " or None for any number"))
        if self.image_size == "any":
            raise ValueError(_ANY_SIZE)
        if self.image_size is not None:
            sides = self.image_size if isinstance(self.image_size, tuple | list) else (self.image_size,) * 2
            if len(sides) != 2:
                raise ValueError(f"image_size must be a side or (height, width) in pixels; got {self.image_size!r}.")
            object.__setattr__(self, "image_size", tuple(check_count("image_size", side) for side in sides))
        if self.input_dtype not in ("float32", "uint8"):
            raise ValueError(f"input_dtype must be 'float32' or 'uint8'; got {self.input_dtype!r}.")
        name = None if self.dtype is None else jnp.dtype(self.dtype).name
        if name not in _DTYPES:
            raise ValueError(f"dtype must be float32, bfloat16 or float16; got {self.dtype!r}.")
        if self.format == "onnx" and name not in (None, "float32"):
            raise ValueError(f"ONNX is exported in float32; got dtype {name}. onnxruntime's tools make others of it.")
