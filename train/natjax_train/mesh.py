"""Devices: "data=2,fsdp=4" as a mesh, and where parameters, optimiser state and batches lie on it.

Both axes split the batch. Along `fsdp` every large parameter (and its moments and average) is split too, in its largest
dimension that divides; a step gathers it once for use and keeps the device's own part of its gradient, which is summed over both
axes like all gradients (as a reduce-scatter where the compiler has that; on a CPU as an all-reduce). Along `data` all is
replicated. Gradients of kernels are summed once per step, however many micro-batches it has.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax.text import counted

if TYPE_CHECKING:
    import numpy as np

AXES = ("data", "fsdp")
BATCH = P(AXES)
_SMALL = 2048  # elements; below this a parameter costs more to gather than to hold


def parse_mesh(text: str, device_count: int) -> dict[str, int]:
    """Returns the size of every axis; an empty text means all devices along data.

    Raises:
        ValueError: the text names no axes of this design, or more devices than there are.
    """
    sizes = dict.fromkeys(AXES, 1)
    if not text:
        return {**sizes, "data": device_count}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in AXES or not size.strip().isdecimal() or int(size) < 1:
            raise ValueError(f"mesh must look like data=8 or data=2,fsdp=4; got {text!r}.")
        sizes[name.strip()] = int(size)
    if math.prod(sizes.values()) > device_count:
        raise ValueError(
            f"mesh {text!r} needs {math.prod(sizes.values())} devices; there are {device_count}. On a CPU, "
            "JAX_NUM_CPU_DEVICES=8 makes eight."
        )
    return sizes


def make_mesh(text: str) -> Mesh:
    """Returns the mesh, with axes `data` and `fsdp` of Explicit type: shardings are part of every array's type, so that a
    gather nobody asked for is an error and no surprise in a profile.

    Raises:
        ValueError: the text is no mesh, or leaves a process without devices.
    """
    devices = jax.devices()
    sizes = parse_mesh(text, len(devices))
    count = math.prod(sizes.values())
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh {text!r} must use all {len(devices)} devices of the {jax.process_count()} processes.")
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Explicit,) * 2, devices=devices[:count])


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of every array of a state (or of its `jax.eval_shape`)."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"])), state)


def _spec(shape: tuple[int, ...], parts: int) -> P:
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < _SMALL or not fitting:
        return P()
    largest = max(fitting, key=lambda axis: shape[axis])
    return P(*("fsdp" if axis == largest else None for axis in range(len(shape))))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Checks that every device gets as many images of every micro-batch.

    Raises:
        ValueError: it does not.
    """
    if batch_size % (mesh.size * accumulate):
        micro_batches = f" x {accumulate} micro-batches (accumulate)" if accumulate > 1 else ""
        raise ValueError(
            f"The batch size must be a multiple of {counted(mesh.size, 'device')}{micro_batches}; got {batch_size}."
        )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns a batch on the devices, [global B, ...], of every process's part, [local B, ...]."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def start_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of a run: as the arguments say, or as SLURM does where srun started several tasks.

    A task of srun with a node to itself takes all of its devices; of several tasks on a node each takes one GPU, that of its
    local index. `JAX_LOCAL_DEVICE_IDS` overrides both.

    Raises:
        ValueError: some of the three arguments are given, but not all.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError("A run of several processes needs coordinator (host:port), their number and this one's index.")
    # What srun sets, for its own tasks: a batch script and an interactive shell have SLURM_NTASKS, too, and are one process.
    tasks, nodes = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", "0")) for what in ("TASKS", "NODES"))
    # JAX gives every task of srun one GPU, also one that has a node of eight to itself; an empty list stands for all.
    whole_node = 0 < tasks <= nodes and not os.environ.get("JAX_LOCAL_DEVICE_IDS")
    devices: list[int] | None = [] if whole_node else None
    if all(given):
        jax.distributed.initialize(coordinator, count, index, local_device_ids=devices)
    elif tasks > 1:
        jax.distributed.initialize(local_device_ids=devices)
