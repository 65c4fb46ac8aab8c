"""Arrays whose shardings are part of their types, as on meshes with Explicit axes, which is what `jax.make_mesh` makes.

Shardings name their mesh: it is that of the arrays, and need not be the one of `jax.set_mesh`.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def spec_of(x: jax.Array) -> tuple:
    """Returns where an array's axes lie on the mesh; all None where no mesh is explicit."""
    return tuple(jax.typeof(x).sharding.spec)


def reshape(x: jax.Array, shape: tuple[int, ...], spec: tuple) -> jax.Array:
    """Reshapes to `shape`, whose axes lie where `spec` says.

    JAX cannot know which part of a split axis keeps a mesh axis, and of an axis of length 1 takes it to the next one.
    """
    return jax.lax.reshape(x, shape, out_sharding=laid_out(x, spec))


def sharded_as(x: jax.Array, primal: jax.Array) -> jax.Array:
    """Gives a gradient its primal's sharding where shardings are part of the type."""
    sharding = jax.typeof(primal).sharding
    if AxisType.Explicit in sharding.mesh.axis_types and jax.typeof(x).sharding.spec != sharding.spec:
        return jax.sharding.reshard(x, sharding)
    return x


def laid_out(x: jax.Array, spec: tuple) -> NamedSharding | None:
    """Returns the sharding of axes that lie where `spec` says on the mesh of x; None where none is sharded."""
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec)) if any(spec) else None
