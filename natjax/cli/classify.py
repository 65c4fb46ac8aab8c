"""`natjax classify`: class names and probabilities of images."""

from __future__ import annotations

import argparse
from typing import Any

from natjax.cli._arguments import positive_int
from natjax.cli._config import read_given
from natjax.cli._images import add_image_arguments, find_images, run_pipeline
from natjax.cli._mesh import add_mesh_arguments, image_sharding
from natjax.cli._output import complain, print_json
from natjax.hub import locate
from natjax.text import printable

HELP = "say what images show"
_BAR = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_image_arguments(parser)
    add_mesh_arguments(parser)
    parser.add_argument(
        "--top-k", "--topk", type=positive_int, default=5, metavar="K", help="classes per image (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Classifies the images; returns 1 where one was skipped."""
    from natjax.pipelines import pipeline

    skipped: list[tuple[str, str]] = []
    results: list[dict[str, Any]] = []
    checkpoint = locate(args.model)
    paths = find_images(args.images, skipped)
    config, processor = read_given(args.config)
    pipe: Any = pipeline(
        "image-classification",
        checkpoint,
        config=config,
        processor=processor,
        batch_size=args.batch_size,
        full_size=args.full_size,
        sharding=image_sharding(args.mesh),
        top_k=args.top_k,
        report=complain,
    )
    names = pipe.model.config.id2label
    for path, probabilities in run_pipeline(pipe, paths, skipped, args.max_pixels):
        best = pipe.best(probabilities)
        predictions = [{"label": names[i], "index": i, "probability": float(probabilities[i])} for i in best]
        if args.json:
            results.append({"image": path, "predictions": predictions})
        else:
            _print(path, predictions)
    if args.json:
        reasons = [{"image": path, "reason": reason} for path, reason in skipped]
        print_json({"model": args.model, "results": results, "skipped": reasons})
    return 1 if skipped else 0


def _print(path: str, predictions: list[dict[str, Any]]) -> None:
    print(printable(path))
    names = [printable(p["label"]) for p in predictions]
    width = max(map(len, names))
    for name, p in zip(names, predictions, strict=True):
        bar = "#" * round(_BAR * p["probability"])
        print(f"  {name:<{width}}  {p['probability']:6.1%}  {bar}".rstrip())
