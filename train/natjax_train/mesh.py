"""Devices: "data=2,fsdp=4,space=2" as a mesh, and where parameters, optimiser state and batches lie on it.

`data` and `fsdp` split the batch, `space` splits the height of images. Along `fsdp` every large parameter (and its moments and
average) is split too, in its largest dimension that divides; a step gathers it once for use and keeps the device's own part of
its gradient, which is summed over all axes like all gradients (as a reduce-scatter where the compiler has that; on a CPU as an
all-reduce). Along `data` and `space` all is replicated. Gradients are summed once per step, however many micro-batches it has
(with dropout of attention weights, those of positional biases in every one).
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax.image_sizes import multiple_of
from natjax.meshes import SPACE, check_device_count, parse_sizes
from natjax.text import counted

if TYPE_CHECKING:
    import numpy as np

AXES = ("data", "fsdp")  # that split the batch; `SPACE` is one of meshes where it has several devices
BATCH = P(AXES)
_SKIP_NONE = (
    "Processes that share images (space) must have the same ones, and skip none: mend or replace these and start again, a run "
    "with --resume."
)
_MAPS = ("image", "label")  # of a batch, what has the images' height
_SMALL = 2048  # elements; below this a parameter costs more to gather than to hold


def parse_mesh(text: str, device_count: int) -> dict[str, int]:
    """Returns the size of every axis; an empty text means all devices along data.

    Raises:
        ValueError: the text names no axes of this design, or more devices than there are.
    """
    axes = *AXES, SPACE
    if not text:
        return dict.fromkeys(axes, 1) | {"data": device_count}
    sizes = parse_sizes(text, axes, "data=8, data=2,fsdp=4 or data=2,space=4")
    check_device_count(sizes, device_count)
    return sizes


def make_mesh(text: str) -> Mesh:
    """Returns the mesh, with axes `data`, `fsdp` and, where it has several devices, `space`, of Explicit type: shardings are part
    of every array's type, so that a gather nobody asked for is an error and no surprise in a profile.

    Raises:
        ValueError: the text is no mesh, or leaves a process without devices.
    """
    devices = jax.devices()
    sizes = parse_mesh(text, len(devices))
    count = math.prod(sizes.values())
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh {text!r} must use all {len(devices)} devices of the {jax.process_count()} processes.")
    if sizes[SPACE] == 1:
        del sizes[SPACE]
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (AxisType.Explicit,) * len(sizes), devices=devices[:count]
    )


def images_spec() -> P:
    """Returns where images, and maps of their height, lie on the mesh of `jax.set_mesh`: [B, H, ...]."""
    return P(AXES, SPACE) if SPACE in jax.sharding.get_abstract_mesh().axis_names else BATCH


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
    """Checks that all devices along `data` and `fsdp` get as many images of every micro-batch.

    Raises:
        ValueError: it does not.
    """
    parts = math.prod(mesh.shape[name] for name in AXES)
    if batch_size % (parts * accumulate):
        micro_batches = f" x {accumulate} micro-batches (accumulate)" if accumulate > 1 else ""
        devices = (
            counted(parts, "group") + " of devices that share images"
            if SPACE in mesh.shape
            else counted(parts, "device")
        )
        raise ValueError(f"The batch size must be a multiple of {devices}{micro_batches}; got {batch_size}.")


def check_height(mesh: Mesh, task: Any, height: int, config: Any) -> None:
    """Checks that devices along `space` can have equal parts of a task's training images at every level of a model.

    Raises:
        ValueError: they cannot.
    """
    unit = height_divisor(mesh, config)
    if task.fixed_height and height % unit:
        parts, stride = mesh.shape[SPACE], last_stride(config)
        raise ValueError(
            f"Images whose height is split over {parts} devices (space) must have a multiple of {parts} x {stride} = {unit} "
            f"rows; got {height}: give another --mesh, or a new run --image-size {multiple_of(unit, height)}."
        )


def height_divisor(mesh: Mesh, config: Any) -> int:
    """Returns what divides the height of images of which devices along `space` have equal parts at every level of a model.

    It is 1 without `space`: models then take images of any height.
    """
    parts = mesh.shape.get(SPACE, 1)
    return parts * last_stride(config) if parts > 1 else 1


def last_stride(config: Any) -> int:
    """Returns the pixels per token of a model's last level, along each side."""
    trunk = config.trunk
    return trunk.patch_size * 2 ** (trunk.num_levels - 1)


def own_share(mesh: Mesh) -> tuple[int, int]:
    """Returns which part of every batch this process loads, and how many parts there are.

    Processes whose devices share images, along `space`, load the same ones.

    Raises:
        ValueError: a process would share some of its images, and others not or with other processes.
    """
    rows = mesh.devices.reshape(-1, mesh.shape.get(SPACE, 1))
    sharing = list(dict.fromkeys(frozenset(device.process_index for device in row) for row in rows))
    if sum(map(len, sharing)) > jax.process_count():
        raise ValueError(
            f"space={rows.shape[1]} must divide the {jax.local_device_count()} devices of a process, or be a multiple of them."
        )
    return next(i for i, processes in enumerate(sharing) if jax.process_index() in processes), len(sharing)


def own_loading(mesh: Mesh, **loading: Any) -> dict[str, Any]:
    """Returns arguments of a loader of this process's part of every batch, see `own_share`.

    Processes that share images skip none that cannot be read: if one of them alone did, rows of two images would be joined.

    Args:
        mesh: where the batches go.
        loading: further arguments of the loader.
    """
    share, shares = own_share(mesh)
    strict = {"max_corrupt": 0, "advice": _SKIP_NONE} if shares < jax.process_count() else {}
    return loading | strict | {"share": share, "shares": shares}


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns a batch on the devices, [global B, ...], of every process's part, [local B, ...], see `own_share`.

    Images and masks, [B, H, ...], are split along their height where `space` divides it.
    """
    shares, space = own_share(mesh)[1], mesh.shape.get(SPACE, 1)

    def put(name: str, array: np.ndarray) -> jax.Array:
        has_rows = space > 1 and name in _MAPS and array.ndim > 2 and array.shape[1] % space == 0
        sharding = NamedSharding(mesh, P(AXES, SPACE) if has_rows else BATCH)
        shape = (array.shape[0] * shares, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return {name: put(name, array) for name, array in batch.items()}


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
