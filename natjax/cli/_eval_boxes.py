"""What `natjax eval` does with a detector: COCO's average precision of boxes and masks, of every class."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from natjax.atomic import check_writable, replacing
from natjax.cli._eval_model import inspected, measured, validation_images
from natjax.cli._eval_output import finite, percent, tell_skipped, write_csv
from natjax.cli._output import Progress, complain, print_json, print_table
from natjax.text import counted, printable

if TYPE_CHECKING:
    from natjax_convert import Checkpoint
    from natjax_train.recipe import Recipe
    from natjax_train.tasks.average_precision import Metrics

_COLUMNS = ("class", "objects", "box_ap", "box_ap50", "mask_ap", "mask_ap50")
_SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
_TITLES = ("AP", "AP50", "AP75", "small", "medium", "large", "AR1", "AR10", "AR100")


def run(args: argparse.Namespace, checkpoint: Checkpoint, recipe: Recipe | None) -> int:
    """Evaluates and prints; returns 1 where images could not be read.

    Args:
        args: of `natjax eval`.
        checkpoint: the model's.
        recipe: of the run that the model is of, if it is of one.
    """
    import jax

    from natjax.detection.inference import check_whole
    from natjax.models.detection import DETECTORS
    from natjax.processors import load_processor
    from natjax_train.data.coco import has_split, open_coco
    from natjax_train.tasks.detection import Detection

    is_main_process = jax.process_index() == 0
    say = complain if is_main_process else (lambda _: None)
    if args.results and is_main_process:
        check_writable(args.results)
    processor = load_processor(checkpoint, say)
    check_whole(processor)
    names = list((checkpoint.config.id2label or {}).values())
    opened = functools.partial(open_coco, args.data)
    source = validation_images(args.data, recipe, has_split, opened, "train", say)
    places, warnings = inspected(source, names, args.model, say)
    category_ids: list[int | None] = [None] * len(names)
    for place, number in zip(places, source.category_ids, strict=True):
        category_ids[place] = number
    net = DETECTORS[checkpoint.config.model_type].from_pretrained(checkpoint, dtype=args.dtype)
    with Progress(len(source), "images") as progress:
        task = Detection(
            None,
            names,
            category_ids,
            size_divisor=args.size_divisor,
            mask_threshold=checkpoint.config.mask_threshold,
            keep_results=bool(args.results),
        )
        metrics = measured(args, net, processor, task, source, progress)
    skipped = len(source) - metrics.images
    if is_main_process:
        _tell(args, metrics, source.class_names, warnings)
        tell_skipped(skipped)
    return 1 if skipped else 0


def _tell(args: argparse.Namespace, metrics: Metrics, names: Sequence[str], warnings: Sequence[str]) -> None:
    summary = metrics.summary()
    rows = [(name, *found) for name, found in zip(names, metrics.per_class(), strict=True)]
    if args.json:
        numbers = {**summary, "images_per_second": metrics.images_per_second}
        classes = [{name: finite(value) for name, value in zip(_COLUMNS, row, strict=True)} for row in rows]
        others = {"images": metrics.images, "classes": classes, "warnings": list(warnings)}
        print_json({name: finite(value) for name, value in numbers.items()} | others)
    else:
        print(f"{metrics.images} images, {metrics.images_per_second:.1f} images/s\n")
        scores = [(kind, *(percent(summary[f"{kind}_{name}"]) for name in _SCORES)) for kind in ("box", "mask")]
        print_table(("", *_TITLES), scores)
        print()
        print_table(_COLUMNS, [(printable(name), count, *map(percent, found)) for name, count, *found in rows])
    if args.csv:
        write_csv(args.csv, _COLUMNS, rows)
        complain(f"{args.csv}: wrote objects and average precision of {len(rows)} classes")
    if args.results:
        with replacing(args.results) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(list(metrics.results), file)
        complain(f"{args.results}: wrote {counted(len(metrics.results), 'result')}")
