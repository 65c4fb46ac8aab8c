"""What `natjax eval` does with a segmenter: IoU of every class on images with masks, at one scale or several."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._eval_model import inspected, measured, validation_images
from natjax.cli._eval_output import finite, percent, relabelled, tell_skipped, write_csv
from natjax.cli._output import Progress, complain, print_json, print_table
from natjax.text import printable

if TYPE_CHECKING:
    from natjax_convert import Checkpoint
    from natjax_train.recipe import Recipe
    from natjax_train.tasks.iou import Metrics

_COLUMNS = ("class", "pixels", "iou", "accuracy", "precision")
_SIZE_DIVISOR = 32


def run(args: argparse.Namespace, checkpoint: Checkpoint, recipe: Recipe | None) -> int:
    """Evaluates and prints; returns 1 where images could not be read.

    Args:
        args: of `natjax eval`.
        checkpoint: the model's.
        recipe: of the run that the model is of, if it is of one.
    """
    import jax
    import numpy as np

    from natjax.models import UperNetForSemanticSegmentation
    from natjax_train.data.masks import CLASSES, check_count, class_names, has_split, open_masks

    net = UperNetForSemanticSegmentation.from_pretrained(checkpoint, dtype=args.dtype)
    names = list((net.config.id2label or {}).values())
    check_count(len(names), args.model)
    is_main_process = jax.process_index() == 0
    say = complain if is_main_process else (lambda _: None)
    own = class_names(args.classes) or (None if Path(args.data, CLASSES).is_file() else tuple(names))
    reduce = args.reduce_zero_label or bool(recipe and recipe.reduce_zero_label)
    opened = functools.partial(open_masks, args.data, class_names=own, reduce_zero_label=reduce)
    source = validation_images(args.data, recipe, has_split, opened, "", say)
    places, warnings = inspected(source, names, args.model, say)
    table = np.full(256, 255, np.uint8)
    table[: len(places)] = places
    with Progress(len(source), "images") as progress:
        if args.multi_scale or args.crop_size:
            metrics = _image_by_image(args, checkpoint, net, source, table, len(names), progress)
        else:
            metrics = _in_batches(args, checkpoint, net, source, table, names, progress, is_main_process)
    skipped = len(source) - metrics.images
    if is_main_process:
        _tell(args, metrics, names, warnings)
        tell_skipped(skipped)
    return 1 if skipped else 0


def _in_batches(args, checkpoint, net, source, table, names, progress, is_main_process) -> Metrics:
    """Measures at one scale, images of a size in batches over all devices and processes."""
    from natjax.processors import load_processor
    from natjax_train.tasks.segmentation import Segmentation

    processor = load_processor(checkpoint, complain if is_main_process else lambda _: None)
    task = Segmentation(None, names, size_divisor=args.size_divisor or _SIZE_DIVISOR)
    return measured(args, net, processor, task, source, progress, functools.partial(relabelled, table=table))


def _image_by_image(args, checkpoint, net, source, table, num_classes, progress) -> Metrics:
    """Measures by windows or several scales, one image after the other, every process its own; their counts are summed."""
    import dataclasses
    import time

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    from natjax.errors import ImageError
    from natjax.pipelines.segmentation import MULTI_SCALE
    from natjax.processors import load_processor
    from natjax.segmentation import segment
    from natjax_train.data.mask_batches import sized_image
    from natjax_train.tasks.iou import Metrics, count

    processor = load_processor(checkpoint, lambda _: None)
    sizes = [
        {name: max(1, int(side * ratio)) for name, side in processor.size.items()}
        for ratio in (MULTI_SCALE if args.multi_scale else (1.0,))
    ]
    processors = [dataclasses.replace(processor, size=size) for size in sizes]
    divisor = args.size_divisor or _SIZE_DIVISOR
    segmenter = jax.jit(lambda pixel_values: net.decode(pixel_values)[0])

    def class_map(image: bytes, size: tuple[int, int]) -> Any:
        views = [jnp.asarray(sized_image(image, size, each, divisor)) for each in processors]
        options = {"flip": args.multi_scale, "crop_size": args.crop_size, "stride": args.stride}
        return np.asarray(segment(segmenter, views, size, **options))[0]

    counts, images, began = np.zeros((3, num_classes), np.int64), 0, time.perf_counter()
    for index in range(jax.process_index(), len(source), jax.process_count()):
        try:
            item = source[index]
            found = class_map(item["image"], item["mask"].shape)
        except (ImageError, OSError) as error:
            progress.complain(f"{source.name(index)} cannot be read, skipped: {error}")
            continue
        counts += count(found, table[item["mask"]], num_classes)
        images += 1
        progress.update(images)
    if jax.process_count() > 1:  # in words of 32 bits, as JAX has none of 64 here
        words = np.append(counts.ravel(), images).view(np.uint32)
        counts = multihost_utils.process_allgather(words).astype(np.uint32).view(np.int64).sum(0)
        counts, images = counts[:-1].reshape(3, num_classes), int(counts[-1])
    return Metrics(counts, float("nan"), images, images / max(time.perf_counter() - began, 1e-9))


def _tell(args: argparse.Namespace, metrics: Metrics, names: Sequence[str], warnings: Sequence[str]) -> None:
    rows = [(name, *found) for name, found in zip(names, metrics.per_class(), strict=True)]
    if args.json:
        numbers = {**metrics.summary(), "loss": metrics.loss, "images_per_second": metrics.images_per_second}
        classes = [{name: finite(value) for name, value in zip(_COLUMNS, row, strict=True)} for row in rows]
        others = {"images": metrics.images, "classes": classes, "warnings": list(warnings)}
        print_json({name: finite(value) for name, value in numbers.items()} | others)
    else:
        print(f"{metrics.images} images, {metrics.images_per_second:.1f} images/s")
        loss = "" if metrics.loss != metrics.loss else f", loss {metrics.loss:.4f}"
        print(
            f"mIoU {metrics.miou:.2%}, pixel accuracy {metrics.pixel_accuracy:.2%}, mean accuracy "
            f"{metrics.mean_accuracy:.2%}{loss}\n"
        )
        print_table(_COLUMNS, [(printable(name), count, *map(percent, found)) for name, count, *found in rows])
    if args.csv:
        write_csv(args.csv, _COLUMNS, rows)
        complain(f"{args.csv}: wrote pixels, IoU, accuracy and precision of {len(rows)} classes")
