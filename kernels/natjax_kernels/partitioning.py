"""How calls behave under vmap, and on meshes whose axes shard the batch, the heads and the map.

XLA cannot see into a kernel, and of gathers it does not know how little they need: by default, it would gather every operand onto
every device. Attention of one batch entry and head needs no other one, and of the map a halo, so each device calls the function
on what it has. The one other collective is the sum of gradients of what several devices share.

`Call` describes a function of token arrays [B, L, N, D] or [B, N, L] and of tables [rows, N or 1, T, S] by the axes of its
operands and results, letters as in an einsum: b batch, n heads, and v0, v1, ... those that vmap maps. Where several heads of
queries share one of keys, n are those of keys, and queries have an axis more, of those that share one: they stay on one device.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax_kernels._compat import context_mesh, vary, varying_axes
from natjax_kernels.sharding import mesh_names, mesh_of, reshape, spec_of

_on_device: contextvars.ContextVar[bool] = contextvars.ContextVar("on_device", default=False)


@dataclasses.dataclass(frozen=True)
class Call:
    """A function that treats batch entries and heads independently.

    Attributes:
        function: takes and returns arrays; results without a `b` are sums over the batch.
        operands: axes of each operand, as "b s n d".
        results: axes of each result.
        spatial: letters of axes that may be sharded, too: the function, which gets what it needs of other devices by itself, is
            then called with `names`, of each letter the axes of the mesh along which it lies, or None.
        derivative: the function on one device, whose derivatives are those of the call; without it, a call has none.
        mapped: how many axes vmap maps.
    """

    function: Callable
    operands: tuple[str, ...]
    results: tuple[str, ...]
    spatial: tuple[str, ...] = ()
    derivative: Callable | None = None
    mapped: int = 0

    def __call__(self, *arrays):
        """Calls the function under whatever vmap and mesh there is; operands that are None are None to it."""
        if _on_device.get():
            return self._local({}, *arrays)
        if any(x is None for x in arrays):
            return self._of_those_given(*arrays)
        call = custom_vmap(self._on_mesh)
        call.def_vmap(self._vmap)
        call = jax.custom_jvp(call)
        call.defjvp(self._jvp)
        return call(*arrays)

    def _jvp(self, primals, tangents):
        derivative = self.derivative
        if derivative is None:
            # The first derivative never comes here: the op has a VJP rule, which calls kernels.
            raise NotImplementedError('the fused kernels have no second derivative; use implementation="xla"')
        return self(*primals), jax.jvp(lambda *arrays: list(derivative(*arrays)), primals, tangents)[1]

    def _of_those_given(self, *arrays):
        given = [x is not None for x in arrays]

        def with_nones(function):
            def call(*operands, **names):
                rest = iter(operands)
                return function(*(next(rest) if there else None for there in given), **names)

            return call

        functions = with_nones(self.function), self.derivative and with_nones(self.derivative)
        operands = tuple(itertools.compress(self.operands, given))
        call = dataclasses.replace(self, function=functions[0], operands=operands, derivative=functions[1])
        return call(*itertools.compress(arrays, given))

    def _vmap(self, size: int, batched: list[bool], *arrays):
        """Maps within each device's share: folding the mapped axis into the batch here would mix the shares of devices.

        The axis is folded into the batch there; where entries have sums or tables of their own they run one after the other.
        """
        own = any(mapped and "b" not in axes.split() for mapped, axes in zip(batched, self.operands, strict=True))
        own = own or any("b" not in axes.split() for axes in self.results)
        axis = f"v{self.mapped}"
        operands = tuple(f"{axis} {axes}" if m else axes for m, axes in zip(batched, self.operands, strict=True))
        results = tuple(f"{axis} {axes}" for axes in self.results)
        function = self._entry_by_entry if own else self._folded
        mapped = functools.partial(function, tuple(batched))
        derivative = self.derivative and functools.partial(mapped, names=dict.fromkeys(self.spatial))
        call = Call(mapped, operands, results, self.spatial, derivative, self.mapped + 1)
        return list(call(*arrays)), [True] * len(results)

    def _entry_by_entry(self, batched: tuple[bool, ...], *arrays, **names):
        mapped = [x for x, is_mapped in zip(arrays, batched, strict=True) if is_mapped]

        def entry(mapped):
            rest = iter(mapped)
            return list(self.function(*(next(rest) if m else x for x, m in zip(arrays, batched, strict=True)), **names))

        return jax.lax.map(entry, mapped)

    def _folded(self, batched: tuple[bool, ...], *arrays, **names):
        size = next(len(x) for x, is_mapped in zip(arrays, batched, strict=True) if is_mapped)
        folded = []
        for x, is_mapped, axes in zip(arrays, batched, self.operands, strict=True):
            if "b" in (letters := axes.split()):
                at = letters.index("b")  # other mapped axes may come before it
                x = jnp.moveaxis(x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)), 0, at)
                x = jax.lax.collapse(x, at, at + 2)
            folded.append(x)
        results = []
        for x, axes in zip(self.function(*folded, **names), self.results, strict=True):
            at = axes.split().index("b")
            results.append(jnp.moveaxis(x.reshape(*x.shape[:at], size, -1, *x.shape[at + 1 :]), at, 0))
        return results

    def _on_mesh(self, *arrays):
        varying = frozenset().union(*map(varying_axes, arrays))
        mesh = mesh_of(arrays)
        if varying or AxisType.Manual in mesh.axis_types:
            return [vary(x, varying) for x in self._local({}, *arrays)]
        if AxisType.Explicit in mesh.axis_types:
            return self._explicit(mesh, *arrays)
        context = context_mesh()
        if not context.empty and mesh == context.abstract_mesh:  # the partitioner infers it of arguments of jit alone
            anywhere = [NamedSharding(context, P(*(P.UNCONSTRAINED,) * x.ndim)) for x in arrays]
            arrays = map(jax.lax.with_sharding_constraint, arrays, anywhere)
        return self._automatic(*arrays)

    def _explicit(self, mesh, *arrays):
        """By `shard_map`, as the types of the operands say."""
        places = self._places([jax.typeof(x).sharding.spec for x in arrays])
        inputs, outputs = (tuple(_spec(axes, places) for axes in many) for many in (self.operands, self.results))
        call = jax.shard_map(
            lambda *local: self._summed(places, *local),
            mesh=mesh,
            in_specs=inputs,
            out_specs=outputs,
            check_vma=False,
        )
        placed = (jax.sharding.reshard(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, inputs, strict=True))
        return list(call(*placed))

    def _automatic(self, *arrays):
        """By a rule for XLA's partitioner, which alone knows the shardings of Auto axes."""

        def partition(mesh, operands, results):
            places = self._places([_spec_on(mesh, x) for x in operands])
            inputs, outputs = (
                tuple(NamedSharding(mesh, _spec(axes, places)) for axes in many)
                for many in (self.operands, self.results)
            )
            return mesh, lambda *local: self._summed(places, *local), outputs, inputs

        # Jitted, as it holds constants.
        call = custom_partitioning(jax.jit(lambda *arrays: tuple(self._local({}, *arrays))))
        rule = f"{', '.join(self.operands)} -> {', '.join(self.results)}"
        letters = dict.fromkeys(axis for axes in self.operands + self.results for axis in axes.split())
        whole = tuple(axis for axis in letters if not self._may_be_sharded(axis))
        call.def_partition(
            partition=partition, sharding_rule=rule, need_replication_factors=whole, decode_shardings=False
        )
        return list(call(*arrays))

    def _may_be_sharded(self, axis: str) -> bool:
        return axis in ("b", "n", *self.spatial) or axis.startswith("v")

    def _places(self, specs: Sequence[P]) -> dict[str, Any]:
        """Returns where on the mesh each axis is: where the first operand has it, as far as that is free."""
        places, taken = {}, set()
        for axes, spec in zip(self.operands, specs, strict=True):
            for axis, place in itertools.zip_longest(axes.split(), spec):  # what a spec leaves out is not sharded
                names = {place} if isinstance(place, str) else set(place or ())
                if self._may_be_sharded(axis) and axis not in places:
                    places[axis] = None if names & taken else place
                    taken |= names
        return {"b": None} | places

    def _local(self, places: dict[str, Any], *local):
        """Calls the function on what a device has; to calls within it there is no mesh."""
        token = _on_device.set(True)
        try:
            return self.function(
                *local, **({"names": {a: places.get(a) for a in self.spatial}} if self.spatial else {})
            )
        finally:
            _on_device.reset(token)

    def _summed(self, places: dict[str, Any], *local):
        """Calls the function, and sums over the devices that share an entry of the batch or of the map those results without."""
        results = []
        for x, axes in zip(self._local(places, *local), self.results, strict=True):
            over = [places[axis] for axis in ("b", *self.spatial) if places.get(axis) and axis not in axes.split()]
            results.append(jax.lax.psum(x, tuple(itertools.chain(*map(mesh_names, over)))) if over else x)
        return tuple(results)


