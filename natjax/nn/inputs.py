"""What the attention layer is called with: checks, and NAT's rule for maps that are smaller than their windows.

By that rule zeros at the end of every axis are tokens like any other: the published weights were trained with it.

Letters: B batch, C channels, S additional tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from natjax.nn.spatial import gathered
from natjax_kernels.checks import as_array, check_grids, check_known
from natjax_kernels.sizes import mask_of_sizes

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def check_inputs(x: Any, kv: Any, key_mask: Any, additional_tokens: Any, *, rank: int, dim: int) -> tuple:
    """Returns the arrays as JAX's, None where they are None.

    Args:
        x: [B, *queries, C].
        kv: [B, *spatial, C] or None.
        key_mask: [B, *spatial] bool or None.
        additional_tokens: [B, S, C] or None.
        rank: number of spatial axes.
        dim: channels C.

    Raises:
        TypeError: one is no array.
        ValueError: one does not fit the layer or the others.
    """
    arrays = {"x": x, "kv": kv, "key_mask": key_mask, "additional_tokens": additional_tokens}
    arrays = {name: y if y is None and name != "x" else as_array(name, y) for name, y in arrays.items()}
    x, kv, key_mask, additional_tokens = arrays.values()
    axes = {"x": f"{rank} spatial axes", "kv": f"{rank} spatial axes", "additional_tokens": "tokens"}
    for name, between in axes.items():
        y = arrays[name]
        if y is None:
            continue
        fits = y.ndim == (rank if "spatial" in between else 1) + 2 and y.shape[-1] == dim
        if not fits or y.shape[0] != x.shape[0] or not jnp.issubdtype(y.dtype, jnp.floating):
            batch = "batch" if y is x else x.shape[0]
            raise ValueError(
                f"{name} must be floating point [{batch}, {between}, {dim}]; got {y.dtype} of shape {y.shape}."
            )
        check_known(name, y.shape)
    if kv is not None and 0 in (*x.shape[1:], *kv.shape[1:]):
        raise ValueError(f"with kv, x and kv must have tokens; got shapes {x.shape} and {kv.shape}.")
    keys = (x if kv is None else kv).shape[:-1]
    if key_mask is not None and (key_mask.shape != keys or key_mask.dtype != bool):
        raise ValueError(
            f"key_mask must be bool [batch, *spatial] of the keys, here {keys}; got {key_mask.dtype} of shape "
            f"{key_mask.shape}."
        )
    return x, kv, key_mask, additional_tokens


def cut_to_sizes(x: Float[Array, "B *spatial C"], kv: Any, sizes: Any) -> tuple[Array, Array]:
    """Returns x with zeros past every entry's own size, as alone it is padded, and the sizes as int32.

    Args:
        x: maps.
        kv: must be None.
        sizes: [B, spatial axes] integers.

    Raises:
        TypeError: sizes is no array.
        ValueError: sizes does not fit x, or kv is given.
    """
    sizes, rank = as_array("sizes", sizes), x.ndim - 2
    if kv is not None:
        raise ValueError("sizes are for self-attention; with kv, leave them out, and hide tokens by a key_mask.")
    if sizes.shape != (x.shape[0], rank) or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(
            f"sizes must be integers [{x.shape[0]}, {rank}], one per spatial axis; got {sizes.dtype} of shape {sizes.shape}."
        )
    sizes = sizes.astype(jnp.int32)
    return jnp.where(mask_of_sizes(sizes, x.shape[1:-1])[..., None], x, 0), sizes


def pad_maps(
    x: Float[Array, "B *queries C"],
    kv: Float[Array, "B *spatial C"] | None,
    key_mask: Bool[Array, "B *spatial"] | None,
    *,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    periodic: Sequence[bool],
) -> tuple[Any, Any, Any]:
    """Returns x, kv and mask with at least `kernel_size * dilation` keys along every axis.

    Queries on another grid than the keys stay so many times as many or as few. Where there is a mask, it hides the padding.
    An axis that is padded is no longer split over devices: every device has all of it.

    Args:
        x: what queries are of, and keys, too, where kv is None.
        kv: what keys are of.
        key_mask: True for keys that may be seen.
        kernel_size: of every axis; -1, all of it, needs no padding.
        dilation: of every axis.
        periodic: of every axis.

    Raises:
        ValueError: neither grid is a multiple of the other, or an axis that is too short is periodic.
    """
    queries, keys = x.shape[1:-1], (x if kv is None else kv).shape[1:-1]
    finer, coarser = ((1,) * len(keys),) * 2 if kv is None else check_grids(queries, keys)
    sides = []
    for axis, (n, k, d, step) in enumerate(zip(keys, kernel_size, dilation, coarser, strict=True)):
        if k * d > n and periodic[axis]:
            raise ValueError(
                f"a periodic axis cannot be padded, so it must have at least kernel_size * dilation tokens; along spatial axis "
                f"{axis}, {k} * {d} = {k * d} > {n}. Use a smaller window."
            )
        sides.append(max(n, -(-k * d // step) * step))
    missing = [(0, side - n) for side, n in zip(sides, keys, strict=True)]
    padded = [axis for axis, (_, end) in enumerate(missing, 1) if end]
    if not padded:
        return x, kv, key_mask
    x = gathered(x, padded)
    if key_mask is not None:
        key_mask = jnp.pad(gathered(key_mask, padded), ((0, 0), *missing))
    if kv is None:
        return jnp.pad(x, ((0, 0), *missing, (0, 0))), None, key_mask
    kv = jnp.pad(gathered(kv, padded), ((0, 0), *missing, (0, 0)))
    missing = [(0, end * f // step) for (_, end), f, step in zip(missing, finer, coarser, strict=True)]
    return jnp.pad(x, ((0, 0), *missing, (0, 0))), kv, key_mask
