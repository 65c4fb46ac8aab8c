"""Initial weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx


@functools.lru_cache  # layers that are made alike are equal
def truncated_normal(stddev: float) -> nnx.initializers.Initializer:
    """Returns an initialiser that cuts at two standard deviations."""
    return _scaled(functools.partial(jax.random.truncated_normal, lower=-2.0, upper=2.0), stddev)


def he_normal(fan: int) -> nnx.initializers.Initializer:
    """Returns He's initialiser for layers before a ReLU (arXiv 1502.01852): variance 2 / fan, truncated as above."""
    return truncated_normal(math.sqrt(2 / fan) / 0.8796256610342398)  # the deviation that is left of 1 by the cut


@functools.lru_cache
def glorot_uniform(fan_in: int, fan_out: int) -> nnx.initializers.Initializer:
    """Returns Glorot's initialiser (proceedings.mlr.press/v9/glorot10a, equation 16): a variance of 2 / (fan_in + fan_out)."""
    return _scaled(functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0), math.sqrt(6 / (fan_in + fan_out)))


def _scaled(distribution: Callable[..., jax.Array], scale: float) -> nnx.initializers.Initializer:
    """Returns an initialiser: a distribution's numbers times a scale.

    It gives JAX's own numbers, bit for bit, without compiling a program for every shape of a model: JAX's random numbers depend
    on key and position only, so that the first of a longer row are the same as a shorter one's.
    """

    def init(key, shape, dtype=jnp.float32, **options):
        partitionable = jax.config.jax_threefry_partitionable  # ty: ignore[missing-attribute]
        if isinstance(key, jax.core.Tracer) or not partitionable:
            return distribution(key, shape=shape, dtype=dtype, **options) * jnp.asarray(scale, dtype)
        size = math.prod(shape)
        length = max(4 ** math.ceil(math.log(max(size, 1), 4)), 4**6)  # few lengths, so that most are compiled already
        row = np.asarray(distribution(key, shape=(length,), dtype=dtype))
        return jnp.asarray(row[:size].reshape(shape) * np.asarray(scale, row.dtype), dtype)

    return init
