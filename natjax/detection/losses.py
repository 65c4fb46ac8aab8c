"""Losses of detectors as sums over weighted elements: what they are divided by, a model knows.

All are computed in the dtype of what is given, which a model makes float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from natjax.detection.boxes import giou

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def l1_loss(
    predictions: Float[Array, "*N"], targets: Float[Array, "*N"], weights: Float[Array, "*#N"]
) -> Float[Array, ""]:
    """Returns the sum of absolute differences."""
    return jnp.sum(jnp.abs(predictions - targets) * weights)


def smooth_l1_loss(
    predictions: Float[Array, "*N"], targets: Float[Array, "*N"], weights: Float[Array, "*#N"], *, beta: float
) -> Float[Array, ""]:
    """Returns the sum of absolute differences, of which those below `beta` are squared (Fast R-CNN, arXiv 1504.08083).

    They are d^2 / (2 beta) and d - beta / 2, which meet at `beta` with the same slope.
    """
    difference = jnp.abs(predictions - targets)
    losses = jnp.where(difference < beta, 0.5 / beta * difference**2, difference - 0.5 * beta)
    return jnp.sum(losses * weights)


def giou_loss(
    predictions: Float[Array, "*N 4"], targets: Float[Array, "*N 4"], weights: Float[Array, "*#N"]
) -> Float[Array, ""]:
    """Returns the sum of 1 - GIoU (arXiv 1902.09630) of boxes with theirs."""
    return jnp.sum((1 - giou(predictions, targets)) * weights)


def binary_cross_entropy(
    logits: Float[Array, "*N"], targets: Float[Array, "*N"], weights: Float[Array, "*#N"]
) -> Float[Array, ""]:
    """Returns the sum of the cross-entropies of probabilities with the logits' sigmoids."""
    # In the form that does not overflow.
    losses = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(losses * weights)


def cross_entropy(
    logits: Float[Array, "*N L"], labels: Int[Array, "*N"], weights: Float[Array, "*#N"]
) -> Float[Array, ""]:
    """Returns the sum of the cross-entropies of classes with the logits' softmax."""
    # A sum over classes, of which one is picked, as the gradient of a gather would be a scatter.
    picked = jnp.sum(jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0), axis=-1)
    return jnp.sum((jax.nn.logsumexp(logits, axis=-1) - picked) * weights)
