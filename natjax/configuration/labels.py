"""Classes of a model: their number, names by index and indices by name, each of which may be given and must agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natjax.configuration.checks import MAX_SIZE, class_index, expect_int, plain

TOGETHER = ("num_labels", "id2label", "label2id")  # fields that say the same


def aligned_labels(num_labels: Any, id2label: Any, label2id: Any) -> dict[str, Any]:
    """Returns all three fields, each following from those that are given; two classes where none is.

    Raises:
        ValueError: one is impossible, or they disagree.
    """
    if id2label is None and label2id is not None:
        if not isinstance(label2id, Mapping):
            raise ValueError(f"label2id must map class names to indices; got {label2id!r}.")
        id2label = {index: label for label, index in label2id.items()}
    if id2label is None:
        num_labels = 2 if num_labels is None else num_labels
        expect_int("num_labels", num_labels, minimum=0, maximum=MAX_SIZE)
        id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
    if not isinstance(id2label, Mapping):
        raise ValueError(f"id2label must map class indices to names; got {id2label!r}.")
    id2label = {class_index(index): plain(label) for index, label in id2label.items()}
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(
            f"id2label must map every class index from 0 on to a name, with no gaps; got {sorted(id2label)[:10]}."
        )
    if not all(isinstance(label, str) for label in id2label.values()):
        raise ValueError("id2label must map class indices to strings.")
    if num_labels is not None and num_labels != len(id2label):
        raise ValueError(f"num_labels ({num_labels}) and id2label ({len(id2label)} entries) disagree; give one.")
    id2label = {i: id2label[i] for i in range(len(id2label))}
    for label, index in (label2id or {}).items():
        if id2label.get(class_index(index)) != label:
            raise ValueError(f"label2id says that {label!r} is class {index!r}, id2label does not; give one of them.")
    return {
        "num_labels": len(id2label),
        "id2label": id2label,
        "label2id": {label: i for i, label in id2label.items()},
    }
