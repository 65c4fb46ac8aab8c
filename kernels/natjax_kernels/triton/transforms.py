"""What makes a call of the kernels a citizen of JAX: vmap, and meshes whose axes shard the batch and the heads.

XLA knows nothing of the inside of a kernel: left alone, it would gather every operand onto every device. Attention of one batch
entry and head needs no other one, so each device calls the kernels on what it has. The one collective is the sum of the table's
gradient over the devices that share the batch.

`Call` describes a function of token arrays [B, L, N, D] or [B, N, L] and of tables [rows, N or 1, T, S] by the axes of its
operands and results, letters as in an einsum: b batch, n heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax_kernels._compat import vary, varying_axes


@dataclasses.dataclass(frozen=True)
class Call:
    """A function that treats batch entries and heads independently.

    Attributes:
        function: takes and returns arrays; results without a `b` are sums over the batch.
        operands: axes of each operand, as "b s n d".
        results: axes of each result.
    """

    function: Callable
    operands: tuple[str, ...]
    results: tuple[str, ...]

    def __call__(self, *arrays):
        """Calls the function under whatever vmap and mesh there is."""
        call = custom_vmap(self._on_mesh)
        call.def_vmap(self._vmap)
        return call(*arrays)

    def _vmap(self, size: int, batched: list[bool], *arrays):
        """Takes the mapped axis into the batch, or works through it where every entry has sums or tables of its own."""
        own = any(mapped and "b" not in axes for mapped, axes in zip(batched, self.operands, strict=True))
        if own or any("b" not in axes for axes in self.results):
            mapped = [x for x, is_mapped in zip(arrays, batched, strict=True) if is_mapped]

            def entry(mapped):
                rest = iter(mapped)
                return self(*(next(rest) if m else x for x, m in zip(arrays, batched, strict=True)))

            return jax.lax.map(entry, mapped), [True] * len(self.results)
        folded = []
        for x, is_mapped, axes in zip(arrays, batched, self.operands, strict=True):
            if "b" in axes:
                x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
                x = x.reshape(-1, *x.shape[2:])
            folded.append(x)
        return [x.reshape(size, -1, *x.shape[1:]) for x in self(*folded)], [True] * len(self.results)

    def _on_mesh(self, *arrays):
        varying = frozenset().union(*map(varying_axes, arrays))
        sharding = jax.typeof(arrays[0]).sharding
        types = sharding.mesh.axis_types
        if varying or AxisType.Manual in types:
            return [vary(x, varying) for x in self.function(*arrays)]
        if AxisType.Explicit in types:
            return self._explicit(sharding, *arrays)
        return self._automatic(*arrays)

    def _explicit(self, sharding: NamedSharding, *arrays):
        """By `shard_map`, as the types of the operands say."""
        batch, _, heads, _ = sharding.spec
        inputs, outputs = (tuple(_spec(axes, batch, heads) for axes in many) for many in (self.operands, self.results))
        call = jax.shard_map(
            lambda *local: self._summed(batch, *local),
            mesh=sharding.mesh,
            in_specs=inputs,
            out_specs=outputs,
            check_vma=False,
        )
        return call(*(jax.sharding.reshard(x, spec) for x, spec in zip(arrays, inputs, strict=True)))

    def _automatic(self, *arrays):
        """By a rule for XLA's partitioner, which knows the shardings that we do not."""

        def partition(mesh, operands, results):
            batch, _, heads, _ = _padded(operands[0].sharding.spec, 4)
            inputs, outputs = (
                tuple(NamedSharding(mesh, _spec(axes, batch, heads)) for axes in many)
                for many in (self.operands, self.results)
            )
            return mesh, lambda *local: self._summed(batch, *local), outputs, inputs

        call = custom_partitioning(jax.jit(lambda *arrays: tuple(self.function(*arrays))))  # jit, as it holds constants
        rule = f"{', '.join(self.operands)} -> {', '.join(self.results)}"
        others = dict.fromkeys(axis for axis in "".join(self.operands + self.results) if axis not in "bn ")
        call.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=tuple(others))
        return list(call(*arrays))

    def _summed(self, batch, *local):
        results = self.function(*local)
        if batch is None:
            return tuple(results)
        return tuple(
            x if "b" in axes else jax.lax.psum(x, batch) for x, axes in zip(results, self.results, strict=True)
        )


def _spec(axes: str, batch, heads) -> P:
    return P(*({"b": batch, "n": heads}.get(axis) for axis in axes.split()))


def _padded(spec: P, rank: int) -> tuple:
    return (*spec, *(None,) * (rank - len(spec)))


def sharded_as(x, primal):
    """Gives a gradient its primal's sharding where shardings are part of the type."""
    sharding = jax.typeof(primal).sharding
    if AxisType.Explicit in sharding.mesh.axis_types and jax.typeof(x).sharding.spec != sharding.spec:
        return jax.sharding.reshard(x, sharding.spec)
    return x
