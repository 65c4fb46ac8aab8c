"""How damage to what a run saved is noticed: a digest per array, a checksum per small document."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from natjax.errors import CheckpointError

if TYPE_CHECKING:
    from jaxtyping import Array, UInt32


@jax.jit
def digests(tree: Any) -> UInt32[Array, "leaves"]:
    """Returns `digest` of every array, computed where the arrays are, however they are sharded."""
    return jnp.stack([digest(jnp, leaf) for leaf in jax.tree.leaves(tree)])


def digest(xp: Any, leaf: Any) -> Any:
    """Returns a sum of an array's bits, weighted by position, modulo 2**32; `xp` is numpy or jax.numpy."""
    bits = leaf.view(f"uint{8 * leaf.dtype.itemsize}").astype(xp.uint32)
    weight = xp.ones((1,) * leaf.ndim, xp.uint32)
    for axis, size in enumerate(leaf.shape):
        along = [size if other == axis else 1 for other in range(leaf.ndim)]
        weight = weight * xp.uint32(0x9E3779B1) + xp.arange(size, dtype=xp.uint32).reshape(along)
    return xp.sum(bits * (2 * weight + 1), dtype=xp.uint32)  # odd: no bit of an element is lost


def sealed(value: Any) -> str:
    """Returns the value as JSON with a checksum."""
    text = json.dumps(value)
    return json.dumps({"state": text, "crc32": zlib.crc32(text.encode())})


def unsealed(path: Path, what: str) -> Any:
    """Returns the value of a file that holds what `sealed` returned.

    Raises:
        CheckpointError: there is no such file, or it is not what was saved.
        OSError, ValueError, KeyError, TypeError: nor does it look like it.
    """
    if not path.exists():
        raise CheckpointError(f"its {what} is missing ({path.name})")
    document = json.loads(path.read_text())
    if zlib.crc32(document["state"].encode()) != document["crc32"]:
        raise CheckpointError(f"its {what} is not what was saved")
    return json.loads(document["state"])
