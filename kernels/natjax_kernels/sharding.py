"""Arrays whose shardings are part of their types, as on meshes with Explicit axes, which is what `jax.make_mesh` makes.

Shardings name their mesh: it is that of the arrays. Where maps are split, `jax.set_mesh` may name no other one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes


def spec_of(x: jax.Array) -> tuple:
    """Returns where an array's axes lie on the mesh; all None where no mesh is explicit."""
    return jax.typeof(x).sharding.spec.partitions


def mesh_of(arrays: Sequence[Any]) -> Any:
    """Returns the mesh of some arrays, else the one of `jax.set_mesh`, which may be empty; arrays may be None."""
    meshes = (jax.typeof(x).sharding.mesh for x in arrays if x is not None)
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())


def may_lie_anywhere(arrays: Sequence[Any]) -> bool:
    """Returns whether arrays may be sharded in ways that only XLA's partitioner knows: along Auto axes of several devices."""
    mesh = mesh_of(arrays)
    return mesh.size > 1 and set(mesh.axis_types) == {AxisType.Auto}


def reshape(x: jax.Array, shape: tuple[int, ...], spec: tuple) -> jax.Array:
    """Reshapes to `shape`, whose axes lie where `spec` says.

    JAX cannot know which part of a split axis keeps a mesh axis, and of an axis of length 1 takes it to the next one.
    """
    return jax.lax.reshape(x, shape, out_sharding=laid_out(x, spec))


def reshape_batch(x: jax.Array, *shape: int) -> jax.Array:
    """Reshapes to `shape`, whose first axis lies where that of x does, and no other anywhere."""
    return reshape(x, shape, (spec_of(x)[0], *(None,) * (len(shape) - 1)))


def mesh_names(place: Any) -> tuple[str, ...]:
    """Returns the axes of the mesh that an entry of a `PartitionSpec` names: none, one or several."""
    return place if isinstance(place, tuple) else (place,) if place else ()


def shards(x: jax.Array, axis: int) -> int:
    """Returns into how many parts an axis of an array is cut along Explicit axes of the mesh."""
    sharding = jax.typeof(x).sharding
    return math.prod(sharding.mesh.shape[name] for name in mesh_names(sharding.spec[axis]))


def is_summed_later(parameter: jax.Array | None) -> bool:
    """Returns whether a parameter's gradient is to be summed over devices later: its `PartitionSpec` has `reduced` axes."""
    return parameter is not None and bool(jax.typeof(parameter).sharding.spec.reduced)


