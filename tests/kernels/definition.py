"""The op from its definition alone, in float64: every query's neighbours, written out one by one, and a softmax over them.

Nothing here comes from natjax_kernels, whose oracle it is. Source: NAT (arXiv 2204.07143), DiNAT (2209.15001), NATTEN's stride
and causality (2504.16922); periodic axes, other grids of queries, masks, maps of mixed sizes and additional keys as the op's
docstring has them.

Letters: B batch, Q queries, K neighbours, S additional keys, N heads of queries, Nk heads of keys and values, D channels.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a call: its keys, its window, and its queries (None: as many as keys)."""

    length: int
    kernel_size: int
    dilation: int = 1
    stride: int = 1
    is_causal: bool = False
    periodic: bool = False
    queries: int | None = None

    @property
    def query_length(self):
        return self.length if self.queries is None else self.queries

    @property
    def kernel(self):
        """The kernel size, where -1 is as many as a dilation group has."""
        return self.length // self.dilation if self.kernel_size == -1 else self.kernel_size

    def neighbours(self, size=None):
        """Returns for every query the keys of its window, each with its index into the bias.

        Of a map that is shorter than the axis (`size`), what is past its end sees nothing and is not seen.
        """
        size = self.length if size is None else size
        centres = map(self._centre, range(self.query_length))
        return [self._window(centre, size) if centre < size else [] for centre in centres]

    def _centre(self, query):
        """Returns the key whose window a query has."""
        if self.query_length >= self.length:
            return query // (self.query_length // self.length)
        ratio = self.length // self.query_length
        return query * ratio + ratio // 2

    def _window(self, centre, length):
        group = range(centre % self.dilation, length, self.dilation)  # nothing else is seen
        places, own, kernel = range(len(group)), group.index(centre), self.kernel
        peers = [place for place in places if place // self.stride == own // self.stride]  # who share a window
        leader = peers[-1] if self.is_causal else peers[min(self.stride // 2, len(peers) - 1)]
        if self.is_causal:
            seen = [place for place in places if leader - kernel < place <= own]
        elif self.periodic:
            seen = [leader - kernel // 2 + j for j in range(kernel)]
        else:  # of all runs of so many places, the one whose middle is nearest to the leader
            runs = [places[start : start + kernel] for start in range(len(places) - kernel + 1)]
            seen = min(runs, key=lambda run: abs(run[kernel // 2] - leader), default=places)
        return [(group[place % len(group)], place - own + kernel - 1) for place in seen]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of the op without its arrays.

    Attributes:
        axes: one to three.
        heads: of queries, N.
        key_heads: of keys and values, Nk; divides N.
        channels: of queries and keys, D.
        value_channels: Dv.
        batch: B.
        bias: whether there is a relative positional bias.
        additional: additional keys, S; None for none at all.
        masked: which keys are masked: "none" (without a mask), "some", or "all" of the first batch entry and some of the others.
        sizes: of every batch entry, its own map along every axis; None where there is one map for all.
        scale: of the logits, or None.
        logits_soft_cap: c where every scaled logit x becomes c * tanh(x / c), before the bias; or None.
    """

    axes: tuple[Axis, ...]
    heads: int = 1
    key_heads: int = 1
    channels: int = 4
    value_channels: int = 4
    batch: int = 1
    bias: bool = False
    additional: int | None = None
    masked: str = "none"
    sizes: tuple[tuple[int, ...], ...] | None = None
    scale: float | None = None
    logits_soft_cap: float | None = None

    def windows(self):
        """Returns the op's keyword arguments that have one entry per axis."""
        names = ("kernel_size", "dilation", "stride", "is_causal", "periodic")
        return {name: tuple(getattr(axis, name) for axis in self.axes) for name in names}

    def options(self):
        """Returns the op's static keyword arguments."""
        logits = {"scale": self.scale, "logits_soft_cap": self.logits_soft_cap}
        return self.windows() | {name: x for name, x in logits.items() if x is not None}

    def draw(self, dtype="float64", seed=0):
        """Returns normal arrays by their names in the op (those that the call has), the mask, and cotangents of out and lse.

        Tokens that a mask or sizes hide are NaN.
        """
        rng = np.random.default_rng(seed)
        grid, spatial = [axis.query_length for axis in self.axes], [axis.length for axis in self.axes]
        shapes = {
            "query": (self.batch, *grid, self.heads, self.channels),
            "key": (self.batch, *spatial, self.key_heads, self.channels),
            "value": (self.batch, *spatial, self.key_heads, self.value_channels),
        }
        if self.bias:
            shapes["rpb"] = (self.heads, *(2 * axis.kernel - 1 for axis in self.axes))
        if self.additional is not None:
            shapes["additional_keys"] = (self.batch, self.additional, self.key_heads, self.channels)
            shapes["additional_values"] = (self.batch, self.additional, self.key_heads, self.value_channels)
        arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        mask = None
        if self.masked != "none":
            mask = rng.random((self.batch, *spatial)) < rng.choice([0.2, 0.5, 0.9])
            if self.masked == "all":
                mask[0] = False
            for name in ("key", "value"):
                arrays[name][~mask] = np.nan
        for entry, size in enumerate(self.sizes or []):
            for name in ("query", "key", "value"):
                inside = np.zeros(arrays[name].shape[1:-2], bool)
                finer = np.array(inside.shape) // spatial
                inside[tuple(map(slice, finer * size))] = True
                arrays[name][entry][~inside] = np.nan
        arrays = {name: jnp.asarray(x, dtype) for name, x in arrays.items()}
        shapes = (self.batch, *grid, self.heads, self.value_channels), (self.batch, *grid, self.heads)
        return arrays, mask, tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def neighbours(axes, size=None):
    """Returns every query's keys and their indices into the bias, flat and in row-major order: [Q, K] twice, -1 for none.

    `size` is that of a map that is smaller than the axes.
    """
    lengths, offsets = [axis.length for axis in axes], [2 * axis.kernel - 1 for axis in axes]
    rows, sizes = [], (None,) * len(axes) if size is None else size
    for windows in itertools.product(*(axis.neighbours(n) for axis, n in zip(axes, sizes, strict=True))):
        seen = (zip(*pairs, strict=True) for pairs in itertools.product(*windows))  # places of a key, and of its bias
        rows.append([(_flat(key, lengths), _flat(bias, offsets)) for key, bias in seen])
    most = math.prod(axis.kernel for axis in axes)
    table = np.array([row + [(-1, -1)] * (most - len(row)) for row in rows])
    return table[..., 0], table[..., 1]


def _flat(position, shape):
    return sum(place * math.prod(shape[axis + 1 :]) for axis, place in enumerate(position))


def attend(call, arrays, mask=None):
    """Returns out and lse of float64 arrays, as the op does. Derivatives are JAX's."""
    batch, *grid, heads, channels = arrays["query"].shape
    tables = [neighbours(call.axes, size) for size in call.sizes or [None]]
    keys, biases = (np.stack(x) for x in zip(*tables, strict=True))  # [B, Q, K], or [1, Q, K] of all entries
    scale, entry = channels**-0.5 if call.scale is None else call.scale, np.arange(batch)[:, None, None]
    seen = jnp.broadcast_to(keys >= 0, (batch, *keys.shape[1:]))
    if mask is not None:
        seen &= mask.reshape(batch, -1)[entry, keys]

    def of_every_head(x):
        """Returns [..., N, D] of [..., Nk, D]: N / Nk heads of queries, one after another, share one of keys."""
        return x[..., np.arange(heads) // (heads // call.key_heads), :]

    def of_neighbours(x):  # [B, Q, K, N, D]
        x = of_every_head(x.reshape(batch, -1, *x.shape[-2:]))[entry, keys]
        return jnp.where(seen[..., None, None], x, 0)

    key, value = of_neighbours(arrays["key"]), of_neighbours(arrays["value"])
    bias = arrays["rpb"].reshape(heads, -1).T[biases] if call.bias else jnp.zeros((*keys.shape, heads))
    within = np.broadcast_to((keys >= 0).any(axis=-1), seen.shape[:2])  # [B, Q]: everyone in a map has neighbours
    query = jnp.where(within[..., None, None], arrays["query"].reshape(batch, -1, heads, channels), 0)
    if call.additional is not None:

        def with_more(x, name):
            more = of_every_head(arrays[name])[:, None]  # [B, 1, S, N, D]
            return jnp.concatenate([x, jnp.repeat(more, keys.shape[1], axis=1)], axis=2)

        key, value = with_more(key, "additional_keys"), with_more(value, "additional_values")
        more = jnp.repeat(within[..., None], call.additional, axis=-1)
        seen = jnp.concatenate([seen, more], axis=-1)
        bias = jnp.pad(bias, [(0, 0), (0, 0), (0, call.additional), (0, 0)])
    seen = seen[..., None]
    logits = (query[:, :, None] * key).sum(-1) * scale  # [B, Q, K + S, N]
    if call.logits_soft_cap is not None:
        logits = call.logits_soft_cap * jnp.tanh(logits / call.logits_soft_cap)
    logits = jnp.where(seen, logits + bias, 0)
    largest = jax.lax.stop_gradient(logits).max(axis=2, keepdims=True, initial=-1e300, where=seen)
    weights = jnp.where(seen, jnp.exp(logits - jnp.where(seen, largest, 0)), 0)
    total, blind = weights.sum(axis=2), ~seen.any(axis=2)  # blind: who sees nothing
    out = (weights[..., None] * value).sum(axis=2) / jnp.where(blind, 1, total)[..., None]
    lse = jnp.where(blind, -jnp.inf, jnp.log(jnp.where(blind, 1, total)) + largest[:, :, 0])
    return out.reshape(batch, *grid, heads, -1), lse.reshape(batch, *grid, heads)
