"""Which boxes learn what: matches of boxes with ground truth, and samples of the matched ones (Faster R-CNN, arXiv 1506.01497).

A match is an integer per box, as in mmdetection: i + 1 for ground truth i, 0 for the background, -1 for a box that does not
learn anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from natjax.detection.boxes import iou

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def match(
    boxes: Float[Array, "N 4"],
    gt_boxes: Float[Array, "G 4"],
    *,
    valid: Bool[Array, " N"],
    gt_valid: Bool[Array, " G"],
    positive: float,
    negative: float,
    minimum: float,
    low_quality: bool,
) -> Int[Array, " N"]:
    """Returns the match of every box.

    Args:
        boxes: anchors or proposals.
        gt_boxes: ground truth, at least one row.
        valid: which boxes take part; the others get -1.
        gt_valid: which rows are ground truth. Without any, all boxes are background.
        positive: the least intersection over union at which a box learns the ground truth that it overlaps most.
        negative: the intersection over union below which it learns the background.
        minimum: see `low_quality`; at least 0.
        low_quality: also match every ground truth with the boxes that overlap it most, all if several do so equally, if
            that is by `minimum` at least. This goes before other matches, and a later ground truth before an earlier one.
    """
    overlaps = jnp.where(valid[:, None] & gt_valid, iou(boxes, gt_boxes), -1)
    most = jnp.max(overlaps, axis=1)
    learned = jnp.where(most >= positive, jnp.argmax(overlaps, axis=1) + 1, jnp.where(most < negative, 0, -1))
    if low_quality:
        best = jnp.max(overlaps, axis=0)
        is_best = (overlaps == best) & (best >= minimum)
        last = jnp.max(jnp.where(is_best, jnp.arange(1, len(gt_boxes) + 1), 0), axis=1)
        learned = jnp.where(last > 0, last, learned)
    return jnp.where(valid, learned, -1).astype(jnp.int32)


def sample(
    key: Array, matched: Int[Array, " N"], *, count: int, positive_fraction: float
) -> tuple[Int[Array, " K"], Bool[Array, " K"]]:
    """Returns a random choice of boxes: of the positives up to a part of the places, of the negatives up to the rest.

    Args:
        key: `jax.random.key`; nothing is random if there are places for all boxes.
        matched: match of every box.
        count: K, the number of places; N, if there are more places than boxes.
        positive_fraction: the part of the places that is for positives. Places that they leave go to the negatives.

    Returns:
        Indices of the chosen boxes, int32 [K]: positives, negatives, each in the order of the boxes. Which of them are boxes,
        bool [K]: the first ones.
    """
    number = len(matched)
    order = jax.random.uniform(key, (number,))
    positives, chosen = _first(order, matched > 0, min(int(count * positive_fraction), number))
    negatives, free = _first(order, matched == 0, min(count, number))
    free &= jnp.arange(len(negatives)) < count - jnp.sum(chosen)
    # Negatives come after all positives, and what is not chosen last.
    places = jnp.concatenate(
        [jnp.where(chosen, positives, 2 * number), jnp.where(free, number + negatives, 2 * number)]
    )
    places = jnp.sort(places)[: min(count, number)]
    return places % number, places < 2 * number


def _first(order, candidates, number):
    """Returns the indices of the candidates that come first in a random order, and which of `number` indices are candidates."""
    priority, indices = jax.lax.top_k(jnp.where(candidates, order, -1), number)
    return indices, priority >= 0