def shared_along(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a parameter as an op takes it beside x, if its gradient is summed later; other parameters stay as they are.

    The op's gradient is to be summed over the axes that x is split along, and over these alone.
    """
    if not is_summed_later(parameter):
        return parameter
    sharding = jax.typeof(parameter).sharding
    spec = PartitionSpec(*sharding.spec.partitions, reduced=set(_names(x)) - set(_names(parameter)))
    return jax.sharding.reshard(parameter, NamedSharding(sharding.mesh, spec))


def beside(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a parameter of x's last axes as what is added to x, or multiplied with it: [1, ..., C] of [C].

    If its gradient is summed later, it is as long as x along the axes that x is split along: JAX has no sums of a parameter that
    all devices have and an array that is split whose gradient would be summed later.
    """
    lead = x.ndim - parameter.ndim
    if not is_summed_later(parameter):
        return jax.lax.expand_dims(parameter, range(lead))
    shape = tuple(side if names else 1 for side, names in zip(x.shape[:lead], spec_of(x), strict=False))
    return _broadcast(shared_along(parameter, x), shape, spec_of(x)[:lead])


def own_copies(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a parameter [...] as `jax.shard_map` takes it beside x: [devices that x is split over, ...], on each its own copy.

    The gradient is summed over devices afterwards, or later, see `is_summed_later`. Devices along axes of the mesh that the
    parameter itself is split along have their parts.
    """
    names = tuple(name for name in _names(x) if name not in _names(parameter))
    mesh = jax.typeof(x).sharding.mesh
    return _broadcast(shared_along(parameter, x), (math.prod(mesh.shape[name] for name in names),), (names,))


def _summed_at_once(parameter: jax.Array | None) -> jax.Array | None:
    """Returns a parameter whose gradient is not summed later."""
    if parameter is None or not is_summed_later(parameter):
        return parameter
    sharding = jax.typeof(parameter).sharding
    return jax.sharding.reshard(parameter, NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec.partitions)))


def _broadcast(x: jax.Array, shape: tuple[int, ...], spec: tuple) -> jax.Array:
    """Returns copies of x, along axes in front of its own that lie where `spec` says."""
    sharding = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec, *spec_of(x)))
    axes = range(len(shape), len(shape) + x.ndim)
    return jax.lax.broadcast_in_dim(x, (*shape, *x.shape), axes, out_sharding=sharding)


def _names(x: jax.Array) -> tuple[str, ...]:
    """Returns the axes of the mesh that x is split along."""
    return tuple(itertools.chain(*map(mesh_names, spec_of(x))))


def may_be_split(x: jax.Array, axis: int) -> bool:
    """Returns whether an axis of an array may be split over devices: whether its type does not say that it is not."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty:
        return jax.device_count() > 1
    return (mesh.size > 1 and AxisType.Auto in mesh.axis_types) or spec_of(x)[axis] is not None


def sharded_as(x: jax.Array, primal: jax.Array) -> jax.Array:
    """Gives a gradient its primal's sharding where shardings are part of the type."""
    sharding = jax.typeof(primal).sharding
    if AxisType.Explicit in sharding.mesh.axis_types and jax.typeof(x).sharding.spec != sharding.spec:
        return jax.sharding.reshard(x, sharding)
    return x


def laid_out(x: jax.Array, spec: tuple) -> NamedSharding | None:
    """Returns the sharding of axes that lie where `spec` says on the mesh of x; None where none is sharded."""
    sharding = jax.typeof(x).sharding
    reduced = sharding.spec.reduced  # of a parameter, see `is_summed_later`
    return NamedSharding(sharding.mesh, PartitionSpec(*spec, reduced=reduced)) if any(spec) or reduced else None


def check_split(query: Any, keys: Sequence[int]) -> None:
    """Checks that keys can be split over devices along Explicit axes as their queries are.

    Args:
        query: [B, *queries, N, D].
        keys: sides of the map of keys.

    Raises:
        ValueError: the number of devices does not divide the keys of an axis.
    """
    for axis, n in enumerate(keys):
        if n % (parts := shards(query, 1 + axis)):
            raise ValueError(
                f"along spatial axis {axis} queries are split over {parts} devices, and {n} keys cannot be split so. Pad the map "
                "to a multiple and pass sizes, or reshard query."
            )


def laid_alike(problem: Any) -> Any:
    """Returns a problem whose arrays lie along the same Explicit axes as its query, whatever theirs were.

    Raises:
        ValueError: the query is sharded along its channels.
    """
    mesh = _explicit_mesh(problem.arrays)
    if mesh is None:
        return problem
    batch, *sides, heads, channels = tokens = spec_of(problem.query)
    if channels:
        raise ValueError(
            f"query may be sharded along Explicit axes by its batch, its map and its heads; got {PartitionSpec(*tokens)}. "
            "Shard it by these with jax.sharding.reshard, or make the mesh with Auto axes."
        )
    additional = batch, None, heads, channels
    specs = {"key": tokens, "value": tokens, "additional_keys": additional, "additional_values": additional}
    specs |= {"query": tokens, "key_mask": (batch, *sides), "sizes": (batch,), "rpb": (heads,)}

    def laid(name, x):
        spec = (*specs[name], *(None,) * (x.ndim - len(specs[name]))) if x is not None else ()
        if x is None or spec_of(x) == spec:
            return x
        reduced = jax.typeof(x).sharding.spec.reduced - set(itertools.chain(*map(mesh_names, spec)))
        return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec, reduced=reduced)))

    return problem.with_arrays(*map(laid, problem.ARRAYS, problem.arrays))