def split_heads(x, axis: int, group: int):
    """Splits an axis of query heads into those of keys and the `group` that share one, if several do; see the module's text."""
    if group == 1:
        return x
    places, key_heads = list(spec_of(x)), x.shape[axis] // group
    if places[axis] is not None:
        sharding = jax.typeof(x).sharding
        if key_heads % (x.shape[axis] // sharding.shard_shape(x.shape)[axis]):  # a key head's are on several devices
            places[axis] = None
            x = jax.sharding.reshard(x, NamedSharding(sharding.mesh, P(*places)))
    shape = *x.shape[:axis], key_heads, group, *x.shape[axis + 1 :]
    return reshape(x, shape, (*places[: axis + 1], None, *places[axis + 1 :]))


def join_heads(x, axis: int, group: int):
    """Undoes `split_heads`."""
    if group == 1:
        return x
    places = spec_of(x)
    shape = *x.shape[:axis], x.shape[axis] * group, *x.shape[axis + 2 :]
    return reshape(x, shape, (*places[: axis + 1], *places[axis + 2 :]))


def _spec(axes: str, places: dict[str, Any]) -> P:
    return P(*(places.get(axis) for axis in axes.split()))


def _spec_on(mesh: Any, x: jax.ShapeDtypeStruct) -> P:
    """Returns where an operand lies, of what the partitioner says in numbers of devices.

    It splits an axis in further ways, where arrays come from others by reshapes and slices: into parts of different sizes, or
    along a part of a mesh axis. None of these have names, and the axis is taken as whole.
    """
    sides = mesh.devices.shape
    index = x.sharding.devices_indices_map((mesh.size,) * x.ndim)  # of a shape that every splitting divides
    starts = np.array([[part.start or 0 for part in index[device]] for device in mesh.devices.flat])
    places = []
    for length, start in zip(x.shape, starts.T, strict=True):
        start, parts = start.reshape(sides), len(set(start))
        steps = [start.take(min(1, n - 1), axis).flat[0] for axis, n in enumerate(sides)]
        along = sorted(np.flatnonzero(steps), key=lambda axis: -steps[axis])
        strides = mesh.size // np.cumprod([sides[axis] for axis in along], dtype=int)
        split = sum(np.indices(sides)[axis] * stride for axis, stride in zip(along, strides, strict=True))
        named = length % parts == 0 and (split == start).all()
        places.append(tuple(mesh.axis_names[axis] for axis in along) if named and along else None)
    return P(*places)
