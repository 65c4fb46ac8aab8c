"""The input pipeline, by Grain: batches of uint8 images, in an order and with randomness that seed and step alone decide.

Batch i of a run holds the same images with the same crops whatever the number of processes, workers and resumptions: the order
is one by (seed, epoch), the randomness of an image is that of (seed, epoch, index), and of the number of the repeat where it
fills up a batch. Grain reads batches ahead, in threads or processes, and knows where it is.
"""

from __future__ import annotations

import functools
import itertools
import operator
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np
from absl import flags

from natjax.errors import ImageError, install_line
from natjax.image_processing import NatImageProcessor
from natjax.text import counted, first_few
from natjax_train.augment.settings import HostSettings
from natjax_train.data.sources import Source
from natjax_train.data.transforms import eval_image, labelled_image

_ENDLESS = 2**40  # batches
_ADVICE = "Mend or remove them."


class _TrainBatches:
    """A process's part of every batch of an endless run, by the number of the batch."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        settings: HostSettings,
        seed: int,
        part: slice,
        prepare: Callable[..., dict[str, Any]],
        image_size: int,
        num_channels: int,
        max_corrupt: int,
        advice: str,
    ):
        self._source, self._batch_size, self._settings, self._seed = source, batch_size, settings, seed
        self._part, self._prepare, self._image_size, self._num_channels = part, prepare, image_size, num_channels
        self._max_corrupt, self._advice = max_corrupt, advice
        self._groups, self._steps_per_epoch = _groups(source), steps_per_epoch(source, batch_size)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(operator.index(number), self._steps_per_epoch)
        order = _order(len(self._source), self._groups, self._batch_size, self._seed, epoch)
        images = order[place * self._batch_size : (place + 1) * self._batch_size][self._part]
        unreadable: dict[int, str] = {}
        items = []
        for index, repeat in images.tolist():
            key = (self._seed, epoch, index)
            rng = np.random.default_rng((*key, repeat) if repeat else key)
            items.append(self._first_readable(index, rng, unreadable))
        return {name: np.stack([item[name] for item in items]) for name in items[0]} | as_arrays(unreadable)

    def _first_readable(self, index: int, rng: np.random.Generator, unreadable: dict[int, str]) -> dict[str, Any]:
        """Prepares an image, or where it cannot be read the next one of its group that can, so that batches keep their size."""
        # No further than the limit, beyond which the run ends anyway: a lost disk is not searched to its end.
        for candidate in itertools.islice(self._from(index), self._max_corrupt + 1):
            try:
                item = self._source[candidate]
                return self._prepare(item, rng, self._settings, self._image_size, self._num_channels)
            except (ImageError, OSError) as error:
                unreadable[candidate] = reason(error)
        raise ImageError(too_many(self._source, unreadable, self._max_corrupt, self._advice))

    def _from(self, index: int) -> Iterator[int]:
        """Returns an image and all others of its group, from there on."""
        around = (i % len(self._source) for i in range(index, index + len(self._source)))
        return (i for i in around if self._groups is None or self._groups[i] == self._groups[index])


class _EvalBatches:
    """A process's part of every batch of one pass, the last of them filled up; `mask` is False where there is no image."""

    def __init__(self, source: Source, batch_size: int, processor: NatImageProcessor, part: slice):
        self._source, self._batch_size, self._processor, self._part = source, batch_size, processor, part

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        first = operator.index(number) * self._batch_size
        places = np.arange(first, first + self._batch_size)[self._part]
        images: list[np.ndarray | None] = []
        labels: list[int] = []
        unreadable: dict[int, str] = {}
        for index in map(int, places):
            image, label = None, 0
            if index < len(self._source):
                try:
                    item = self._source[index]
                    image, label = eval_image(item["image"], self._processor), item["label"]
                except (ImageError, OSError) as error:
                    unreadable[index] = reason(error)
            images.append(image)
            labels.append(label)
        if len(sizes := {image.shape[:2] for image in images if image is not None}) > 1:
            few = " and ".join(f"{height} x {width}" for height, width in sorted(sizes)[:2])
            raise ImageError(
                f"Images of a batch must have one size; the model's image processor makes some of {few} pixels (height x "
                "width). Give its preprocessor_config.json a size of height and width, or do_center_crop with a crop_size."
            )
        blank = next((np.zeros_like(image) for image in images if image is not None), None)
        if blank is None:  # of the right size, with nothing to see
            channels = self._processor.num_channels
            blank = np.zeros_like(eval_image(np.zeros((64, 64, channels), np.uint8), self._processor))
        return {
            "image": np.stack([blank if image is None else image for image in images]),
            "label": np.array(labels, np.int32),
            "mask": np.array([image is not None for image in images]),
            **as_arrays(unreadable),
        }


