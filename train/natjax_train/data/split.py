"""A data set without a validation split, split by seed: the same part of every class is held out.

Which images are held out depends on the seed and their names alone: on no machine, process or order of files, and an image that
is added later moves few others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from natjax.errors import ImageError
from natjax_train.data.coco_images import CocoImages
from natjax_train.data.masks import MaskFolder
from natjax_train.data.sources import ImageFolder, class_counts


class Part:
    """Some of the images of an image folder.

    Args:
        source: the whole.
        indices: which of its images, in order.
        notes: about them, for people.

    Attributes:
        class_names: of the whole.
        class_counts: images of every class in this part.
        notes: as given.
    """

    def __init__(self, source: ImageFolder, indices: Sequence[int], notes: tuple[str, ...]):
        self._source, self._indices = source, np.array(indices, np.int64)
        self.class_names, self.notes = source.class_names, notes
        self.class_counts: tuple[int, ...] | None = class_counts(source.labels[self._indices], self.class_names)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._indices[index])]

    def name(self, index: int) -> str:
        """Returns which image that is, for people."""
        return self._source.name(int(self._indices[index]))


def split(source: ImageFolder, fraction: float, seed: int) -> dict[str, Part]:
    """Returns the parts "train" and "val" of an image folder.

    Args:
        source: the whole.
        fraction: of every class that "val" gets, rounded, and at least one image.
        seed: of the choice.

    Raises:
        ImageError: a class has a single image, which cannot be in both parts.
    """
    indices, notes = _split(source, source.labels, source.class_names, fraction, seed)
    return {name: Part(source, indices[name], notes[name]) for name in indices}


def split_images(source: MaskFolder | CocoImages, fraction: float, seed: int) -> dict[str, Any]:
    """Returns the parts "train" and "val" of images with several classes each; arguments and errors are those of `split`."""
    indices, notes = _split(source, np.zeros(len(source), int), ("of all",), fraction, seed)
    return {name: source.part(indices[name], notes[name]) for name in indices}


def _split(
    source: ImageFolder | MaskFolder | CocoImages,
    labels: np.ndarray,
    class_names: Sequence[str],
    fraction: float,
    seed: int,
) -> tuple[dict[str, list[int]], dict[str, tuple[str, ...]]]:
    """Returns the images of every part, and notes on each."""
    directory = source.directory
    digests = [_digest(seed, os.path.relpath(source.name(i), directory)) for i in range(len(source))]
    held_out: set[int] = set()
    for label, name in enumerate(class_names):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=digests.__getitem__)
        if len(members) == 1:
            raise ImageError(f"{directory}: the class {name} has one image, which cannot be in both splits: add some.")
        held_out.update(members[: max(1, min(len(members) - 1, round(fraction * len(members))))] if members else ())
    note = f"{directory}: {len(held_out):,} of {len(source):,} images are held out for validation (val_fraction {fraction:g})"
    indices = {"train": [i for i in range(len(source)) if i not in held_out], "val": sorted(held_out)}
    return indices, {"train": (*source.notes, note), "val": ()}


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:".encode() + os.fsencode(Path(name).as_posix())).digest()
