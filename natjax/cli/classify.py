"""`natjax classify`: class names and probabilities of images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from natjax.cli._arguments import positive_int
from natjax.cli._config import read_config
from natjax.cli._images import Run, add_image_arguments, compiled, find_checkpoint, find_images, load_processor
from natjax.cli._output import print_json, printable

if TYPE_CHECKING:
    import numpy as np

HELP = "say what images show"
_BAR = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_image_arguments(parser)
    parser.add_argument("--topk", type=positive_int, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Classifies the images; returns 1 where one was skipped."""
    from natjax import models
    from natjax.errors import CheckpointError

    checkpoint = find_checkpoint(args.model)
    model = models.NatForImageClassification.from_pretrained(checkpoint, config=read_config(args.config))
    config = model.config
    if not config.num_labels or config.problem_type == "regression":
        raise CheckpointError(f"{checkpoint}: the model has no classes to tell apart; `natjax features` may be of use.")
    processor = load_processor(checkpoint, config.num_channels)
    forward = compiled(model, lambda outputs: outputs.logits)
    images = Run(find_images(args.images), processor, forward, args.batch_size)
    results = []
    for path, logits in images:
        predictions = _predictions(logits, config, args.topk)
        if args.json:
            results.append({"image": path, "predictions": predictions})
        else:
            _print(path, predictions)
    if args.json:
        skipped = [{"image": path, "reason": reason} for path, reason in images.skipped]
        print_json({"model": args.model or str(checkpoint), "results": results, "skipped": skipped})
    return 1 if images.skipped else 0


def _predictions(logits: np.ndarray, config: Any, topk: int) -> list[dict[str, Any]]:
    import numpy as np

    if config.problem_type == "multi_label_classification":
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    else:
        probabilities = np.exp(logits - logits.max(), dtype=np.float64)
        probabilities /= probabilities.sum()
    best = np.argsort(-probabilities, kind="stable")[:topk]
    return [{"label": config.id2label[int(i)], "index": int(i), "probability": float(probabilities[i])} for i in best]


def _print(path: str, predictions: list[dict[str, Any]]) -> None:
    print(printable(path))
    names = [printable(p["label"]) for p in predictions]
    width = max(map(len, names))
    for name, p in zip(names, predictions, strict=True):
        bar = "#" * round(_BAR * p["probability"])
        print(f"  {name:<{width}}  {p['probability']:6.1%}  {bar}".rstrip())
