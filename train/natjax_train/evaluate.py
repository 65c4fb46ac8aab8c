"""Evaluation: top-1, top-5, loss and the confusion matrix, exact over ragged last batches, meshes and processes.

Logits are judged image by image on the device; what comes back is a few numbers per image, of all processes, so that every
process counts the same in whole numbers and sums losses in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from natjax_train.augment.device import normalize
from natjax_train.mesh import put_batch

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What an evaluation found.

    Attributes:
        loss: mean cross entropy.
        top1: part of the images whose class has the highest logit; of equal ones the first counts.
        top5: part whose class is among the five highest, or among all where there are fewer.
        images_per_second: without the first batch, which is compiled for, where there are more.
        confusion: images by class (rows) and predicted class (columns), int64 [L, L].
    """

    loss: float
    top1: float
    top5: float
    images_per_second: float
    confusion: Int[np.ndarray, "L L"]

    def per_class(self) -> list[tuple[int, float, float]]:
        """Returns, per class: images, recall (part of them that was found), precision (part of what was taken for it).

        NaN where there is nothing to divide by.
        """
        right, images, taken = np.diag(self.confusion), self.confusion.sum(1), self.confusion.sum(0)
        with np.errstate(invalid="ignore"):
            return list(zip(images.tolist(), (right / images).tolist(), (right / taken).tolist(), strict=True))


def evaluate(
    apply: Callable[[jax.Array], jax.Array],
    loader: Iterable[dict[str, np.ndarray]],
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    progress: Callable[[int], None] | None = None,
) -> Metrics:
    """Evaluates a model, under `jax.set_mesh`; with several processes, each calls this with its part of the batches.

    Args:
        apply: from pixel values [B, H, W, C] to logits [B, L].
        loader: of {"image": uint8 [B, H, W, C], "label": int32 [B], "mask": bool [B]}; where the mask is False there is padding.
        num_classes: L.
        mean: per channel, of pixels 0..1.
        std: per channel.
        mesh: where the batches go, split over all its devices.
        progress: called with the number of images that were judged so far.

    Raises:
        ValueError: there are no images, or the model has another number of classes.
    """
    pending, found = None, []
    done, began, before = 0, time.perf_counter(), 0

    def fetch(judged: dict[str, jax.Array]) -> None:
        nonlocal done, began, before
        host = jax.device_get(judged)
        found.append({name: values[host["mask"]] for name, values in host.items()})
        done += len(found[-1]["label"])
        if len(found) == 1:
            began, before = time.perf_counter(), done
        if progress:
            progress(done)

    start = began
    for batch in loader:
        placed = put_batch(mesh, batch)
        logits = apply(_normalize(placed["image"], mean=tuple(mean), std=tuple(std)))
        if logits.shape[-1] != num_classes:
            raise ValueError(f"The model has {logits.shape[-1]} classes, the data {num_classes}.")
        judged = _judge(logits, placed["label"], placed["mask"])
        if pending is not None:
            fetch(pending)  # one batch late, so that the device is busy meanwhile
        pending = judged
    if pending is not None:
        fetch(pending)
    if not done:
        raise ValueError("There are no images to evaluate.")
    if len(found) == 1:
        began, before = start, 0
    speed = (done - before) / max(time.perf_counter() - began, 1e-9)
    label, predicted, rank, loss = (
        np.concatenate([part[name] for part in found]) for name in ("label", "predicted", "rank", "loss")
    )
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (label, predicted), 1)
    return Metrics(
        float(loss.mean(dtype=np.float64)), float(np.mean(rank < 1)), float(np.mean(rank < 5)), speed, confusion
    )


_normalize = functools.partial(jax.jit, static_argnames=("mean", "std"))(normalize)


@jax.jit
def _judge(
    logits: Float[Array, "B L"], label: Int[Array, "B"], mask: Bool[Array, "B"]
) -> dict[str, Float[Array, "B"] | Int[Array, "B"] | Bool[Array, "B"]]:
    logits = logits.astype(jnp.float32)
    classes, own = jnp.arange(logits.shape[1]), label[:, None]
    logit = jnp.sum(jnp.where(classes == own, logits, 0), axis=1)  # no indexing, which would need shardings spelled out
    behind = (logits < logit[:, None]) | ((logits == logit[:, None]) & (classes > own))  # none where there are NaNs
    judged = {
        "label": label,
        "mask": mask,
        "predicted": jnp.argmax(logits, axis=1),
        "rank": logits.shape[1] - 1 - behind.sum(axis=1),
        "loss": jax.nn.logsumexp(logits, axis=1) - logit,
    }
    return reshard(judged, P())  # every process sees all images
