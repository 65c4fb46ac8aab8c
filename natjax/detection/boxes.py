"""Boxes: areas, overlaps, and the offsets by which a network moves one box onto another (R-CNN, arXiv 1311.2524, appendix C).

A box is x1, y1, x2, y2 in pixels, float32: its sides are x2 - x1 and y2 - y1, without the "+ 1" of old datasets. Overlaps are
rounded as in mmdetection, wherever XLA computes them: no product is fused with the sum that it goes into. So a threshold
decides alike in every program, and boxes that overlap equally compare as equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num

EPSILON = 1e-6  # mmdetection's: the least area that an overlap is divided by
MAX_LOG_RATIO = abs(math.log(16 / 1000))  # how far a side grows or shrinks at most, as a logarithm


def area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Returns the areas of boxes; 0 for a box with a side below 0."""
    x1, y1, x2, y2 = _columns(boxes)
    return _product(x2 - x1, y2 - y1)


def iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Returns the intersection over union of every box of `a` with every box of `b`; 0 for boxes without an area."""
    intersection, union = _overlap(a[:, None], b[None])
    return intersection / jnp.maximum(union, EPSILON)


def giou(a: Float[Array, "*#N 4"], b: Float[Array, "*#N 4"]) -> Float[Array, "*N"]:
    """Returns the generalised intersection over union (arXiv 1902.09630) of boxes with their counterparts, in [-1, 1].

    Leading axes are broadcast: `giou(a[:, None], b[None])` is that of every pair.
    """
    intersection, union = _overlap(a, b)
    union = jnp.maximum(union, EPSILON)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _columns(a), _columns(b)
    width = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
    height = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
    enclosing = jnp.maximum(_product(width, height), EPSILON)
    return intersection / union - (enclosing - union) / enclosing


def clip(boxes: Float[Array, "*N 4"], image_sizes: Num[Array, "*#N 2"]) -> Float[Array, "*N 4"]:
    """Moves what is outside of an image to its border.

    Args:
        boxes: of one image or several.
        image_sizes: (height, width) in the boxes' pixels; its leading axes are broadcast to those of the boxes.
    """
    height_width = jnp.asarray(image_sizes).astype(boxes.dtype)
    limits = jnp.concatenate([height_width[..., ::-1]] * 2, axis=-1)
    return jnp.clip(boxes, 0, limits)


def encode(
    proposals: Float[Array, "*#N 4"], boxes: Float[Array, "*#N 4"], stds: Sequence[float]
) -> Float[Array, "*N 4"]:
    """Returns the offsets dx, dy, dw, dh that make boxes of proposals: shifts of the centre in sides, logarithms of the ratios.

    Args:
        proposals: with sides above 0.
        boxes: with sides above 0.
        stds: what the four offsets are divided by.
    """
    (px, py, pw, ph), (x, y, w, h) = _centres_and_sides(proposals), _centres_and_sides(boxes)
    offsets = jnp.stack([(x - px) / pw, (y - py) / ph, jnp.log(w / pw), jnp.log(h / ph)], axis=-1)
    return offsets / jnp.asarray(stds, offsets.dtype)


def decode(
    proposals: Float[Array, "*#N 4"],
    deltas: Float[Array, "*#N 4"],
    stds: Sequence[float],
    image_sizes: Num[Array, "*#N 2"] | None = None,
) -> Float[Array, "*N 4"]:
    """Returns proposals moved by offsets: the inverse of `encode`.

    Args:
        proposals: leading axes are broadcast to those of the offsets.
        deltas: offsets as `encode` returns them; no side grows or shrinks by more than 1000 / 16.
        stds: what the four offsets were divided by.
        image_sizes: (height, width) that the boxes are clipped to, as in `clip`; None leaves them as they are.
    """
    px, py, pw, ph = _centres_and_sides(proposals)
    dx, dy, dw, dh = _columns(deltas * jnp.asarray(stds, deltas.dtype))
    x, y = px + pw * dx, py + ph * dy
    w, h = (side * jnp.exp(jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)) for side, d in ((pw, dw), (ph, dh)))
    boxes = jnp.stack([x - w * 0.5, y - h * 0.5, x + w * 0.5, y + h * 0.5], axis=-1)
    return boxes if image_sizes is None else clip(boxes, image_sizes)


def _columns(x):
    return tuple(x[..., i] for i in range(4))


def _centres_and_sides(boxes):
    x1, y1, x2, y2 = _columns(boxes)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1


def _product(width, height):
    """Returns areas; the selection between the product and any sum keeps XLA from fusing the two."""
    return jnp.where((width > 0) & (height > 0), width * height, 0)


def _overlap(a, b):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = _columns(a), _columns(b)
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    intersection = _product(width, height)
    return intersection, area(a) + area(b) - intersection
