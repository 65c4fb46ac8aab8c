"""Batches of one pass over images of many sizes: those of a batch have one size, or are filled up to it."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from natjax.errors import ImageError
from natjax_train.data.pipeline import Batches, as_arrays, part_of, reason, too_many


def sized_loader(
    source: Any,
    sizes: Sequence[Any],
    blank: Callable[[Any, int], dict[str, np.ndarray]],
    prepare: Callable[[Any, dict[str, Any]], dict[str, Any]],
    *,
    batch_size: int,
    share: int = 0,
    shares: int = 1,
    workers: int = 0,
    worker_kind: str = "threads",
    max_corrupt: int = 0,
    advice: str = "",
    report: Callable[[str], None] | None = None,
) -> Batches:
    """Returns this process's part of one pass over a source, by size of the images, with "mask" bool [B] and "index" int32 [B].

    Args:
        source: the images.
        sizes: of the images, None where one could not be read, which may be in any batch.
        blank: makes a batch's arrays, by name, of its size and number of images; workers take it along.
        prepare: makes an image's arrays of its batch's size and the item, which go to the beginning of their place in the
            batch's; workers take it along.
        batch_size: images of a batch over all shares; further arguments and errors are those of `data.eval_loader`.
    """
    part = part_of(batch_size, share, shares)
    # Where one process alone could not read an image, its batches are not those of the others.
    unreadable = {index: "" for index, size in enumerate(sizes) if size is None}
    if len(unreadable) > max_corrupt:
        raise ImageError(too_many(source, unreadable, max_corrupt, advice))
    batches = _SizedBatches(source, _batches_by_key(sizes, batch_size), part, blank, prepare)
    return Batches(batches, source, workers, worker_kind, max_corrupt, advice, report)


class _SizedBatches:
    """A process's part of every batch; `mask` is False where there is no image."""

    def __init__(self, source: Any, batches: list[tuple[Any, np.ndarray]], part: slice, blank: Any, prepare: Any):
        self._source, self._batches, self._part, self._blank, self._prepare = source, batches, part, blank, prepare

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        size, indices = self._batches[operator.index(number)]
        indices = indices[self._part]
        batch, mask, unreadable = self._blank(size, len(indices)), np.zeros(len(indices), bool), {}
        for place in np.flatnonzero(indices >= 0).tolist():
            index = int(indices[place])
            try:
                prepared = self._prepare(size, self._source[index])
            except (ImageError, OSError) as error:
                unreadable[index] = reason(error)
                continue
            for name, value in prepared.items():
                batch[name][(place, *map(slice, np.shape(value)))] = value
            mask[place] = True
        return batch | {"mask": mask, "index": indices.astype(np.int32)} | as_arrays(unreadable)


def _batches_by_key(keys: Sequence[Any], batch_size: int) -> list[tuple[Any, np.ndarray]]:
    """Returns batches of images with one key each, as (key, indices), filled up with -1; the most frequent keys come first.

    Args:
        keys: of the images, None for those that go into any batch.
        batch_size: images of a batch.

    Raises:
        ImageError: all keys are None.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for index in np.random.default_rng(0).permutation(len(keys)).tolist():  # so that the first ones are various
        groups[keys[index]].append(index)
    anywhere = groups.pop(None, [])
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    if not ordered:
        raise ImageError("None of the images can be read.")
    ordered[0][1].extend(anywhere)
    return [
        (key, np.pad(part, (0, batch_size - len(part)), constant_values=-1))
        for key, indices in ordered
        for part in (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
    ]
