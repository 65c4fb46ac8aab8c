"""Reshapes of arrays whose shardings are part of their types: meshes with Explicit axes."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec


def spec_of(x: jax.Array) -> tuple:
    """Returns where an array's axes lie on the mesh; all None where no mesh is explicit."""
    return tuple(jax.typeof(x).sharding.spec)


def reshape(x: jax.Array, shape: tuple[int, ...], spec: tuple) -> jax.Array:
    """Reshapes to `shape`, whose axes lie where `spec` says.

    JAX cannot know which part of a split axis keeps a mesh axis, and of an axis of length 1 takes it to the next one.
    """
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(*spec) if any(spec) else None)