def reason(error: ImageError | OSError) -> str:
    """Returns why an image cannot be read, without the name that whoever reports it gives it."""
    reason = str(getattr(error, "strerror", None) or error)
    return reason.removeprefix("The image: ").removeprefix("cannot be read: ").rstrip(".")


def as_arrays(unreadable: dict[int, str]) -> dict[str, np.ndarray]:
    """Returns images and reasons as workers hand them over with a batch."""
    return {"unreadable": np.array(list(unreadable), np.int64), "reasons": np.array(list(unreadable.values()), np.str_)}


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over a process's part of batches that can say where it is and go back there.

    Attributes:
        unreadable: indices of images that could not be read so far.
    """

    def __init__(
        self,
        batches: Any,
        source: Source,
        workers: int,
        worker_kind: str,
        max_corrupt: int,
        advice: str,
        report: Callable[[str], None] | None,
        ahead: int = 2,
    ):
        if worker_kind not in ("threads", "processes"):
            raise ValueError(f"worker_kind must be 'threads' or 'processes'; got {worker_kind!r}.")
        try:
            import grain  # here, since whoever takes only the step of training needs no input pipeline
        except ImportError as error:
            raise ImportError(f"Reading batches needs more packages ({error}): {install_line('train')}.") from error
        self._grain: Any = grain
        self._batches, self._source, self._report = batches, source, report
        self._max_corrupt, self._advice = max_corrupt, advice
        self._workers, self._processes = workers, bool(workers) and worker_kind == "processes"
        self._ahead = ahead
        self._iterator, self._position = None, 0
        self.unreadable: set[int] = set()
        self._reasons: dict[int, str] = {}  # of those met since the start or resumption

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch = dict(next(self._iterator))
        self._position += 1
        found = dict(zip(batch.pop("unreadable").tolist(), batch.pop("reasons").tolist(), strict=True))
        for index, reason in found.items():
            if self._report and index not in self.unreadable:
                self._report(f"{self._source.name(index)} cannot be read, skipped: {reason}.")
            self.unreadable.add(index)
        self._reasons |= found
        if (
            found and len(self.unreadable) > self._max_corrupt
        ):  # those of before a resumption alone may have been mended
            found = {index: self._reasons.get(index, "") for index in self.unreadable}
            raise ImageError(too_many(self._source, found, self._max_corrupt, self._advice))
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position, as JSON holds it. It is the same whatever the number and kind of workers."""
        return {"position": self._position, "unreadable": sorted(self.unreadable), "images": len(self._source)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
            ValueError: it is one in another number of images, which would come in another order.
        """
        if state["images"] != len(self._source):
            raise ValueError(
                f"The run was begun with {state['images']} training images; the data now has {len(self._source)}."
            )
        self.close()
        self._position, self.unreadable = state["position"], set(state["unreadable"])

    def join_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns one position of those of all processes, which any process of a resumed run can go on from."""
        return states[0] | {"unreadable": sorted({i for state in states for i in state["unreadable"]})}

    def close(self) -> None:
        """Stops the workers; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _start(self) -> Any:
        grain, threads = self._grain, 0 if self._processes else self._workers
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._ahead * threads)
        # Grain's own state depends on the workers: a run that resumes with others would see other batches.
        dataset = grain.MapDataset.source(_From(self._batches, self._position)).to_iter_dataset(options)
        if self._processes:
            if not flags.FLAGS.is_parsed():  # Grain's workers look at flags, which only absl's own main functions parse
                flags.FLAGS(["natjax"])
            # Batches come through pipes. Shared memory would outlive a run that ends amid them, and containers have little of it.
            without_shm = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, without_shm)
            options = grain.MultiprocessingOptions(num_workers=self._workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_ignore_signals)
        return iter(dataset)


def _ignore_signals(index: int, count: int) -> None:
    """Leaves it to the run to end its workers: terminals and schedulers send signals to all processes of a group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _From:
    """Batches without the first ones."""

    def __init__(self, batches: Any, first: int):
        self._batches, self._first = batches, first

    def __len__(self) -> int:
        return max(0, len(self._batches) - self._first)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return self._batches[self._first + operator.index(index)]


def too_many(source: Source, unreadable: Mapping[int, str], allowed: int, advice: str) -> str:
    """Returns that more images cannot be read than may be: which, why where that is known, and what to do."""
    names = [source.name(index) + (f" ({reason})" if reason else "") for index, reason in sorted(unreadable.items())]
    images = f"More than {counted(allowed, 'image')}" if allowed else "Images"
    return f"{images} cannot be read: {first_few(names)}. {advice}"


def train_loader(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    num_channels: int,
    augmentation: HostSettings,
    seed: int,
    prepare: Callable[..., dict[str, Any]] = labelled_image,
    share: int = 0,
    shares: int = 1,
    workers: int = 0,
    worker_kind: str = "threads",
    ahead: int = 2,
    max_corrupt: int = 0,
    advice: str = _ADVICE,
    report: Callable[[str], None] | None = None,
) -> Batches:
    """Returns this process's part of an endless run's batches.

    A batch is {"image": uint8 [B, H, W, C], "label": int32 [B]}, or what `prepare` makes.

    An epoch has `steps_per_epoch` batches. The images left over differ from epoch to epoch. Where the source has `groups`, a
    batch has images of one group, the last of each filled up with others of its own, and none are left over.

    Args:
        source: the training images.
        batch_size: images of a batch over all shares.
        image_size: side of the images.
        num_channels: 1 or 3.
        augmentation: what happens to an image.
        seed: of order and augmentation.
        prepare: makes the arrays of an image, by name, of an item, a generator, and `augmentation`, `image_size` and
            `num_channels`; workers take it along.
        share: which part of every batch this process loads.
        shares: how many parts there are; must divide `batch_size`.
        workers: that read ahead; 0 reads when asked.
        worker_kind: "threads" or "processes".
        ahead: batches that a thread reads ahead.
        max_corrupt: images that may be unreadable.
        advice: a sentence on what to do where there are more.
        report: called with the name of every image that cannot be read and the reason, once.

    Raises:
        ValueError: sizes do not fit.
        ImageError: while iterating, if more than `max_corrupt` images cannot be read.
    """
    part = part_of(batch_size, share, shares)
    if len(source) < batch_size:
        raise ValueError(f"batch_size {batch_size} is more than the {len(source)} training images.")
    batches = _TrainBatches(
        source, batch_size, augmentation, seed, part, prepare, image_size, num_channels, max_corrupt, advice
    )
    return Batches(batches, source, workers, worker_kind, max_corrupt, advice, report, ahead)


def eval_loader(
    source: Source,
    *,
    batch_size: int,
    processor: NatImageProcessor,
    share: int = 0,
    shares: int = 1,
    workers: int = 0,
    worker_kind: str = "threads",
    max_corrupt: int = 0,
    advice: str = _ADVICE,
    report: Callable[[str], None] | None = None,
) -> Batches:
    """Returns this process's part of one pass over a source, in its order, with "mask" bool [B] beside image and label.

    Every process gets as many batches of as many images; where there is no image left, or it cannot be read, the mask is False.

    Args:
        source: the images.
        batch_size: images of a batch over all shares.
        processor: how images are prepared; scaling and normalising is left to the device.
        share: which part of every batch this process loads.
        shares: how many parts there are; must divide `batch_size`.
        workers: that read ahead; 0 reads when asked.
        worker_kind: "threads" or "processes".
        max_corrupt: images that may be unreadable.
        advice: a sentence on what to do where there are more.
        report: called with the name of every image that cannot be read and the reason, once.

    Raises:
        ValueError: sizes do not fit.
        ImageError: while iterating, if more than `max_corrupt` images cannot be read.
    """
    batches = _EvalBatches(source, batch_size, processor, part_of(batch_size, share, shares))
    return Batches(batches, source, workers, worker_kind, max_corrupt, advice, report)


def part_of(batch_size: int, share: int, shares: int) -> slice:
    """Returns which images of a batch are in a share."""
    if batch_size % shares:
        raise ValueError(f"batch_size must be a multiple of the {shares} shares it is loaded in; got {batch_size}.")
    size = batch_size // shares
    return slice(share * size, (share + 1) * size)


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Returns the number of batches of an epoch."""
    groups = _groups(source)
    if groups is None:
        return len(source) // batch_size
    return sum(-(-count // batch_size) for count in Counter(groups).values())


def _groups(source: Source) -> bytes | None:
    """Returns the number of every image's group, or None where any images go into a batch."""
    groups = getattr(source, "groups", None)
    return None if groups is None else groups.astype(np.uint8).tobytes()  # which can be looked up, and is hashed once


@functools.lru_cache(maxsize=4)
def _order(length: int, groups: bytes | None, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the images of an epoch's batches, one batch after the other, each with the number of its repeat: [N, 2]."""
    rng = np.random.default_rng((seed, epoch))
    if groups is None:
        return np.stack([rng.permutation(length), np.zeros(length, int)], 1)
    batches = []
    for group in sorted(set(groups)):
        order = rng.permutation(np.flatnonzero(np.frombuffer(groups, np.uint8) == group))
        more = rng.choice(order, -len(order) % batch_size)
        repeats = [0] * len(order) + [int(np.sum(more[: i + 1] == index)) for i, index in enumerate(more)]
        batches.append(np.stack([np.concatenate([order, more]), repeats], 1).reshape(-1, batch_size, 2))
    return rng.permutation(np.concatenate(batches)).reshape(-1, 2)
