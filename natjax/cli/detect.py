"""`natjax detect`: boxes, masks and names of the objects in images, as pictures, tables and COCO results."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import add_dtype_argument, fraction, positive_int
from natjax.cli._config import read_given
from natjax.cli._images import add_image_arguments, find_images, run_pipeline
from natjax.cli._output import complain, print_json, print_table
from natjax.cli._pictures import picture_folder, picture_names, write_picture
from natjax.hub import locate
from natjax.text import printable

if TYPE_CHECKING:
    from natjax.detection.inference import Detections

HELP = "say where in images which objects are"
_LONGEST_JPEG = 65500  # pixels of a side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_image_arguments(parser, batch_size=1)
    add_dtype_argument(parser)
    parser.add_argument("--out", default="detections", metavar="DIR", help="folder to write into (default: detections)")
    parser.add_argument(
        "--threshold",
        type=fraction,
        default=0.5,
        metavar="S",
        help="objects of a higher score, 0 to 1 (default: %(default)s; COCO's evaluation takes all, 0)",
    )
    parser.add_argument(
        "--top-k", "--topk", type=positive_int, metavar="K", help="objects per image, at most (default: all)"
    )
    parser.add_argument(
        "--masks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also which pixels are part of each object (default: yes)",
    )
    parser.add_argument(
        "--size-divisor",
        type=positive_int,
        metavar="N",
        help="fill images up to multiples of N pixels, 32 as mmdetection does, instead of to a few sizes",
    )
    parser.add_argument("--json", action="store_true", help="print COCO results, one JSON list")


def run(args: argparse.Namespace) -> int:
    """Detects the objects; returns 1 where an image was skipped."""
    skipped: list[tuple[str, str]] = []
    checkpoint = locate(args.model)
    paths = find_images(args.images, skipped)
    names = picture_names(paths, [".jpg"])
    out = picture_folder(args.out, names)
    pipe = _pipeline(args, checkpoint)
    labels = pipe.model.config.id2label
    ids = image_ids(paths)
    results: list[dict[str, Any]] = []
    for path, found in run_pipeline(pipe, paths, skipped, args.max_pixels):
        found = found.best(args.threshold, args.top_k)
        file = out / names[path][0]
        _write(file, path, found, labels)
        if args.json:
            results += _results(path, ids[path], found, labels)
        else:
            _print(path, file, found, labels)
    if args.json:
        print_json(results)
    return 1 if skipped else 0


def _pipeline(args: argparse.Namespace, checkpoint: Path) -> Any:
    from natjax.pipelines import pipeline

    config, processor = read_given(args.config)
    return pipeline(
        "object-detection",
        checkpoint,
        config=config,
        processor=processor,
        batch_size=args.batch_size,
        masks=args.masks,
        size_divisor=args.size_divisor,
        dtype=args.dtype,
        report=complain,
    )


def image_ids(paths: Sequence[str]) -> dict[str, int]:
    """Returns COCO's numbers of images: their names, as in 000000397133.jpg, where all are different numbers, else 1, 2, ..."""
    unique = list(dict.fromkeys(paths))
    stems = [Path(path).stem for path in unique]
    if all(stem.isascii() and stem.isdecimal() for stem in stems):
        numbers = list(map(int, stems))
        if len(set(numbers)) == len(numbers):
            return dict(zip(unique, numbers, strict=True))
    return {path: number for number, path in enumerate(unique, 1)}


def _results(path: str, image_id: int, found: Detections, labels: dict[int, str]) -> Iterator[dict[str, Any]]:
    """Yields COCO's results, with the names that their numbers stand for."""
    from natjax.detection import coco

    ids = coco.category_ids(labels)
    for result, label in zip(coco.results(found, ids, image_id), found.labels.tolist(), strict=True):
        yield {**result, "file_name": path, "label": labels[label]}


def _write(file: Path, path: str, found: Detections, labels: dict[int, str]) -> None:
    from natjax.detection.pictures import draw
    from natjax.images import load_image

    picture = draw(load_image(path), found, labels)
    picture.thumbnail((_LONGEST_JPEG, _LONGEST_JPEG))
    write_picture(file, picture, format="JPEG", quality=92, subsampling=0)


def _print(path: str, file: Path, found: Detections, labels: dict[int, str]) -> None:
    print(f"{printable(path)}: {printable(str(file))}")
    rows = [
        (printable(labels[label]), f"{score:.1%}", *(f"{side:.0f}" for side in box))
        for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    ]
    if rows:
        print_table(("object", "score", "left", "top", "right", "bottom"), rows, indent="  ")
    else:
        print("  nothing found")
