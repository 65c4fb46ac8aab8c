"""What a run learns. A task is a module of this folder, an entry of `TASKS`, and a class with what `Task` lists.

The loop, the step, evaluation, the log and checkpoints know a task by this protocol alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import jax
    import numpy as np

    from natjax_convert.shapes import Parameter
    from natjax_train.recipe import Recipe

TASKS = {"classification": "natjax_train.tasks.classification:Classification"}  # imported when it is asked for


class Result(Protocol):
    """What an evaluation found."""

    @property
    def score(self) -> float:
        """The number by which the best checkpoint is chosen; more is better."""
        ...

    def row(self) -> dict[str, float]:
        """Returns the numbers for metrics.jsonl, `val_loss` among them."""
        ...

    def text(self) -> str:
        """Returns the same for people, on one line."""
        ...

    def headline(self) -> str:
        """Returns the score for people."""
        ...


class Task(Protocol):
    """A task of one run, made of its recipe and the names of its data's classes."""

    curves: tuple[str, Mapping[str, str]]  # title of a panel of curves.png, and label by name in metrics.jsonl

    def __init__(self, recipe: Recipe, class_names: Sequence[str]): ...

    def initial_model(self) -> Any:
        """Returns the model a run starts from."""
        ...

    def resumed_model(self, config: Any) -> Any:
        """Returns the model of a resumed run, without weights."""
        ...

    def parameters(self, config: Any) -> list[Parameter]:
        """Returns the parameters of the task's model, with the depth of each, for layer-wise decay of the learning rate."""
        ...

    def prepare(self, key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns pixel values and targets of a training batch, each [B, ...]: augmentation on the device."""
        ...

    def loss(self, outputs: Any, targets: jax.Array) -> jax.Array:
        """Returns the mean loss of what the model returned, float32 []."""
        ...

    def logits(self, outputs: Any) -> jax.Array:
        """Returns of what the model returned the float32 array [B, ...] that `judge` looks at."""
        ...

    def judge(self, logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns what is counted of an evaluation batch, arrays [B, ...] and its `mask`; runs on the device."""
        ...

    def result(self, judged: dict[str, np.ndarray], images_per_second: float) -> Result:
        """Returns the result of all images' judgements, in their order."""
        ...

    def plot(self, result: Any, directory: Path) -> None:
        """Draws a result into files of a run's folder."""
        ...


def find_task(name: str) -> type[Task]:
    """Returns the class of a task, by its name in `TASKS`."""
    module, _, kind = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), kind)
