"""What XLA has to be told to make good programs of these models: the one place that knows its weaknesses, by platform."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from natjax.nn.spatial import is_split, over_parts
from natjax_kernels.sharding import is_summed_later, may_lie_anywhere, over_batch, reshape, shared_along, spec_of

if TYPE_CHECKING:
    from jax.typing import DTypeLike
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


def flat_dot_general(
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
    if may_lie_anywhere([x]):  # a matrix of all tokens cannot lie as a map does
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    if is_split(x):
        return over_parts(lambda parts: flat_dot_general(parts, kernel, dimension_numbers, **options), x)
    kernel, (*places, channels) = shared_along(kernel, x), spec_of(x)
    rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]), (places[0] if places else None, channels))
    rows = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return reshape(rows, (*x.shape[:-1], kernel.shape[-1]), (*places, *spec_of(rows)[1:]))


def as_matrix(kernel: Float[Array, "*window C D"]) -> Float[Array, "_ D"]:
    """Returns a convolution's kernel as that of a linear layer on patches."""
    return reshape(kernel, (math.prod(kernel.shape[:-1]), kernel.shape[-1]), (None, None))


def conv_general_dilated(x: Float[Array, "B H W C"], kernel: Float[Array, "..."], *args: Any, **options: Any) -> Array:
    """Computes `jax.lax.conv_general_dilated`, also with a kernel whose gradient is summed over devices later.

    JAX has no rule for such convolutions; each device computes that of its own images.
    """

    def convolve(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, *args, **options)

    return over_batch(convolve, (x,), (kernel,)) if is_summed_later(kernel) else convolve(x, kernel)


def conv1x1(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "1 1 C D"],
    window_strides: Any,
    padding: Any,
    *,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    **options: Any,
) -> Float[Array, "B H W D"]:
    """Computes `jax.lax.conv_general_dilated` of a 1 x 1 convolution of stride 1 as the linear layer that it is.

    Args:
        x: the map.
        kernel: the convolution's.
        window_strides: (1, 1).
        padding: none.
        precision: of the products.
        preferred_element_type: dtype of the result.
        **options: further ones of `conv_general_dilated`: no dilation, no groups.
    """
    del options
    assert (kernel.shape[:2], tuple(window_strides), list(padding)) == ((1, 1), (1, 1), [(0, 0)] * 2)
    accuracy: dict[str, Any] = {"precision": precision, "preferred_element_type": preferred_element_type}
    return flat_dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())), **accuracy)


def conv3x3_s2(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "3 3 C D"],
    window_strides: Any,
    padding: Any,
    *,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    **options: Any,
) -> Float[Array, "B h w D"]:
    """Computes `jax.lax.conv_general_dilated` of NAT's 3 x 3 convolutions (section 3.3), on a CPU as one product of patches.

    XLA's CPU compiler takes 1.5 to 3 times as long for the convolution of an image's few channels, and 1.5 times for the
    gradients of all of them (docs/performance.md). Patches hold 9/4 of the map's numbers, and the backward pass needs them.

    Args:
        x: the map; the result's sides are half of its, rounded up.
        kernel: the convolution's.
        window_strides: (2, 2).
        padding: one row or column on every side, or none where x has the row before its own, of a map that goes on behind it.
        precision: of the products.
        preferred_element_type: dtype of the result.
        **options: further ones of `conv_general_dilated`: no dilation, no groups.
    """
    accuracy: dict[str, Any] = {"precision": precision, "preferred_element_type": preferred_element_type}
    if jax.default_backend() != "cpu" or may_lie_anywhere([x]):  # whose convolutions XLA's partitioner gives halos
        return conv_general_dilated(x, kernel, window_strides, padding, **accuracy, **options)
    assert (kernel.shape[:2], tuple(window_strides)) == ((3, 3), (2, 2))
    assert {1, *(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())} == {1}
    assert options.get("feature_group_count", 1) == options.get("batch_group_count", 1) == 1
    return flat_dot_general(_patches(x, padding), as_matrix(kernel), (((3,), (0,)), ((), ())), **accuracy)


def _patches(x: Float[Array, "B H W C"], padding: Any) -> Float[Array, "B h w 9*C"]:
    """Returns the 3 x 3 patches around every second token of every second row, in a kernel's order.

    From pairs of rows and of columns, so that two thirds of a patch's row lie together in memory.
    """
    ends = [(a, b + (a + side + b) % 2) for side, (a, b) in zip(x.shape[1:3], padding, strict=True)]  # to whole pairs
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    x = _in_pairs(_in_pairs(x, 1), 3)  # [B, rows / 2, 2, columns / 2, 2, C]
    x = jax.lax.collapse(x, 4)
    rows = (x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0])
    channels = x.shape[-1] // 2
    return jnp.concatenate([part for row in rows for part in (row[:, :, :-1], row[:, :, 1:, :channels])], axis=-1)


def _in_pairs(x: Array, axis: int) -> Array:
    """Splits an axis into pairs: [..., n, ...] -> [..., n / 2, 2, ...]."""
    shape, spec = x.shape, spec_of(x)
    shape = (*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
    return reshape(x, shape, (*spec[: axis + 1], None, *spec[axis + 1 :]))


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


def split_residual(x: Array) -> tuple[Array, Array]:
    """Returns x twice, for a residual connection and its branch."""
    first, second = _split.bind(x)
    return first, second


def _join(gradients, _) -> list:
    """Sums the gradients of both, on a CPU in a function that stays one.

    XLA's CPU compiler would fuse the sum into all that use it, together with those of all later layers: every layer's gradients
    would be summed again in each layer before it. That took half of a training step's time, and of its compilation.
    """
    present = [x for x in gradients if not isinstance(x, ad.Zero)]
    if len(present) < 2:
        return present or [gradients[0]]
    return [jax.lax.platform_dependent(*present, cpu=_sum_apart, default=jnp.add)]


# A primitive, as a function with a backward pass of its own (jax.custom_vjp) has no forward mode.
_split = Primitive("split_residual")
_split.multiple_results = True
_split.def_impl(lambda x: [x, x])
_split.def_abstract_eval(lambda x: [x, x])
ad.deflinear2(_split, _join)
batching.primitive_batchers[_split] = lambda arrays, axes: (_split.bind(*arrays), [axes[0]] * 2)
mlir.register_lowering(_split, mlir.lower_fun(lambda x: [x, x], multiple_results=True))


def _sum_apart(a: Array, b: Array) -> Array:
    with set_xla_metadata(inlineable="false"):
        return _sum(a, b)


@jax.jit
def _sum(a: Array, b: Array) -> Array:
    return a + b
