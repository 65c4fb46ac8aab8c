"""The op from its definition alone, in float64: every query's neighbours, written out one by one, and a softmax over them.

Nothing here comes from natjax_kernels, whose oracle it is. Source: NAT (arXiv 2204.07143), DiNAT (2209.15001), NATTEN's stride
and causality (2504.16922); periodic axes, other grids of queries, masks and additional keys as the op's docstring has them.

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

    def neighbours(self):
        """Returns for every query the keys of its window, each with its index into the bias."""
        return [self._window(self._centre(query)) for query in range(self.query_length)]

    def _centre(self, query):
        """Returns the key whose window a query has."""
        if self.query_length >= self.length:
            return query // (self.query_length // self.length)
        ratio = self.length // self.query_length
        return query * ratio + ratio // 2

    def _window(self, centre):
        group = range(centre % self.dilation, self.length, self.dilation)  # nothing else is seen
        places, own, kernel = range(len(group)), group.index(centre), self.kernel
        peers = [place for place in places if place // self.stride == own // self.stride]  # who share a window
        leader = peers[-1] if self.is_causal else peers[min(self.stride // 2, len(peers) - 1)]
        if self.is_causal:
            seen = [place for place in places if leader - kernel < place <= own]
        elif self.periodic:
            seen = [leader - kernel // 2 + j for j in range(kernel)]
        else:  # of all runs of so many places, the one whose middle is nearest to the leader
            runs = [places[start : start + kernel] for start in places[: len(places) - kernel + 1]]
            seen = min(runs, key=lambda run: abs(run[kernel // 2] - leader))
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
        scale: of the logits, or None.
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
    scale: float | None = None

    def windows(self):
        """Returns the op's keyword arguments that have one entry per axis."""
        names = ("kernel_size", "dilation", "stride", "is_causal", "periodic")
        return {name: tuple(getattr(axis, name) for axis in self.axes) for name in names}

    def options(self):
        """Returns the op's static keyword arguments."""
        return self.windows() | ({} if self.scale is None else {"scale": self.scale})

    def draw(self, dtype="float64", seed=0):
        """Returns normal arrays by their names in the op (those that the call has), the mask, and cotangents of out and lse."""
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
        arrays = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
        mask = None
        if self.masked != "none":
            mask = rng.random((self.batch, *spatial)) < rng.choice([0.2, 0.5, 0.9])
            if self.masked == "all":
                mask[0] = False
        shapes = (self.batch, *grid, self.heads, self.value_channels), (self.batch, *grid, self.heads)
        return arrays, mask, tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def neighbours(axes):
    """Returns every query's keys and their indices into the bias, flat and in row-major order: [Q, K] twice, -1 for none."""
    lengths, offsets = [axis.length for axis in axes], [2 * axis.kernel - 1 for axis in axes]
    rows = []
    for windows in itertools.product(*(axis.neighbours() for axis in axes)):
        seen = (zip(*pairs, strict=True) for pairs in itertools.product(*windows))  # places of a key, and of its bias
        rows.append([(_flat(key, lengths), _flat(bias, offsets)) for key, bias in seen])
    most = max(map(len, rows))
    table = np.array([row + [(-1, -1)] * (most - len(row)) for row in rows])
    return table[..., 0], table[..., 1]


def _flat(position, shape):
    return sum(place * math.prod(shape[axis + 1 :]) for axis, place in enumerate(position))


def attend(call, arrays, mask=None):
    """Returns out and lse of float64 arrays, as the op does. Derivatives are JAX's."""
    keys, biases = neighbours(call.axes)
    batch, *grid, heads, channels = arrays["query"].shape
    query = arrays["query"].reshape(batch, -1, heads, channels)
    scale = channels**-0.5 if call.scale is None else call.scale

    def of_every_head(x):
        """Returns [..., N, D] of [..., Nk, D]: N / Nk heads of queries, one after another, share one of keys."""
        return x[..., np.arange(heads) // (heads // call.key_heads), :]

    def of_neighbours(x):
        return of_every_head(x.reshape(batch, -1, *x.shape[-2:])[:, keys])  # [B, Q, K, N, D]

    key, value = of_neighbours(arrays["key"]), of_neighbours(arrays["value"])
    seen = jnp.broadcast_to(keys >= 0, (batch, *keys.shape))
    if mask is not None:
        seen &= mask.reshape(batch, -1)[:, keys]
    bias = arrays["rpb"].reshape(heads, -1).T[biases] if call.bias else jnp.zeros((*keys.shape, heads))
    if call.additional is not None:

        def with_more(x, name):
            more = of_every_head(arrays[name])[:, None]  # [B, 1, S, N, D]
            return jnp.concatenate([x, jnp.repeat(more, len(keys), axis=1)], axis=2)

        key, value = with_more(key, "additional_keys"), with_more(value, "additional_values")
        seen = jnp.pad(seen, [(0, 0), (0, 0), (0, call.additional)], constant_values=True)
        bias = jnp.pad(bias, [(0, 0), (0, call.additional), (0, 0)])
    seen = seen[..., None]
    logits = jnp.where(seen, (query[:, :, None] * key).sum(-1) * scale + bias, 0)  # [B, Q, K + S, N]
    largest = jax.lax.stop_gradient(logits).max(axis=2, keepdims=True, initial=-1e300, where=seen)
    weights = jnp.where(seen, jnp.exp(logits - jnp.where(seen, largest, 0)), 0)
    total, blind = weights.sum(axis=2), ~seen.any(axis=2)  # blind: who sees nothing
    out = (weights[..., None] * value).sum(axis=2) / jnp.where(blind, 1, total)[..., None]
    lse = jnp.where(blind, -jnp.inf, jnp.log(jnp.where(blind, 1, total)) + largest[:, :, 0])
    return out.reshape(batch, *grid, heads, -1), lse.reshape(batch, *grid, heads)
