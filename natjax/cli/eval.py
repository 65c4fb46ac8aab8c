"""`natjax eval`: how good a model is on the validation images of a data set, and at each class.

Of a classifier top-1, top-5 and loss; of a segmenter mean IoU and pixel accuracy, see `_eval_masks`; of a detector COCO's average
precision, see `_eval_boxes`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax import run_files
from natjax.atomic import check_writable
from natjax.cli import _eval_boxes, _eval_masks
from natjax.cli._arguments import add_dtype_argument, add_process_arguments, image_size, not_negative_int, positive_int
from natjax.cli._eval_model import measured
from natjax.cli._eval_output import finite, percent, relabelled, tell_skipped, write_csv
from natjax.cli._output import Progress, complain, print_json, print_table
from natjax.errors import CheckpointError, install_line
from natjax.hub import locate
from natjax.text import printable

if TYPE_CHECKING:
    from natjax_train.recipe import Recipe
    from natjax_train.tasks.classification import Metrics

HELP = "measure a model on the validation images of a data set"
_MODELS = {"classification": "classifier", "segmentation": "segmenter", "detection": "detector"}
_OPTIONS = {
    "classification": set(),
    "segmentation": {"multi_scale", "crop_size", "stride", "size_divisor", "reduce_zero_label", "classes"},
    "detection": {"size_divisor", "results"},
}
_HARDEST = 10  # classes that are shown
_COLUMNS = ("class", "images", "recall", "precision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with val/ in it, or 'digits'; for segmentation images/ and masks/, for detection COCO's annotations and "
        "images",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        help="checkpoint: a run's folder, a path, a name of `natjax list` or a Hugging Face id; needed (digits is a small "
        "classifier of handwritten digits)",
    )
    parser.add_argument("--task", choices=tuple(_MODELS), help="what is measured (default: what the model is for)")
    parser.add_argument("--json", action="store_true", help="print one JSON document, with every class")
    parser.add_argument("--csv", metavar="FILE", help="write a table of all classes")
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="images per step, of all devices (default: 64; of a segmenter or detector one per device)",
    )
    parser.add_argument(
        "--workers", type=not_negative_int, default=0, metavar="N", help="threads that read images (default: none)"
    )
    add_dtype_argument(parser)
    parser.add_argument(
        "--mesh", default="", metavar="MESH", help="devices, as in data=8 or data=2,space=4 (default: all)"
    )
    add_process_arguments(parser)
    parser.add_argument(
        "--size-divisor",
        type=positive_int,
        metavar="N",
        help="of a segmenter: round the sides of resized images to multiples of N, so that few sizes are compiled for; 1 leaves "
        "them as they are (default: 32); of a detector: fill sides up to multiples of N, as mmdetection does with 32 (default: "
        "to one of five lengths)",
    )
    masks = parser.add_argument_group("segmentation", "The data hold images/val and masks/val, as for natjax train.")
    masks.add_argument("--multi-scale", action="store_true", help="average over six sizes and mirror images")
    masks.add_argument("--crop-size", type=image_size, metavar="N|HxW", help="slide windows instead of whole images")
    masks.add_argument(
        "--stride",
        type=image_size,
        metavar="N|HxW",
        help="from one window to the next (default: two thirds of a window)",
    )
    masks.add_argument("--reduce-zero-label", action="store_true", help="0 in masks is ignored, 1 is the first class")
    masks.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the data's classes: a file, ade20k or cityscapes (default: classes.txt in the data, or the model's)",
    )
    boxes = parser.add_argument_group("detection", "The data have COCO's annotations for val, as for natjax train.")
    boxes.add_argument("--results", metavar="FILE", help="write what was found as COCO's results, JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints; returns 1 where images could not be read."""
    try:
        from natjax_train import data, mesh
        from natjax_train.tasks.classification import Classification
    except ImportError as error:
        raise ImportError(f"Evaluation needs more packages ({error}): {install_line('train')}.") from error
    import jax
    import numpy as np

    from natjax.models import NatForImageClassification
    from natjax.processors import load_processor
    from natjax_convert import Checkpoint

    mesh.start_processes(args.coordinator, args.processes, args.process)  # before anything asks for devices
    is_main_process = jax.process_index() == 0
    if args.csv and is_main_process:
        check_writable(args.csv)  # to be known before the evaluation, not after it
    path = locate(args.model)
    checkpoint = Checkpoint.open(path)
    task = checkpoint.kind if checkpoint.kind in _MODELS else "classification"
    if args.task not in (None, task):
        raise CheckpointError(
            f"{path}: --task {args.task} measures a {_MODELS[args.task]}, and this is none: leave --task out, or give another "
            "--model."
        )
    for name in sorted(set().union(*_OPTIONS.values()) - _OPTIONS[task]):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is of no use here: {path} is a {_MODELS[task]}.")
    if task != "classification":
        # Images of one size share a batch, and few have the same.
        args.batch_size = args.batch_size or jax.device_count()
        module = {"segmentation": _eval_masks, "detection": _eval_boxes}[task]
        return module.run(args, checkpoint, _recipe_of_run(path))
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
    with Progress(len(source), "images") as progress:
        through = functools.partial(relabelled, table=labels)
        metrics = measured(args, net, processor, Classification(None, names), source, progress, through)
    skipped = len(source) - int(metrics.confusion.sum())
    if is_main_process:
        _tell(args, metrics, names, warnings)
        tell_skipped(skipped)
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
