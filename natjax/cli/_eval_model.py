"""What `natjax eval` does with a model of any task: all images in batches over all devices and processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor
    from natjax_train.tasks.base import Task

_MAX_CORRUPT = 100


def measured(
    args: argparse.Namespace,
    net: Any,
    processor: NatImageProcessor,
    task: Task,
    source: Any,
    progress: Progress,
    through: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Any:
    """Returns the task's result.

    Args:
        args: of `natjax eval`.
        net: the model.
        processor: prepares images for it.
        task: what is measured.
        source: the images.
        progress: shows how far it is, of the leading process.
        through: what batches pass before they are judged.
    """
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from natjax_train import evaluate, mesh, start, step

    mean, std = start.normalisation(processor)
    devices = mesh.make_mesh(args.mesh)
    mesh.check_batch(devices, args.batch_size)
    too_large = f"{args.batch_size} images at once do not fit into a device's memory; give a smaller --batch-size."
    with explain_out_of_memory(too_large), jax.set_mesh(devices):
        _, graphdef, params = step.split_model(net)
        whole = NamedSharding(devices, PartitionSpec())
        params, stats = jax.device_put(jax.tree.map(np.asarray, (params, step.batch_stats(net))), whole)
        eval_step = step.make_eval_step(graphdef, task)
        return evaluate.measure(
            task,
            lambda inputs: eval_step(params, inputs, stats),
            source,
            processor,
            batch_size=args.batch_size,
            mean=mean,
            std=std,
            mesh=devices,
            through=through,
            progress=progress.update if jax.process_index() == 0 else None,
            workers=args.workers,
            max_corrupt=_MAX_CORRUPT,
            report=progress.complain,
        )
