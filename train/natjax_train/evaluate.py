"""Evaluation of a model on a source of images, exact over ragged last batches, meshes and processes.

A task judges image by image on the device; what comes back is of the images of all processes, so that every process counts the
same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from natjax_train.data import Source
from natjax_train.mesh import own_loading, put_batch
from natjax_train.tasks.base import Task

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor

EXAMPLE, EXAMPLES = "example/", 6  # how a task's arrays begin that are kept of the first images alone, and of how many


def measure(
    task: Task,
    apply: Callable[[Any], Any],
    source: Source,
    processor: NatImageProcessor,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    through: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    progress: Callable[[int], None] | None = None,
    **loading: Any,
) -> Any:
    """Evaluates a model on all images of a source, under `jax.set_mesh`; all processes of a run call it alike.

    Args:
        task: what is measured.
        apply: from what the task's `inputs` returns to what it judges, see `step.make_eval_step`.
        source: the images.
        processor: how images are prepared; scaling and normalising is left to the device.
        batch_size: images of a batch over all processes.
        mean: per channel, of pixels 0..1.
        std: per channel.
        mesh: where the batches go, split over all its devices. Images whose height `space` does not divide into parts that a
            model's last level can have are computed by all devices that share them.
        through: what batches pass before they are judged: a function from iterable to iterable.
        progress: called with the number of images that were judged so far.
        loading: of the task's `eval_loader`: workers, worker_kind, max_corrupt, advice, report.

    Returns:
        The task's result.

    Raises:
        ValueError: there are no images, or sizes do not fit.
        ImageError: too many images cannot be read.
    """
    own = own_loading(mesh, batch_size=batch_size, **loading)
    batches = task.eval_loader(source, processor=processor, **own)
    with contextlib.closing(batches):
        return evaluate(task, apply, through(batches), source, mean=mean, std=std, mesh=mesh, progress=progress)


def evaluate(
    task: Task,
    apply: Callable[[Any], Any],
    loader: Iterable[dict[str, np.ndarray]],
    source: Source | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    progress: Callable[[int], None] | None = None,
) -> Any:
    """Evaluates a model on batches {"image": uint8 [B, H, W, C], "mask": bool [B], ...}, of which each process has its part.

    Where the mask is False there is padding. Arguments, result and errors are those of `measure`; a task whose result needs no
    source can do without.
    """
    pending, found = None, []
    examples: dict[str, list[np.ndarray]] = {}
    done, began, before = 0, time.perf_counter(), 0

    def fetch(judged: dict[str, jax.Array]) -> None:
        nonlocal done, began, before
        host = jax.device_get(judged)
        mask = host.pop("mask")
        for name in [name for name in host if name.startswith(EXAMPLE)]:
            examples.setdefault(name, []).extend(host.pop(name)[mask][: max(0, EXAMPLES - done)])
        found.append(task.kept({name: values[mask] for name, values in host.items()}))
        done += int(mask.sum())
        if len(found) == 1:
            began, before = time.perf_counter(), done
        if progress:
            progress(done)

    start = began
    for batch in loader:
        placed = put_batch(mesh, batch)
        judged = task.judge(apply(task.inputs(placed, mean, std)), placed)
        if pending is not None:
            fetch(pending)  # one batch late, so that the device is busy meanwhile
        pending = judged
    if pending is not None:
        fetch(pending)
    if not done:
        raise ValueError("There are no images to evaluate.")
    if len(found) == 1:
        began, before = start, 0
    speed = (done - before) / max(time.perf_counter() - began, 1e-9)
    judged = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return task.result(judged | {name: np.stack(few) for name, few in examples.items()}, speed, source)
