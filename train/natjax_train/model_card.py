"""The model card of a run's export, `model/README.md`: base model, data, metrics, recipe and how to load it.

The front matter is what the Hugging Face Hub reads. Nothing in a card tells where on its author's machine things were.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from natjax._version import __version__
from natjax.hub import is_hub_id
from natjax.presets import PRESETS
from natjax.text import counted, first_few, printable
from natjax_train.data import Source
from natjax_train.recipe import Recipe

_LABELS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy of the classes",
    "val_loss": "loss",
}
_OF_OBJECTS = {
    "ap": "AP",
    "ap50": "AP at an IoU of 0.5",
    "ap75": "AP at an IoU of 0.75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "ar1": "AR with 1 detection",
    "ar10": "AR with 10 detections",
    "ar100": "AR with 100 detections",
}
_LABELS |= {f"{kind}_{key}": f"{kind} {text}" for kind in ("box", "mask") for key, text in _OF_OBJECTS.items()}
_VERBS = {"classifier": "classify", "segmenter": "segment", "detector": "detect"}
_MOST_CLASSES = 50  # that a card names


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card says of a run's task.

    Attributes:
        task: the Hugging Face Hub's name of it, which is a pipeline of natjax.
        model: what a model of it is.
        type: its class in transformers; None where that has none.
        dataset: what the Hub calls such data.
    """

    task: str = "image-classification"
    model: str = "classifier"
    type: str | None = "AutoModelForImageClassification"
    dataset: str = "imagefolder"


def model_card(
    recipe: Recipe,
    data: str | None,
    training: Source,
    validation: Source,
    metrics: Mapping[str, float],
    step: int,
    card: Card | None = None,
) -> str:
    """Returns the text of a card.

    Args:
        recipe: the run's.
        data: the folder or name of the data; None where they have none.
        training: the training images.
        validation: those that the metrics are of.
        metrics: by their names in metrics.jsonl, such as top1.
        step: which the exported model is of.
        card: what is said of the task; None is of classification.
    """
    card = card or Card()
    name = printable("images" if data is None else PurePath(data).name or "images")
    base = base_model(recipe)
    front = {
        "library_name": "natjax",
        "pipeline_tag": card.task,
        "tags": ["natjax", card.task, "neighborhood-attention"],
        **({"base_model": base} if base else {}),
        "model-index": [{"name": f"natjax-{name}", "results": [_result(name, metrics, card)]}],
    }
    random = f"random weights ({recipe.model})" if recipe.has_random_weights else None
    started = random or base or _shortened(recipe.model)
    rows = "\n".join(f"| {_LABELS.get(key, key)} | {_number(key, value)} |" for key, value in metrics.items())
    return "\n".join(
        (
            "---",
            *(f"{key}: {_json(value)}" for key, value in front.items()),
            "---",
            "",
            f"# A {card.model} of {_text(name)}",
            "",
            f"Trained by natjax {__version__}, from {_text(started)}.",
            "",
            f"Data: {_text(name)}, {len(training):,} training and {len(validation):,} validation images of "
            f"{counted(len(training.class_names), 'class')}: {first_few(list(map(_text, training.class_names)), _MOST_CLASSES)}.",
            "",
            f"On the validation images, after step {step}:",
            "",
            "| metric | value |",
            "| --- | ---: |",
            rows,
            "",
            "## Use",
            "",
            "```python",
            "import natjax",
            "",
            f'{_VERBS[card.model]} = natjax.pipeline("{card.task}", "path/or/id/of/this/model")',
            f'print({_VERBS[card.model]}("image.jpg"))',
            "```",
            "",
            *(() if card.type is None else _in_transformers(card.type)),
            "## Recipe",
            "",
            "`natjax train --recipe FILE` takes it:",
            "",
            "```json",
            _recipe(recipe),
            "```",
            "",
        )
    )


def _in_transformers(model: str) -> tuple[str, ...]:
    return (
        "transformers 4.40.2 with NATTEN loads the same files:",
        "",
        "```python",
        f"from transformers import AutoImageProcessor, {model}",
        "",
        'processor = AutoImageProcessor.from_pretrained("path/or/id/of/this/model")',
        f'model = {model}.from_pretrained("path/or/id/of/this/model")',
        "```",
        "",
    )


def base_model(recipe: Recipe) -> str | None:
    """Returns the id on the Hugging Face Hub of what a run started from, or None where that has none.

    The paths in a run's recipe are absolute, see `Recipe.with_absolute_path`; what looks like an id is one.
    """
    if recipe.model in PRESETS:
        return PRESETS[recipe.model].hub_id if recipe.pretrained else None
    return recipe.model if is_hub_id(recipe.model) else None


def _result(name: str, metrics: Mapping[str, float], card: Card) -> dict[str, Any]:
    found = [
        {"type": "accuracy" if key == "top1" else key, "name": _LABELS.get(key, key), "value": float(f"{value:.6f}")}
        for key, value in metrics.items()
        if math.isfinite(value)
    ]
    return {
        "task": {"type": card.task, "name": card.task.capitalize().replace("-", " ")},
        "dataset": {"type": card.dataset, "name": name, "split": "validation"},
        "metrics": found,
    }


def _number(key: str, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.2%}" if key in _LABELS.keys() - {"val_loss"} else f"{value:.4f}"


def _recipe(recipe: Recipe) -> str:
    document = json.loads(recipe.to_json())
    document["model"] = recipe.model if base_model(recipe) else _shortened(recipe.model)
    return json.dumps(document, indent=2)


def _shortened(model: str) -> str:
    """Returns the last two parts of a path at most, which say which run it was."""
    return "/".join(PurePath(model).parts[-2:]).lstrip("/")


def _text(name: str) -> str:
    """Returns a name as Markdown shows it: what would be markup is escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(name))


def _json(value: Any) -> str:
    """Returns a value in JSON, which YAML includes; small numbers have a point, without which YAML takes them for text."""
    return re.sub(r"(?<=: )(\d+)(e-\d+)(?=[,}])", r"\1.0\2", json.dumps(value, ensure_ascii=False))
