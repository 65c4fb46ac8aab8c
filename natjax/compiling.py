"""What XLA has to be told to make good programs of these models: the one place that knows its weaknesses, by platform."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def compiler_options() -> dict[str, str]:
    """Returns options for `jax.jit(..., compiler_options=...)` that suit these models on JAX's default backend.

    On a CPU: the order of work that needs the least memory. XLA's own choice there is the order in which most could go on at
    a time; of these models' work, which comes one after another, that only keeps 1.5 to 2.4 times the memory alive
    (docs/performance.md), and what is fresh memory has to be paged in. Nothing elsewhere.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def product_of_tokens(
    x: Float[Array, "*tokens C"], kernel: Float[Array, "C D"], dimension_numbers: Any, **options: Any
) -> Float[Array, "*tokens D"]:
    """Computes `jax.lax.dot_general` of a linear layer on all tokens as the rows of one matrix.

    The gradient of the kernel then sums over one axis and not over batch, height and width, before which XLA's CPU compiler
    would transpose the gradients of all tokens in memory; that took as long as the product itself.

    Args:
        x: of any rank.
        kernel: the layer's.
        dimension_numbers: those of `dot_general`: the last axis of x and the first of the kernel are summed over.
        **options: further ones of `dot_general`.
    """
    assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())), dimension_numbers
    rows = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes the exact GELU (arXiv 1606.08415), x times the normal distribution's cumulative function at x.

    In float32 and float64 by erf, as PyTorch does, on every platform. jax.nn.gelu takes erfc, of two branches and three times the
    work on a CPU, to keep digits of small results that 1 + erf(x) loses; dtypes of fewer bits need them and stay with it.

    Where JAX's default backend is a CPU, the backward pass computes it again from x and keeps nothing else: fresh memory costs
    more there than the work. What that would do elsewhere is not measured.

    Args:
        x: of any shape and float dtype.
    """
    exact = functools.partial(jax.nn.gelu, approximate=False) if jnp.finfo(x.dtype).bits < 32 else _gelu_by_erf
    return jax.checkpoint(exact)(x) if jax.default_backend() == "cpu" else exact(x)


def _gelu_by_erf(x: Array) -> Array:
    return 0.5 * x * (1 + jax.lax.erf(x * np.asarray(np.sqrt(0.5), x.dtype)))


@jax.custom_vjp
def fork(x: Array) -> tuple[Array, Array]:
    """Returns x twice, for a residual connection and its branch."""
    return x, x


def _join(_, gradients: tuple[Array, Array]) -> tuple[Array]:
    """Sums the gradients of both, on a CPU in a function that stays one.

    XLA's CPU compiler would fuse the sum into all that use it, together with those of all later layers: every layer's gradients
    would be summed again in each layer before it. That took half of a training step's time, and of its compilation.
    """
    return (jax.lax.platform_dependent(*gradients, cpu=_sum_apart, default=jnp.add),)


fork.defvjp(lambda x: (fork(x), None), _join)


def _sum_apart(a: Array, b: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _sum(a, b)


@jax.jit
def _sum(a: Array, b: Array) -> Array:
    return a + b
