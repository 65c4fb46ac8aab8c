"""Non-maximum suppression: of boxes that overlap, the one with the highest score stays.

It is exact and greedy, as mmcv's: in the order of scores, a box is kept unless a kept one overlaps it by more than the
threshold. Shapes are static, so the kept boxes come as lists of a fixed length with flags. The work is done in blocks in the
order of scores, and ends with the last box that is wanted: N boxes of which K are kept take about N K comparisons, never N N.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from natjax.detection.boxes import iou

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

BLOCK = 256


@functools.partial(jax.jit, static_argnames=("iou_threshold", "max_kept"))
def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    *,
    iou_threshold: float,
    max_kept: int,
    groups: Int[Array, " N"] | None = None,
    valid: Bool[Array, " N"] | None = None,
) -> tuple[Int[Array, " K"], Bool[Array, " K"]]:
    """Returns the boxes that are kept, at most `max_kept`: those with the highest scores.

    Args:
        boxes: at least one.
        scores: of every box, finite; equal ones are taken in the order of the boxes.
        iou_threshold: a box goes if its intersection over union with a kept one is above.
        max_kept: K, of which the first flags are true.
        groups: class or level of every box, at least 0; boxes of other groups do not suppress each other. As in mmcv's
            `batched_nms`, boxes are moved apart by their group times the largest coordinate + 1, whose rounding decides when
            an overlap is close to the threshold. (From 10,000 boxes on, mmcv goes group by group, without the shift.)
        valid: which boxes take part; None for all.

    Returns:
        Indices of the kept boxes, int32 [K] in the order of scores, and which of them are boxes, bool [K].
    """
    boxes, scores = jax.lax.stop_gradient((boxes, scores))  # whole numbers come out
    count = len(boxes)
    if valid is None:
        valid = jnp.ones(count, bool)
    if groups is not None:
        boxes = _apart(boxes, groups, valid)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    order = jnp.pad(order.astype(jnp.int32), (0, -count % BLOCK))
    sorted_boxes, last = boxes[order], jnp.sum(valid)
    earlier = jnp.arange(BLOCK)[:, None] < jnp.arange(BLOCK)[None]

    def more(state):
        start, number, *_ = state
        return (start < last) & (number < max_kept)

    def step(state):
        start, number, kept, kept_boxes = state
        block = jax.lax.dynamic_slice_in_dim(sorted_boxes, start, BLOCK)
        free = ~jnp.any((iou(block, kept_boxes) > iou_threshold) & (jnp.arange(max_kept) < number), axis=-1)
        free &= start + jnp.arange(BLOCK) < last
        new = _greedy(free, (iou(block, block) > iou_threshold) & earlier)
        places = jnp.where(new, number + jnp.cumsum(new) - 1, max_kept)
        kept = kept.at[places].set(jax.lax.dynamic_slice_in_dim(order, start, BLOCK), mode="drop")
        kept_boxes = kept_boxes.at[places].set(block, mode="drop")
        return start + BLOCK, jnp.minimum(number + jnp.sum(new), max_kept), kept, kept_boxes

    state = (0, 0, jnp.zeros(max_kept, jnp.int32), jnp.zeros((max_kept, 4), boxes.dtype))
    _, number, kept, _ = jax.lax.while_loop(more, step, state)
    return kept, jnp.arange(max_kept) < number


def classwise_nms(
    boxes: Float[Array, "N L 4"],
    scores: Float[Array, "N L"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_kept: int,
    valid: Bool[Array, " N"] | None = None,
) -> tuple[Int[Array, " K"], Int[Array, " K"], Bool[Array, " K"]]:
    """Returns the detections among boxes of every class: those with a score above a threshold that `nms` keeps in their class.

    Args:
        boxes: of N proposals for each of L classes.
        scores: of every box.
        score_threshold: boxes with a score at or below do not take part.
        iou_threshold: see `nms`.
        max_kept: K, for all classes together.
        valid: which proposals take part; None for all.

    Returns:
        Proposals and classes of the detections, int32 [K] in the order of scores, and which of them are detections, bool [K].
    """
    classes = scores.shape[1]
    takes_part = scores > score_threshold
    if valid is not None:
        takes_part &= valid[:, None]
    indices, kept = nms(
        boxes.reshape(-1, 4),
        scores.reshape(-1),
        iou_threshold=iou_threshold,
        max_kept=max_kept,
        groups=jnp.broadcast_to(jnp.arange(classes), scores.shape).reshape(-1),
        valid=takes_part.reshape(-1),
    )
    return indices // classes, indices % classes, kept


def _apart(boxes, groups, valid):
    largest = jnp.max(jnp.where(valid[:, None], boxes, -jnp.inf))
    shift = groups.astype(boxes.dtype) * (largest + 1)
    # The selection keeps XLA from fusing the product with the sum. That would round otherwise.
    return boxes + jnp.where(valid, shift, 0)[:, None]


def _greedy(free, suppresses):
    """Returns which of the free boxes of a block are kept, where `suppresses[i, j]` for i < j alone.

    Every pass settles at least one box more, in their order, and usually nearly all: a chain of boxes of which each
    suppresses the next takes as many passes as it is long.
    """

    def changes(state):
        kept, before = state
        return jnp.any(kept != before)

    def settle(state):
        kept, _ = state
        return free & ~jnp.any(kept[:, None] & suppresses, axis=0), kept

    kept, _ = jax.lax.while_loop(changes, settle, settle((free, free)))
    return kept
