"""Losses: the three that labels can mean in Hugging Face's image classifiers (and so in torch.nn), and that of segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from natjax.configuration import NatConfig
from natjax.nn.resizing import resize_bilinear

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num

IGNORE_INDEX = -100  # torch.nn.CrossEntropyLoss's default: such labels do not count


def classification_loss(logits: Float[Array, "B L"], labels: Num[Array, "..."], config: NatConfig) -> Float[Array, ""]:
    """Computes the mean loss in float32 (float64 for float64 logits).

    Args:
        logits: [B, num_labels].
        labels: "single_label_classification": class indices [B], -100 for samples that do not count;
            "multi_label_classification": 0/1 or probabilities [B, num_labels]; "regression": values [B] or [B, num_labels].
        config: its `problem_type` chooses; None means regression for one label, single-label for integer labels,
            else multi-label.

    Raises:
        ValueError: labels do not fit the logits.
    """
    labels = jnp.asarray(labels)
    logits = logits.astype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)
    problem_type = config.problem_type
    if problem_type is None:
        integers = jnp.issubdtype(labels.dtype, jnp.integer)
        problem_type = (
            "regression"
            if config.num_labels == 1
            else "single_label_classification"
            if integers
            else "multi_label_classification"
        )
    if problem_type == "single_label_classification":
        return _cross_entropy(logits, labels)
    if labels.size != logits.size:
        raise ValueError(f"{problem_type} needs labels like the logits {logits.shape}; got shape {labels.shape}.")
    labels = labels.reshape(logits.shape).astype(logits.dtype)
    if problem_type == "regression":
        return jnp.mean((logits - labels) ** 2)
    # Binary cross entropy in the form that does not overflow.
    return jnp.mean(jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits))))


def _cross_entropy(logits, labels):
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.size != logits.shape[0]:
        raise ValueError(
            f"single_label_classification needs one integer class index per image, shape {logits.shape[:1]}; "
            f"got {labels.dtype} {labels.shape}."
        )
    labels, num_labels = labels.reshape(-1), logits.shape[-1]
    counts = labels != IGNORE_INDEX
    # Values are known outside of jit only; inside, a label out of range makes the loss NaN instead of silently wrong.
    legal = ~counts | ((labels >= 0) & (labels < num_labels))
    if not isinstance(legal, Tracer) and not legal.all():
        raise ValueError(f"labels must be in [0, {num_labels}) or {IGNORE_INDEX}; got {labels[~legal][:5].tolist()}.")
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.where(counts, labels, 0)[:, None] % num_labels, axis=-1
    )[:, 0]
    picked = jnp.where(legal, picked, jnp.nan)
    return -jnp.sum(jnp.where(counts, picked, 0)) / jnp.sum(counts, dtype=picked.dtype)


def segmentation_loss(
    logits: Float[Array, "B h w L"],
    labels: Num[Array, "..."],
    *,
    ignore_index: int = 255,
    average: Literal["valid", "all"] = "valid",
) -> Float[Array, ""]:
    """Computes the mean cross entropy of pixels in float32 (float64 for float64 logits).

    Args:
        logits: of maps of any size, which are resized to that of the labels (bilinear).
        labels: [B, H, W] class index of every pixel, integers of any dtype.
        ignore_index: label of pixels that do not count.
        average: over the "valid" pixels, those that count, as Hugging Face does (NaN where there are none); or over "all", as
            mmsegmentation does, where those that do not count have a loss of 0.

    Raises:
        ValueError: labels do not fit the logits.
    """
    labels = jnp.asarray(labels)
    batch, classes = logits.shape[0], logits.shape[-1]
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 3 or labels.shape[0] != batch:
        raise ValueError(
            f"labels must be integer class indices [{batch}, height, width]; got {labels.dtype} of shape {labels.shape}."
        )
    labels = labels.astype(jnp.int32)
    counts = labels != ignore_index
    legal = ~counts | ((labels >= 0) & (labels < classes))
    # Values are known outside of jit only; inside, a label out of range makes the loss NaN instead of silently wrong.
    if not isinstance(legal, Tracer) and not legal.all():
        raise ValueError(
            f"labels must be in [0, {classes}) or {ignore_index}, which is ignored; got {labels[~legal][:5].tolist()}."
        )
    wide = logits.astype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)
    wide = resize_bilinear(wide, labels.shape[1:])
    # A sum over classes, of which one is picked, as the gradient of a gather would be a scatter.
    picked = jnp.sum(jnp.where(labels[..., None] == jnp.arange(classes), wide, 0), axis=-1)
    losses = jnp.where(legal, jnp.where(counts, jax.nn.logsumexp(wide, axis=-1) - picked, 0), jnp.nan)
    return jnp.sum(losses) / (jnp.sum(counts, dtype=losses.dtype) if average == "valid" else losses.size)
