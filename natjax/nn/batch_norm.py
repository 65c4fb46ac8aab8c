"""Batch normalisation (arXiv 1502.03167) with PyTorch's conventions, for the heads of dense prediction.

Maps are `[B, H, W, C]`; statistics are per channel, over batch, height and width. The batch is the global one: on a mesh, where
it is split over devices, the means of a jitted step are those of all devices, which PyTorch calls SyncBN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from natjax_kernels.sharding import beside

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float

EPSILON = 1e-5
MOMENTUM = 0.1  # PyTorch's: the part of a new batch in the running statistics. (Flax's is that of the old ones.)


class BatchNorm(nnx.Module):
    """Batch normalisation with running statistics.

    A new layer normalises by its running statistics. `nnx.view(model, use_running_average=False)` normalises by those of the
    batch and updates the running ones in place: variables of type `nnx.BatchStat`. As in PyTorch, the running variance is
    that of a sample (divided by n - 1), while the batch is normalised by that of a population (divided by n).

    Attributes:
        scale: `nnx.Param` [C].
        bias: `nnx.Param` [C].
        mean: `nnx.BatchStat` float32 [C], starts at 0.
        var: `nnx.BatchStat` float32 [C], starts at 1.
        num_batches_tracked: `nnx.BatchStat` int32 [], how many batches the running statistics have seen.
    """

    def __init__(self, features: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del rngs  # nothing is random; taken as every layer takes it
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.use_running_average = True

    def set_view(self, use_running_average: bool | None = None):
        """Args of `nnx.view`:
        use_running_average: False normalises by the batch's statistics and updates the running ones.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: Float[Array, "B H W C"], counted: Bool[Array, " B"] | None = None) -> Float[Array, "B H W C"]:
        """Normalises in float32 (float64 for float64 maps); returns the compute dtype.

        Args:
            x: maps.
            counted: which maps the batch's statistics are of; None for all. The others are padding. Without any, the running
                statistics stay as they are.

        Raises:
            ValueError: the batch's statistics would be of one value per channel.
        """
        wide = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
        mean, var = (
            (self.mean[...], self.var[...]) if self.use_running_average else self._batch_statistics(wide, counted)
        )
        scale, bias = (beside(p[...].astype(wide.dtype), x) for p in (self.scale, self.bias))
        y = (wide - mean.astype(wide.dtype)) * (jax.lax.rsqrt(var.astype(wide.dtype) + EPSILON) * scale) + bias
        return y.astype(self.dtype or jnp.promote_types(x.dtype, self.scale[...].dtype))

    def _batch_statistics(self, x: Array, counted: Array | None) -> tuple[Array, Array]:
        values = math.prod(x.shape[:-1])
        if values < 2:
            raise ValueError(
                f"Expected more than 1 value per channel to normalise by a batch's statistics; got shape {x.shape}. Use a larger "
                "batch or larger images, or running statistics: nnx.view(model, use_running_average=True)."
            )
        where, count = None, jnp.asarray(values, x.dtype)
        if counted is not None:
            where = counted[:, None, None, None]
            count = jnp.sum(counted, dtype=x.dtype) * math.prod(x.shape[1:3])
        mean = jnp.sum(x, axis=(0, 1, 2), where=where) / jnp.maximum(count, 1)
        # Two passes, as float32 loses small variances in one.
        squares = jnp.sum(jnp.square(x - mean), axis=(0, 1, 2), where=where)
        var = squares / jnp.maximum(count, 1)
        for running, new in ((self.mean, mean), (self.var, squares / jnp.maximum(count - 1, 1))):
            new = jax.lax.stop_gradient(new).astype(jnp.float32)
            updated = (1 - MOMENTUM) * running[...] + MOMENTUM * new
            running[...] = jnp.where(count > 0, updated, running[...])
        self.num_batches_tracked[...] = self.num_batches_tracked[...] + jnp.asarray(count > 0, jnp.int32)
        return mean, var
