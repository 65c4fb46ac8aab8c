"""What the folder of a run of training holds, by name; beside these, config.json is the model's configuration."""

from __future__ import annotations

from pathlib import Path

RECIPE = "recipe.json"
CHECKPOINTS = "checkpoints"  # a folder
METRICS = "metrics.jsonl"
CURVES = "curves.png"
CONFUSION = "confusion.png"
EXAMPLES = "examples.png"  # of segmentation and detection
TENSORBOARD = "tensorboard"  # a folder
MODEL = "model"  # the folder of the exported model
CARD = "README.md"  # in the folder of a model, its card


def has_checkpoints(run: Path) -> bool:
    """Returns whether there is anything among a run's checkpoints, complete or not."""
    folder = run / CHECKPOINTS
    return folder.is_dir() and any(folder.iterdir())
