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
    predictions: Float[Array, "*N"], targets: Float[Array, "*N"], weights: Float[Array, "*#N"], *, beta: float = 0.0
) -> Float[Array, ""]:
    """Returns the sum of absolute differences, of which those below `beta` are squared (Fast R-CNN, arXiv 1504.08083).

    With a `beta` it is called the smooth L1 loss. A difference d adds d^2 / (2 beta) or d - beta / 2, which meet at `beta` with
    the same slope.
    """
    losses = jnp.abs(predictions - targets)
    if beta:
        losses = jnp.where(losses < beta, 0.5 / beta * losses**2, losses - 0.5 * beta)
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
    """Returns the sum of the cross-entropies of classes with the logits' softmax; NaN if there is no such class."""
    # A sum over classes, of which one is picked, as the gradient of a gather would be a scatter.
    picked = jnp.sum(jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0), axis=-1)
    legal = (labels >= 0) & (labels < logits.shape[-1])
    return jnp.sum(jnp.where(legal, jax.nn.logsumexp(logits, axis=-1) - picked, jnp.nan) * weights)
