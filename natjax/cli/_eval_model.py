"""What `natjax eval` does with a model of any task: all images in batches over all devices and processes; and with the data of
dense prediction."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress
from natjax.text import counted

if TYPE_CHECKING:
    from natjax.image_processing import NatImageProcessor
    from natjax_train.recipe import Recipe
    from natjax_train.tasks.base import Task

_MAX_CORRUPT = 100


def validation_images(
    data: str,
    recipe: Recipe | None,
    has_split: Callable[[str, str], bool],
    opened: Callable[[str], Any],
    whole: str,
    say: Callable[[str], None],
) -> Any:
    """Returns the validation images, or those that the model's run held out where the data have none.

    Args:
        data: folder.
        recipe: of the run that the model is of, if it is of one.
        has_split: whether a folder has a split.
        opened: opens a split of the data.
        whole: the split that the run held images out of.
        say: called with messages for people.
    """
    from natjax_train.data.split import split_images

    if recipe and recipe.val_fraction and Path(data).is_dir() and not has_split(data, "val"):
        say(f"{data} has no val: the images that the run held out are measured, if they are its data")
        return split_images(opened(whole), recipe.val_fraction, recipe.seed)["val"]
    return opened("val")


def inspected(
    source: Any, names: Sequence[str], model: str, say: Callable[[str], None]
) -> tuple[Sequence[int], list[str]]:
    """Looks for all images, and says what there is.

    Returns:
        The place of each of the data's classes among the model's, see `match_classes`, and warnings.
    """
    from natjax_train.data import match_classes

    places, matching = match_classes(source.class_names, names)
    warnings = [] if matching is None else [matching]
    source.inspect(say)
    say(f"{len(source):,} images, {counted(len(source.class_names), 'class')}; model {model}")
    for message in (*source.notes, *warnings):
        say(message)
    return places, warnings


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
