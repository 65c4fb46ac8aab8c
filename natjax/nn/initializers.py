"""Initial weights."""

from __future__ import annotations

import functools
import math

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx


@functools.lru_cache  # layers that are made alike are equal
def truncated_normal(stddev: float) -> nnx.initializers.Initializer:
    """Returns an initialiser that cuts at two standard deviations.

    It gives JAX's own numbers, bit for bit, without compiling a program for every shape of a model: JAX's random numbers depend
    on key and position only, so that the first of a longer row are the same as a shorter one's.
    """
    plain = nnx.initializers.truncated_normal(stddev)

    def init(key, shape, dtype=jnp.float32, **options):
        partitionable = jax.config.jax_threefry_partitionable  # ty: ignore[missing-attribute]
        if isinstance(key, jax.core.Tracer) or not partitionable:
            return plain(key, shape, dtype, **options)
        size = math.prod(shape)
        length = max(4 ** math.ceil(math.log(max(size, 1), 4)), 4**6)  # few lengths, so that most are compiled already
        row = np.asarray(_standard_row(key, length, dtype))
        return jnp.asarray(row[:size].reshape(shape) * np.asarray(stddev, row.dtype), dtype)

    return init


def he_normal(fan: int) -> nnx.initializers.Initializer:
    """Returns He's initialiser for layers before a ReLU (arXiv 1502.01852): variance 2 / fan, truncated as above."""
    return truncated_normal(math.sqrt(2 / fan) / 0.8796256610342398)  # the deviation that is left of 1 by the cut


@functools.partial(jax.jit, static_argnums=(1, 2))
def _standard_row(key, length: int, dtype):
    return jax.random.truncated_normal(key, -2.0, 2.0, (length,), dtype)
