"""What differs between versions of JAX."""

from __future__ import annotations

import jax


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Returns the manual mesh axes over which a value varies inside `jax.shard_map`."""
    aval = jax.typeof(x)
    manual = getattr(aval, "mat", None)
    return frozenset(getattr(aval, "vma", ()) if manual is None else manual.varying)
