"""What differs between versions of JAX."""

from __future__ import annotations

import jax
from jax._src.mesh import get_concrete_mesh


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Returns the manual mesh axes over which a value varies inside `jax.shard_map`."""
    aval = jax.typeof(x)
    manual = getattr(aval, "mat", None)
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)


def vary_alike(*arrays):
    """Casts all arrays to vary over the same manual mesh axes, as the operands of a custom VJP must.

    Inside shard_map a replicated bias takes its gradient from every shard; the derivative of this cast sums it over them.
    """
    axes = frozenset().union(*(varying_axes(x) for x in arrays if x is not None))
    return [x if x is None else vary(x, axes) for x in arrays]


def vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """Casts a value to one that varies over these manual mesh axes (too)."""
    lacking = tuple(axes - varying_axes(x))
    return jax.lax.pcast(x, lacking, to="varying") if lacking else x


def context_mesh() -> jax.sharding.Mesh:
    """Returns the mesh of `jax.set_mesh` with its devices, an empty one without; also while tracing, unlike `get_mesh`."""
    return get_concrete_mesh()