def within_auto_axes(attend: Callable, problem: Any, *more: Any, specs: tuple) -> Any:
    """Returns `attend(problem, *more)`, whose results lie as `specs` say; XLA lays out what is between: axes are Auto inside.

    For derivatives of JAX's own: those of its gathers need `jax.set_mesh` where axes are Explicit (jax 0.12). They sum
    gradients over devices at once.
    """
    problem = problem.with_arrays(*map(_summed_at_once, problem.arrays))
    mesh = _explicit_mesh(problem.arrays)
    if mesh is None or AxisType.Manual in mesh.axis_types:  # within `jax.shard_map` they know the mesh
        return attend(problem, *more)

    def compute(arrays, *more):
        return attend(problem.with_arrays(*arrays), *more)

    explicit = tuple(n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    shardings = tuple(NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs)
    return auto_axes(compute, axes=explicit, out_sharding=shardings)(problem.arrays, *more)


def over_batch(function: Callable, arrays: tuple, shared: tuple = ()) -> Any:
    """Returns `function(*arrays, *shared)`; where the batch lies along Explicit axes, every device computes its own part.

    For what XLA's partitioner would gather the batch for, such as loops and gathers: each device has loops of its own.

    Args:
        function: of pytrees of arrays [B, ...], to such pytrees, whose rows depend on the same rows alone. It may not close over
            arrays of the mesh.
        arrays: its first arguments. Those that are not split along the batch are.
        shared: its further arguments, pytrees of arrays of which every device has all. Their gradients are summed over devices,
            or later, see `is_summed_later`.
    """
    leaves = tuple(jax.tree.leaves(arrays))
    mesh = _explicit_mesh(leaves)
    batch = None if mesh is None else next((spec_of(x)[0] for x in leaves if spec_of(x)[0]), None)
    if batch is None:  # so it is within `jax.shard_map`
        return function(*arrays, *shared)
    spec = PartitionSpec(batch)
    arrays = jax.tree.map(lambda x: jax.sharding.reshard(x, NamedSharding(mesh, spec)), arrays)
    like = next(iter(jax.tree.leaves(arrays)))
    copies = jax.tree.map(lambda x: own_copies(x, like), shared)

    def of_device(arrays: tuple, copies: tuple) -> Any:
        return function(*arrays, *jax.tree.map(lambda x: x[0], copies))

    return jax.shard_map(of_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(arrays, copies)


def over_explicit_axes(function: Callable, arrays: Sequence[jax.Array], results: Any, *, all_axes: bool = False) -> Any:
    """Returns `function(*arrays)`, which every device computes of its own parts: `jax.shard_map` of arrays as they lie.

    Gradients of arrays of which several devices have the same part are summed over these, or later, see `is_summed_later`.

    Args:
        function: of a device's parts, with collectives where it needs others'.
        arrays: along Explicit axes of a mesh. Parameters whose gradients are summed later are copied per device along the axes
            that `arrays[0]` is split along.
        results: partition specs of what it returns.
        all_axes: whether it is to be within all axes of the mesh, as calls of kernels are, and not only those that arrays lie
            along. `jax.vmap` cannot map an array along any of them then.
    """
    later = [is_summed_later(x) for x in arrays]
    arrays = [own_copies(x, arrays[0]) if own else x for x, own in zip(arrays, later, strict=True)]

    def of_device(*parts):
        return function(*(x[0] if own else x for x, own in zip(parts, later, strict=True)))

    specs = tuple(PartitionSpec(*spec_of(x)) for x in arrays)
    mesh = _explicit_mesh(arrays)
    explicit = (name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    names = set(explicit if all_axes else itertools.chain(*map(_names, arrays)))
    call = jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=results, axis_names=names, check_vma=False)
    return jax.jit(call)(*arrays)  # called by itself, `jax.shard_map` has no rule for some derivatives


def _explicit_mesh(arrays: Sequence[Any]) -> Any:
    """Returns the mesh along which one of some arrays is explicitly sharded, or None."""
    return next((jax.typeof(x).sharding.mesh for x in arrays if x is not None and any(spec_of(x))), None)
