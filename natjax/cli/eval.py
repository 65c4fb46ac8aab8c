"""`natjax eval`: how good a model is on the validation images of a data set, and at each class.

Of a classifier top-1, top-5 and loss; of a segmenter mean IoU and pixel accuracy, see `_eval_masks`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax import run_files
from natjax.atomic import check_writable
from natjax.cli import _eval_masks
from natjax.cli._arguments import add_dtype_argument, add_process_arguments, image_size, not_negative_int, positive_int
from natjax.cli._eval_output import finite, percent, relabelled, write_csv
from natjax.cli._memory import explain_out_of_memory
from natjax.cli._output import Progress, complain, print_json, print_table
from natjax.errors import CheckpointError, install_line
from natjax.hub import locate
from natjax.text import counted, printable

if TYPE_CHECKING:
    from natjax_train.recipe import Recipe
    from natjax_train.tasks.classification import Metrics

HELP = "measure a model on the validation images of a data set"
_MODELS = {"classification": "classifier", "segmentation": "segmenter"}
_HARDEST = 10  # classes that are shown
_MAX_CORRUPT = 100
_COLUMNS = ("class", "images", "recall", "precision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with val/ in it, or 'digits'; for segmentation images/ and masks/",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        help="checkpoint: a run's folder, a path, a name of `natjax list` or a Hugging Face id; needed (digits is a small "
        "classifier of handwritten digits)",
    )
    parser.add_argument(
        "--task", choices=("classification", "segmentation"), help="what is measured (default: what the model is for)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, with every class")
    parser.add_argument("--csv", metavar="FILE", help="write a table of all classes")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="images per step, of all devices (default: 64; of a segmenter one per device)",
    )
    parser.add_argument(
        "--workers", type=not_negative_int, default=0, metavar="N", help="threads that read images (default: none)"
    )
    add_dtype_argument(parser)
    parser.add_argument("--mesh", default="", metavar="MESH", help="devices, as in data=8 (default: all)")
    add_process_arguments(parser)
    masks = parser.add_argument_group("segmentation", "The data hold images/val and masks/val, as for natjax train.")
    masks.add_argument("--multi-scale", action="store_true", help="average over six sizes and mirror images")
    masks.add_argument("--crop-size", type=image_size, metavar="N|HxW", help="slide windows instead of whole images")
    masks.add_argument(
        "--stride",
        type=image_size,
        metavar="N|HxW",
        help="from one window to the next (default: two thirds of a window)",
    )
    masks.add_argument(
        "--size-divisor",
        type=positive_int,
        default=32,
        metavar="N",
        help="round the sides of resized images to multiples of N, so that few sizes are compiled for; 1 leaves them as they "
        "are (default: 32)",
    )
    masks.add_argument("--reduce-zero-label", action="store_true", help="0 in masks is ignored, 1 is the first class")
    masks.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the data's classes: a file, ade20k or cityscapes (default: classes.txt in the data, or the model's)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints; returns 1 where images could not be read."""
    try:
        from natjax_train import data, evaluate, mesh, start, step
        from natjax_train.tasks.classification import Classification
    except ImportError as error:
        raise ImportError(f"Evaluation needs more packages ({error}): {install_line('train')}.") from error
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from natjax.models import NatForImageClassification
    from natjax.processors import load_processor
    from natjax_convert import Checkpoint

    mesh.start_processes(args.coordinator, args.processes, args.process)  # before anything asks for devices
    is_main_process = jax.process_index() == 0
    if args.csv and is_main_process:
        check_writable(args.csv)  # to be known before the evaluation, not after it
    path = locate(args.model)
    checkpoint = Checkpoint.open(path)
    if checkpoint.kind == "detection":
        raise CheckpointError(
            f"{path}: natjax eval measures classifiers and segmenters, and this is a detection model, which `natjax detect` runs."
        )
    task = args.task or ("segmentation" if checkpoint.kind == "segmentation" else "classification")
    if args.task and (task == "segmentation") != (checkpoint.kind == "segmentation"):
        raise CheckpointError(
            f"{path}: --task {args.task} measures a {_MODELS[args.task]}, and this is none: leave --task out, or give another "
            "--model."
        )
    if task == "segmentation":
        args.batch_size = (
            args.batch_size or jax.device_count()
        )  # images of one size share a batch, and few have the same
        return _eval_masks.run(args, checkpoint, _recipe_of_run(path))
    args.batch_size = args.batch_size or 64
    held_out = _split_of_run(path, args.data)
    source = data.open_source(args.data, "val", **held_out)
    net = NatForImageClassification.from_pretrained(checkpoint, dtype=args.dtype)
    names = list((net.config.id2label or {}).values())
    if not names:
        raise CheckpointError(f"{path}: the model has no classes to tell apart.")
    places, matching = data.match_classes(source.class_names, names)
    labels = np.array(places, np.int32)
    warnings = [] if matching is None else [matching]
    if held_out:
        warnings.append(
            f"{args.data} has no val/: if these are the run's data, the images that it held out are measured (val_fraction "
            f"{held_out['val_fraction']:g})"
        )
    notes: list[str] = []
    processor = load_processor(checkpoint, notes.append)
    mean, std = start.normalisation(processor)
    devices = mesh.make_mesh(args.mesh)
    mesh.check_batch(devices, args.batch_size)
    if is_main_process:
        for message in (
            f"{len(source):,} images, {len(source.class_names)} classes; model {args.model}"
            + ("" if notes else "; preprocessing from the checkpoint"),
            *notes,
            *source.notes,
            *data.remarks(source),
            *warnings,
        ):
            complain(message)
    too_large = f"{args.batch_size} images at once do not fit into a device's memory; give a smaller --batch-size."
    with Progress(len(source), "images") as progress, explain_out_of_memory(too_large), jax.set_mesh(devices):
        _, graphdef, params = step.split_model(net)
        params = jax.device_put(jax.tree.map(np.asarray, params), NamedSharding(devices, PartitionSpec()))
        task = Classification(None, names)
        metrics = evaluate.measure(
            task,
            functools.partial(step.make_eval_step(graphdef, task), params),
            source,
            processor,
            batch_size=args.batch_size,
            mean=mean,
            std=std,
            mesh=devices,
            through=functools.partial(relabelled, table=labels),
            progress=progress.update if is_main_process else None,
            workers=args.workers,
            max_corrupt=_MAX_CORRUPT,
            report=progress.complain,
        )
    skipped = len(source) - int(metrics.confusion.sum())
    if is_main_process:
        _tell(args, metrics, names, warnings)
        if skipped:
            complain(f"{counted(skipped, 'image')} could not be read and {'is' if skipped == 1 else 'are'} not counted")
    return 1 if skipped else 0


