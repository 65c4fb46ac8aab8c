"""Neighborhood attention: the public functions and the choice of implementation.

Source: NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001); stride, causality and constraints as in NATTEN (arXiv 2504.16922).

Letters: B batch, X Y Z spatial axes, N heads (Nk of keys), D channels of a head, K kernel size, S additional keys.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp

from natjax_kernels import reference, triton, xla
from natjax_kernels.grids import unfold
from natjax_kernels.problem import Problem, make_problem
from natjax_kernels.sizes import mask_of_sizes
from natjax_kernels.xla import autodiff
from natjax_kernels.xla.weights import attend_with_weights

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

_log = logging.getLogger("natjax")

# Modules with `attend` and, where they cannot always run, `why_not` (see problem.py); the first that can is the default.
IMPLEMENTATIONS = {"triton": triton, "xla": xla, "xla_autodiff": autodiff, "reference": reference}


class _Arguments(TypedDict, total=False):
    """The arguments of the op but for tokens and what is asked of them; see `neighborhood_attention`."""

    kernel_size: Required[int | tuple[int, ...]]
    dilation: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    is_causal: bool | tuple[bool, ...]
    periodic: bool | tuple[bool, ...]
    rpb: Float[Array, "N *offsets"] | None
    scale: float | None
    logits_soft_cap: float | None
    additional_keys: Float[Array, "B S Nk D"] | None
    additional_values: Float[Array, "B S Nk Dv"] | None
    key_mask: Bool[Array, "B *spatial"] | None
    sizes: Int[Array, "B rank"] | None


_default: contextvars.ContextVar[str | None] = contextvars.ContextVar("default", default=None)


@contextlib.contextmanager
def default_implementation(name: str | None) -> Generator[None]:
    """Sets the implementation of ops that name none, while this thread traces inside the `with` block.

    For `jax.export`, which refuses calls of the fused kernels, and for programs for another device than JAX's default one:
    `with natjax.default_implementation("xla"): ...`. Functions that `jax.jit` traced before are not traced again.

    Args:
        name: as the op's `implementation`; None for the best one.

    Raises:
        ValueError: there is no such implementation.
    """
    _check_name(name)
    token = _default.set(name)
    try:
        yield
    finally:
        _default.reset(token)


@overload
def neighborhood_attention(  # ty: ignore[inconsistent-overload-implementation]
    query: Float[Array, "B *queries N D"],
    key: Float[Array, "B *spatial Nk D"],
    value: Float[Array, "B *spatial Nk Dv"],
    *,
    return_lse: Literal[False] = False,
    implementation: str | None = None,
    **arguments: Unpack[_Arguments],
) -> Float[Array, "B *queries N Dv"]: ...
@overload
def neighborhood_attention(  # ty: ignore[inconsistent-overload-implementation]
    query: Float[Array, "B *queries N D"],
    key: Float[Array, "B *spatial Nk D"],
    value: Float[Array, "B *spatial Nk Dv"],
    *,
    return_lse: Literal[True],
    implementation: str | None = None,
    **arguments: Unpack[_Arguments],
) -> tuple[Float[Array, "B *queries N Dv"], Float[Array, "B *queries N"]]: ...
def neighborhood_attention(
    query: Float[Array, "B *queries N D"],
    key: Float[Array, "B *spatial Nk D"],
    value: Float[Array, "B *spatial Nk Dv"],
    *,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    periodic: bool | tuple[bool, ...] = False,
    rpb: Float[Array, "N *offsets"] | None = None,
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    additional_keys: Float[Array, "B S Nk D"] | None = None,
    additional_values: Float[Array, "B S Nk Dv"] | None = None,
    key_mask: Bool[Array, "B *spatial"] | None = None,
    sizes: Int[Array, "B rank"] | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Float[Array, "B *queries N Dv"] | tuple[Float[Array, "B *queries N Dv"], Float[Array, "B *queries N"]]:
    """Attention of every token to the `kernel_size` tokens around it, along one, two or three axes.

    Windows shift inward at the borders, so every token has as many neighbours. A NaN or infinity reaches what sees it, the
    gradient of rpb and nothing else (with "triton", all tiles that load it: docs/kernels.md). Softmax is in float32 (float64 for
    float64 inputs).

    The op works under jit, vmap, grad, remat, on sharded batches, heads and maps, and in `jax.export` with a symbolic batch. What
    an implementation has:

    ======================================  ======  ======  ============  =========
    ..                                      triton  xla     xla_autodiff  reference
    ======================================  ======  ======  ============  =========
    windows of any kind, with rpb           yes     yes     yes           yes
    periodic axes                           yes     yes     yes           yes
    finer grids of queries, fewer key heads yes     yes     yes           yes
    coarser grids of queries                yes     yes     yes           yes
    additional keys, key_mask, soft cap     yes     yes     yes           yes
    sizes                                   no      yes     yes           yes
    maps split over devices, by halos alone yes     yes     no            no
    gradients, also of the log-sum-exp      yes     yes     yes           yes
    second derivatives (reverse)            no      yes     yes           yes
    forward mode (jvp, linearize, hessian)  no      no      yes           no
    float64                                 no      yes     yes           yes
    NaNs stay within windows                no      yes     no            yes
    ======================================  ======  ======  ============  =========

    Second derivatives of "xla" along Explicit axes need `jax.set_mesh`.
    Where JAX "can't apply forward-mode differentiation (jvp) to a custom_vjp function", use implementation="xla_autodiff".

    Args:
        query: [B, X, N, D], [B, Y, X, N, D] or [B, Z, Y, X, N, D], float32, bfloat16, float16 or float64. Like all arrays here
            one of JAX or NumPy, or what holds one, as `nnx.Param` does. Along every axis there may be r times as many
            queries as keys: query i then has the window of key i // r; or r times as few: that of key i * r + r // 2.
        key: like query; the heads may be fewer, Nk of a number that divides N: query head n attends with key head
            n // (N // Nk) (grouped-query attention).
        value: like key, with any number of channels.
        kernel_size: neighbours along every axis (or one number for all), at least 2; `kernel_size * dilation` may not
            exceed the axis. Even ones see one more to the left. -1 is all of an axis.
        dilation: distance between neighbours along every axis.
        stride: queries along every axis that share a window, at most `kernel_size`.
        is_causal: whether a token sees only tokens up to itself along an axis.
        periodic: whether an axis is a ring (longitude, a panorama): windows wrap around instead of shifting inward. Query i sees
            (i + (j - kernel_size // 2) * dilation) modulo the axis, which must be a multiple of dilation * stride.
        rpb: relative positional bias [N, 2 * K - 1 per axis], added to the logits of each key by its offset from the query (or
            from the key whose window the query has).
        scale: of the logits; D ** -0.5 where None.
        logits_soft_cap: c makes c * tanh(x / c) of every scaled logit x, before the bias is added (Gemma 2, arXiv 2408.00118).
        additional_keys: [B, S, Nk, D] that every query sees beside its window, in the same softmax and without bias: registers,
            class or text tokens.
        additional_values: [B, S, Nk, Dv], their values.
        key_mask: [B, *spatial] bool, True for keys that queries may see. A query that sees none gets 0, with a log-sum-exp
            of minus infinity. Beside a mask, logits below -5e37 count as hidden.
        sizes: [B, spatial axes] integers: the size of each entry's own map, which is at the start of the arrays, of at
            least kernel_size * dilation (that of a traced array is not checked: smaller maps are seen whole). Windows shift
            inward at its own borders, so that maps of mixed sizes in a batch give what each gives alone; what is past them
            is 0, with a log-sum-exp of minus infinity.
        return_lse: whether to return the log-sum-exp, too.
        implementation: "triton" (fused kernels for NVIDIA GPUs), "xla", "xla_autodiff", "reference", or None for that of
            `default_implementation` or else the best one that runs here. A named one is never replaced by another.

    Returns:
        [B, *queries, N, Dv], of the inputs' dtype. With return_lse, that and the natural logarithm of the sum of every query's
        exponentials, [B, *queries, N] float32 (float64 for float64), both differentiable; see `merge_attentions`.

    Raises:
        TypeError: what should be an array is not one.
        ValueError: an argument is impossible; the message names it, its value and what is expected.
        NotImplementedError: the named implementation cannot run this.
    """
    problem = make_problem(
        query,
        key,
        value,
        kernel_size=kernel_size,
        dilation=dilation,
        stride=stride,
        is_causal=is_causal,
        periodic=periodic,
        rpb=rpb,
        scale=scale,
        logits_soft_cap=logits_soft_cap,
        additional_keys=additional_keys,
        additional_values=additional_values,
        key_mask=key_mask,
        sizes=sizes,
    )
    name, reason = _choose(implementation, problem)
    if implementation is None:
        _log.debug("neighborhood_attention %s %s: %s, %s", problem.query.shape, problem.window, name, reason)
    with jax.named_scope(f"neighborhood_attention_{name}"):
        out, lse = IMPLEMENTATIONS[name].attend(_without_hidden(problem))
        out, lse = _beyond_maps(problem, out, 0), _beyond_maps(problem, lse, -jnp.inf)
        out = unfold(out, problem.folded)
        return (out, unfold(lse, problem.folded)) if return_lse else out


def neighborhood_attention_with_weights(
    query: Float[Array, "B *queries N D"],
    key: Float[Array, "B *spatial Nk D"],
    value: Float[Array, "B *spatial Nk Dv"],
    *,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    periodic: bool | tuple[bool, ...] = False,
    rpb: Float[Array, "N *offsets"] | None = None,
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    additional_keys: Float[Array, "B S Nk D"] | None = None,
    additional_values: Float[Array, "B S Nk Dv"] | None = None,
    key_mask: Bool[Array, "B *spatial"] | None = None,
    sizes: Int[Array, "B rank"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> tuple[Float[Array, "B *queries N Dv"], Float[Array, "B N *queries K"]]:
    """Neighborhood attention that also returns its weights, and can drop some of them.

    It holds all weights in memory; `neighborhood_attention` does not.

    Args:
        query: see `neighborhood_attention`, as for all but the last two.
        key: see there.
        value: see there.
        kernel_size: see there.
        dilation: see there.
        stride: see there.
        is_causal: see there.
        periodic: see there.
        rpb: see there.
        scale: see there.
        logits_soft_cap: see there.
        additional_keys: see there.
        additional_values: see there.
        key_mask: see there.
        sizes: see there.
        dropout_rate: share of the weights to drop, in [0, 1); the others are rescaled by 1 / (1 - dropout_rate).
        dropout_key: a `jax.random.key`, needed where dropout_rate is above 0.

    Returns:
        The output, and the weights that made it (so after dropout) as [B, N, *queries, product of kernel sizes + S]: one per
        neighbour, in the order of the axes, 0 for those that a causal window or a smaller map does not have, and one per
        additional key.

    Raises:
        TypeError: see there.
        ValueError: see there; or dropout_rate is not in [0, 1), or above 0 without a dropout_key.
    """
    problem = make_problem(
        query,
        key,
        value,
        kernel_size=kernel_size,
        dilation=dilation,
        stride=stride,
        is_causal=is_causal,
        periodic=periodic,
        rpb=rpb,
        scale=scale,
        logits_soft_cap=logits_soft_cap,
        additional_keys=additional_keys,
        additional_values=additional_values,
        key_mask=key_mask,
        sizes=sizes,
    )
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1); got {dropout_rate}.")
    if dropout_rate and dropout_key is None:
        raise ValueError(f"dropout_rate {dropout_rate} needs a dropout_key, such as jax.random.key(0); got None.")
    out, weights = attend_with_weights(_without_hidden(problem), dropout_rate=dropout_rate, dropout_key=dropout_key)
    out, weights = (unfold(_beyond_maps(problem, x, 0), problem.folded) for x in (out, weights))
    return out, jnp.moveaxis(weights, -2, 1)


def explain(
    query: Any,
    key: Any,
    value: Any,
    *,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    periodic: bool | tuple[bool, ...] = False,
    rpb: Any = None,
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    additional_keys: Any = None,
    additional_values: Any = None,
    key_mask: Any = None,
    sizes: Any = None,
    implementation: str | None = None,
) -> str:
    """Says which implementation `neighborhood_attention` takes for these arguments on this machine, and why.

    Arguments and errors are those of `neighborhood_attention`; arrays may be `jax.ShapeDtypeStruct`.
    """
    problem = make_problem(
        query,
        key,
        value,
        kernel_size=kernel_size,
        dilation=dilation,
        stride=stride,
        is_causal=is_causal,
        periodic=periodic,
        rpb=rpb,
        scale=scale,
        logits_soft_cap=logits_soft_cap,
        additional_keys=additional_keys,
        additional_values=additional_values,
        key_mask=key_mask,
        sizes=sizes,
    )
    name, reason = _choose(implementation, problem)
    return f"{name}: {reason}"


def _without_hidden(problem: Problem) -> Problem:
    """Makes tokens 0 that a mask or sizes hide: they may be NaN, and get no gradient."""
    query, mask = problem.query, problem.key_mask
    if problem.sizes is not None:
        within = mask_of_sizes(problem.sizes, problem.spatial)
        query = jnp.where(within[..., None, None], query, 0)
        mask = within if mask is None else mask & within
    if mask is None:
        return problem
    key, value = (jnp.where(mask[..., None, None], x, 0) for x in (problem.key, problem.value))
    return dataclasses.replace(problem, query=query, key=key, value=value, key_mask=mask)


def _beyond_maps(problem: Problem, x: jax.Array, value: float) -> jax.Array:
    """Sets what queries past an entry's own map get, [B, *spatial, ...]: they saw additional keys."""
    if problem.sizes is None or problem.additional_keys is None:
        return x
    within = mask_of_sizes(problem.sizes, problem.spatial)
    return jnp.where(within.reshape(*within.shape, *(1,) * (x.ndim - within.ndim)), x, value)


def _choose(implementation: str | None, problem: Problem) -> tuple[str, str]:
    """Returns the implementation to run and why it is that one."""
    _check_name(implementation)
    implementation = implementation or _default.get()
    if implementation is not None:
        reason = _why_not(implementation, problem, named=True)
        if reason:
            raise NotImplementedError(
                f"implementation={implementation!r} cannot run: {reason}. Use implementation='xla' or None."
            )
        return implementation, "named by the caller"
    passed_over = []
    for name in IMPLEMENTATIONS:
        reason = _why_not(name, problem, named=False)
        if reason is None:
            return name, "; ".join(passed_over) or "the fastest one"
        passed_over.append(f"not {name}, as {reason}")
    raise AssertionError("xla runs everywhere")


def _check_name(implementation: str | None) -> None:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = ", ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation must be None or one of {known}; got {implementation!r}.")


def _why_not(name: str, problem: Problem, *, named: bool) -> str | None:
    why_not = getattr(IMPLEMENTATIONS[name], "why_not", None)
    return why_not and why_not(problem, named=named)
