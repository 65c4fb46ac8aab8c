"""What a run learns. A task is a module of this folder, an entry of `TASKS`, and a class that derives from `base.Task`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natjax_train.tasks.base import Task

TASKS = {  # imported when they are asked for
    "classification": "natjax_train.tasks.classification:Classification",
    "segmentation": "natjax_train.tasks.segmentation:Segmentation",
    "detection": "natjax_train.tasks.detection:Detection",
}


def find_task(name: str) -> type[Task]:
    """Returns the class of a task, by its name in `TASKS`."""
    module, _, kind = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), kind)
