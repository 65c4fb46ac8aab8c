"""The neighborhood attention layer (NAT, arXiv 2204.07143, section 3; DiNAT, arXiv 2209.15001) along one, two or three axes.

Letters: B batch, C channels, N heads, K kernel size, S additional tokens.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from natjax.nn.initializers import truncated_normal
from natjax.nn.inputs import check_inputs, cut_to_sizes, pad_maps
from natjax.nn.layers import as_rngs, dropout, layer_norm, linear, rms_norm
from natjax.nn.rotary import check_rotary, rotate
from natjax.nn.spatial import laid_as
from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights
from natjax_kernels.checks import as_number, as_soft_cap
from natjax_kernels.sharding import spec_of
from natjax_kernels.window import make_window

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Bool, Float, Int

_QK_NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}
_WEIGHTS_BY = (None, "xla", "reference")  # implementations that can return attention weights and drop them


class NeighborhoodAttention(nnx.Module):
    """Multi-head attention of every token to the `kernel_size` tokens around it, with projections and a learned bias.

        layer = natjax.NeighborhoodAttention(64, 4, kernel_size=7, dilation=2, rngs=nnx.Rngs(0))
        y = layer(x)  # [B, H, W, 64] to [B, H, W, 64]

        audio = natjax.NeighborhoodAttention(64, 4, kernel_size=(31,), is_causal=True, rngs=nnx.Rngs(0))
        globe = natjax.NeighborhoodAttention(64, 4, kernel_size=(7, 9), periodic=(False, True), rngs=nnx.Rngs(0))
        video = natjax.NeighborhoodAttention(
            64, 4, kernel_size=(-1, 7, 7), num_kv_heads=1, rpb=False, rope=True, qk_norm="rms_norm", rngs=nnx.Rngs(0)
        )
        y = video(frames, additional_tokens=text)  # [B, T, H, W, 64] and [B, S, 64] to [B, T, H, W, 64]
        y = layer(fine, coarse)  # queries of [B, 2 * H, 2 * W, 64], keys and values of [B, H, W, 64]
        y = layer(x, key_mask=mask)  # [B, H, W] bool, False for tokens that none may see

    Windows shift inward at the borders, so that every token has as many neighbours. A map smaller than `kernel_size * dilation`
    along an axis is padded with zeros at its end, the padding's projections are attended to like any token, and the result is
    cropped: the rule that the published weights were trained with. (Along a causal axis nothing before the padding sees it, and
    with a `key_mask` nothing does.)

    A new layer is in evaluation mode. `nnx.view(layer, deterministic=False)` returns its training view, whose dropouts draw from
    the `rngs` that it is called with. Parameters: `qkv` (kernel [C, 3 * C], query, key and value in turn, heads before their
    channels; with fewer heads of keys and values less), `rpb` [N, 2 * K - 1 per axis], `output` (kernel [C, C]), `q_norm` and
    `k_norm` (scale [C / N], and a LayerNorm's bias). In Flax Linen: `natjax.to_linen(natjax.NeighborhoodAttention, 64, 4,
    kernel_size=7)`.

    Source: NAT, section 3.1; relative positional bias by offset, as in the authors' code. For the op alone see
    `natjax.neighborhood_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        kernel_size: int | tuple[int, ...],
        dilation: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False,
        periodic: bool | tuple[bool, ...] = False,
        num_spatial_dims: int | None = None,
        qkv_bias: bool = True,
        rpb: bool = True,
        qk_norm: Literal["layer_norm", "rms_norm"] | None = None,
        rope: bool = False,
        rope_theta: float = 100.0,
        scale: float | None = None,
        logits_soft_cap: float | None = None,
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: nnx.initializers.Initializer | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes a layer with random weights.

        Args:
            dim: channels C, of input and output.
            num_heads: heads N, a divisor of `dim`.
            num_kv_heads: heads of keys and values, a divisor of `num_heads`, each shared by as many heads of queries in a row
                (grouped-query attention, arXiv 2305.13245); `num_heads` by default, 1 is multi-query attention.
            kernel_size: neighbours along every axis, at least 2: one per axis, or one number for all. -1 is all of an axis.
            dilation: distance between neighbours; one per axis or one for all.
            stride: queries that share a window, at most `kernel_size`; one per axis or one for all.
            is_causal: whether a token sees only tokens up to itself; one per axis or one for all.
            periodic: whether an axis is a ring, on which windows wrap around; one per axis or one for all.
            num_spatial_dims: axes between batch and channels, 1 to 3. By default as many as `kernel_size` has entries, 2 where
                that is one number.
            qkv_bias: whether the projections to query, key and value have a bias.
            rpb: whether to learn a relative positional bias; not with a kernel size of -1.
            qk_norm: what normalises each head's queries and keys over their channels, before rotation and product (ViT-22B,
                arXiv 2302.05442): a LayerNorm or an RMSNorm, both with learned weights. By default nothing does.
            rope: whether queries and keys are rotated by their positions (RoPE), counted in tokens. A head's channels are divided
                among the axes, which takes at least 2 per axis. Additional tokens have no position.
            rope_theta: base of the rotations' frequencies. 100 is RoPE-ViT's for axes of images (arXiv 2403.13298), 10000 that
                of language models: the lowest frequency turns once in about 2 * pi * rope_theta tokens. On
                periodic axes frequencies are rounded to whole turns.
            scale: of the logits; (dim / num_heads) ** -0.5 by default.
            logits_soft_cap: as for `natjax.neighborhood_attention`; none by default.
            attention_dropout: share of the attention weights to drop in training, in [0, 1).
            projection_dropout: share of the output to drop in training, in [0, 1).
            dtype: compute dtype, for instance `jnp.bfloat16`; None takes that of input and parameters together.
            param_dtype: dtype of the parameters.
            kernel_init: initialiser of both kernels and of `rpb`; truncated normal with standard deviation 0.02 by default.
            implementation: as for `natjax.neighborhood_attention`.
            rngs: source of the initial weights.

        Raises:
            ValueError: an argument is impossible; the message names it, its value and what is expected.
        """
        _check_positive("dim", dim)
        _check_positive("num_heads", num_heads)
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got dim={dim} and num_heads={num_heads}.")
        if num_spatial_dims is None:
            num_spatial_dims = np.size(kernel_size) if np.ndim(kernel_size) else 2
        if num_spatial_dims not in (1, 2, 3):
            raise ValueError(
                f"num_spatial_dims (the length of kernel_size) must be 1, 2 or 3; got {num_spatial_dims!r}."
            )
        for name, rate in (("attention_dropout", attention_dropout), ("projection_dropout", projection_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1); got {rate}.")
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check_positive("num_kv_heads", num_kv_heads)
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads; got {num_kv_heads} and {num_heads}.")
        self.dim, self.num_heads = dim, num_heads = int(dim), int(num_heads)
        self.num_kv_heads = int(num_kv_heads)
        if qk_norm is not None and qk_norm not in _QK_NORMS:
            raise ValueError(f"qk_norm must be None or one of {', '.join(map(repr, _QK_NORMS))}; got {qk_norm!r}.")
        if rope:
            check_rotary(dim // num_heads, num_spatial_dims, rope_theta)
        window = make_window(num_spatial_dims, kernel_size, dilation, stride, is_causal, periodic)
        self.kernel_size, self.dilation = window.kernel_size, window.dilation
        self.stride, self.is_causal, self.periodic = window.stride, window.is_causal, window.periodic
        self.rope, self.rope_theta = bool(rope), float(rope_theta)
        self.scale, self.logits_soft_cap = as_number("scale", scale), as_soft_cap(logits_soft_cap)
        self.implementation = implementation
        self.attention_dropout, self.deterministic = float(attention_dropout), True
        if rpb and -1 in self.kernel_size:
            raise ValueError(f"rpb needs a known kernel_size along every axis; got {self.kernel_size}. Pass rpb=False.")
        kernel_init = truncated_normal(0.02) if kernel_init is None else kernel_init
        options: dict[str, Any] = {"kernel_init": kernel_init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = linear(dim, dim + 2 * self.num_kv_heads * (dim // num_heads), use_bias=qkv_bias, **options)
        if rpb:
            shape = (num_heads, *(2 * k - 1 for k in self.kernel_size))
            self.rpb = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        else:
            self.rpb = nnx.data(None)
        self.output = linear(dim, dim, **options)
        self.dropout = dropout(float(projection_dropout))
        if qk_norm is None:
            self.q_norm, self.k_norm = nnx.data(None), nnx.data(None)
        else:  # made last, so that the other weights are those of a layer without
            options = {"epsilon": 1e-6, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
            self.q_norm, self.k_norm = (_QK_NORMS[qk_norm](dim // num_heads, **options) for _ in range(2))

    def set_view(self, deterministic: bool | None = None):
        """Args of `nnx.view`:
        deterministic: False drops attention weights and outputs.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    @overload
    def __call__(
        self,
        x: Array,
        kv: Array | None = None,
        *,
        key_mask: Array | None = None,
        additional_tokens: Array | None = None,
        sizes: Array | None = None,
        rngs: nnx.Rngs | Array | None = None,
        output_attentions: Literal[False] = False,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        x: Array,
        kv: Array | None = None,
        *,
        key_mask: Array | None = None,
        additional_tokens: Array | None = None,
        sizes: Array | None = None,
        rngs: nnx.Rngs | Array | None = None,
        output_attentions: Literal[True],
    ) -> tuple[Array, Array]: ...
    def __call__(
        self,
        x: Float[Array, "B *queries C"],
        kv: Float[Array, "B *spatial C"] | None = None,
        *,
        key_mask: Bool[Array, "B *spatial"] | None = None,
        additional_tokens: Float[Array, "B S C"] | None = None,
        sizes: Int[Array, "B rank"] | None = None,
        rngs: nnx.Rngs | Array | None = None,
        output_attentions: bool = False,
    ) -> Float[Array, "B *queries C"] | tuple[Float[Array, "B *queries C"], Float[Array, "B N *queries K"]]:
        """Attends.

        Args:
            x: [B, *spatial, C], floating point, of any size along the spatial axes. Queries are of x.
            kv: what keys and values are of, x by default (self-attention). [B, *spatial, C] with, along every axis, as many
                tokens as x, r times as many or r times as few; see `natjax.neighborhood_attention` for whose window a query has.
            key_mask: [B, *spatial] bool, True for keys that may be seen. Attention to none gives 0, before the last projection.
            additional_tokens: [B, S, C] whose keys and values every query sees beside its window: registers, class or text
                tokens.
            sizes: [B, spatial axes] integers: the size of each entry's own map, which is at the start of x. Entries of mixed
                sizes give what each gives alone; what is past their sizes is seen by none and means nothing. For
                self-attention.
            rngs: `nnx.Rngs` or a `jax.random.key` for dropouts; needed by a training view with any rate above 0.
            output_attentions: whether to return the attention weights, too. All of them are in memory then.

        Returns:
            [B, *spatial, C], of x's sizes; with `output_attentions` also the weights that made it,
            [B, N, *spatial, product of kernel sizes + S], in which a map smaller than the window shows the padding.

        Raises:
            TypeError: what should be an array is not one.
            ValueError: an array does not fit the layer or the others, or random numbers are missing.
            NotImplementedError: the named implementation cannot run this.
        """
        rank = len(self.kernel_size)
        x, kv, key_mask, tokens = check_inputs(x, kv, key_mask, additional_tokens, rank=rank, dim=self.dim)
        rngs, spatial, spec = as_rngs(rngs), x.shape[1:-1], spec_of(x)
        window: dict[str, Any] = {"kernel_size": self.kernel_size, "dilation": self.dilation, "periodic": self.periodic}
        if sizes is not None:
            x, sizes = cut_to_sizes(x, kv, sizes)
        x, kv, key_mask = pad_maps(x, kv, key_mask, **window)
        if kv is None:
            widths = self.dim, *(self.num_kv_heads * (self.dim // self.num_heads),) * 2
            # Split rather than sliced: a split's gradient is one concatenation, those of slices are padded and summed.
            query, key, value = map(self._heads, jax.lax.split(self.qkv(x), widths, axis=rank + 1))
        else:
            query, (key, value) = self._heads(self.qkv.columns(x, 0, self.dim)), self._key_value(kv)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rope:
            places = key.shape[1:-2], self.rope_theta, self.periodic
            query, key = rotate(query, *places), rotate(key, *places)
        more: dict[str, Any] = {"key_mask": key_mask}
        if sizes is not None:  # a map smaller than the window is padded as alone
            least = [k * d for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            more["sizes"] = jnp.maximum(sizes, np.asarray(least, np.int32))
        if tokens is not None:
            keys, more["additional_values"] = self._key_value(tokens)
            more["additional_keys"] = keys if self.k_norm is None else self.k_norm(keys)
        with jax.named_scope("neighborhood_attention"):
            y, weights = self._attend(query, key, value, more, rngs, output_attentions)
        if y.shape[1:-2] != spatial:
            y = laid_as(y[(slice(None), *map(slice, spatial))], (*spec[:-1], None, None))
        y = self.dropout(self.output(y.reshape(*y.shape[:-2], self.dim)), rngs=rngs)
        return (y, weights) if output_attentions else y

    def _heads(self, x):
        """Splits channels into heads: [..., N * D] -> [..., N, D]."""
        head_dim = self.dim // self.num_heads
        return x.reshape(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)

    def _key_value(self, x):
        """Returns keys and values, [..., N, D] each, by the part of the fused projection that makes no queries."""
        key, value = jnp.split(self.qkv.columns(x, self.dim), 2, axis=-1)
        return self._heads(key), self._heads(value)

    def _attend(self, query, key, value, more: dict[str, Any], rngs: nnx.Rngs | None, output_attentions: bool):
        """Returns the attended values, and the weights where they are asked for or dropped."""
        options: dict[str, Any] = {
            "kernel_size": self.kernel_size,
            "dilation": self.dilation,
            "stride": self.stride,
            "is_causal": self.is_causal,
            "periodic": self.periodic,
            "scale": self.scale,
            "logits_soft_cap": self.logits_soft_cap,
            "rpb": None if self.rpb is None else self.rpb[...],
            **more,
        }
        rate = 0.0 if self.deterministic else self.attention_dropout
        if not (output_attentions or rate):
            return neighborhood_attention(query, key, value, implementation=self.implementation, **options), None
        if self.implementation not in _WEIGHTS_BY:  # a named one is never replaced by another
            raise NotImplementedError(
                f"implementation={self.implementation!r} cannot run: it neither returns attention weights nor drops them. "
                "With output_attentions or attention dropout, build the model with implementation='xla' or None."
            )
        if rate and rngs is None:
            raise ValueError(
                "Training with attention dropout needs random numbers: pass rngs=nnx.Rngs(...) or a jax.random.key."
            )
        dropout_key = rngs.dropout() if rate and rngs is not None else None
        return neighborhood_attention_with_weights(
            query, key, value, dropout_rate=rate, dropout_key=dropout_key, **options
        )


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")