def _recipe_of_run(checkpoint: Path) -> Recipe | None:
    """Returns the recipe of the run that a model is of, if it is of one."""
    from natjax_train.recipes import find_recipe

    recipe = (checkpoint if checkpoint.is_dir() else checkpoint.parent).parent / run_files.RECIPE
    return find_recipe(str(recipe)) if recipe.is_file() else None


def _split_of_run(checkpoint: Path, data: str) -> dict[str, Any]:
    """Returns how the run that a model is of split its data, where it did and the data given have no split of their own."""
    from natjax_train.data import split_folders

    if data == "digits" or not Path(data).is_dir() or split_folders(data, "val"):
        return {}
    found = _recipe_of_run(checkpoint)
    if found is None or found.val_fraction is None:
        return {}
    return {"val_fraction": found.val_fraction, "seed": found.seed}


def _tell(args: argparse.Namespace, metrics: Metrics, names: Sequence[str], warnings: Sequence[str]) -> None:
    rows = [(name, *found) for name, found in zip(names, metrics.per_class(), strict=True)]
    shown = ("top1", *(("top5",) if metrics.has_top5 else ()), "loss", "images_per_second")
    summary = {name: getattr(metrics, name) for name in shown}
    if args.json:
        classes = [{name: finite(value) for name, value in zip(_COLUMNS, row, strict=True)} for row in rows]
        numbers = {name: finite(value) for name, value in summary.items()}
        others = {"images": int(metrics.confusion.sum()), "classes": classes, "warnings": list(warnings)}
        print_json(numbers | others)
    else:
        _print(metrics, rows, int(metrics.confusion.sum()))
    if args.csv:
        write_csv(args.csv, _COLUMNS, rows)
        complain(f"{args.csv}: wrote images, recall and precision of {len(rows)} classes")


def _print(metrics: Metrics, rows: Sequence[Sequence[Any]], images: int) -> None:
    print(f"{images} images, {metrics.images_per_second:.1f} images/s")
    scores = "".join(f"{name} {value:.2%}, " for name, value in metrics.accuracies().items())
    print(f"{scores}loss {metrics.loss:.4f}")
    hardest = sorted((row for row in rows if row[1]), key=lambda row: row[2])[:_HARDEST]
    print("\nThe classes of lowest recall:" if len(rows) > _HARDEST else "")
    table = [(printable(name), count, percent(recall), percent(found)) for name, count, recall, found in hardest]
    print_table(_COLUMNS, table)
