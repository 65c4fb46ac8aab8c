"""Training losses of Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1906.09756), those of mmdetection 2.19.

Anchors, and the proposals of every stage, are matched with ground truth, and a sample of them learns. All lists have a fixed
length: what fills them up is matched with nothing, and counts nowhere.

Letters: B batch, G ground truth of an image, N anchors or proposals, K sampled ones, L classes, S side of a box head's features.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natjax.configuration import MaskRcnnConfig
from natjax.configuration.detection import BOX_SIDE, MASK_SIDE, RPN_IOUS, RPN_STDS
from natjax.detection.boxes import decode, encode
from natjax.detection.losses import binary_cross_entropy, cross_entropy, giou_loss, l1_loss
from natjax.detection.masks import mask_targets
from natjax.detection.matching import match, sample
from natjax.models.detection.roi_heads import RoiHead, Stage
from natjax_kernels.checks import as_array
from natjax_kernels.sharding import over_batch

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

_KINDS = {jnp.bool_: "bool", jnp.floating: "floating point", jnp.integer: "integers"}
_ANY_BOX = np.array([0, 0, 1, 1], np.float32)  # in place of one that does not count, but has to be encoded


class Targets(NamedTuple):
    """Ground truth of a batch.

    Attributes:
        boxes: [B, G, 4] float32, x1, y1, x2, y2 in pixels.
        labels: [B, G] int32, class indices.
        valid: [B, G], which entries are objects.
        masks: [B, G, H, W], which pixels of the padded image are of an object.
    """

    boxes: Float[Array, "B G 4"]
    labels: Int[Array, "B G"]
    valid: Bool[Array, "B G"]
    masks: Bool[Array, "B G H W"]


def checked_targets(labels: Any, shape: tuple[int, ...], classes: int) -> Targets:
    """Returns ground truth as the losses take it: valid are the objects whose box has finite sides above 0.

    Args:
        labels: see `MaskRcnnForObjectDetection.losses`.
        shape: of the pixel values, [B, H, W, C].
        classes: L.

    Raises:
        TypeError: an entry is no array.
        ValueError: entries are missing or unknown, or one has another shape or dtype; or (where it is not traced) an object has
            another class than the model's, or no such box.
    """
    names = {"boxes": "boxes", "class_labels": "labels", "valid": "valid", "masks": "masks"}
    if not isinstance(labels, Mapping) or set(labels) != set(names):
        got = sorted(labels) if isinstance(labels, Mapping) else type(labels).__name__
        raise ValueError(f"labels must be a dict of {', '.join(names)}; got {got}.")
    targets = Targets(**{field: as_array(f"labels[{name!r}]", labels[name]) for name, field in names.items()})
    batch, height, width = shape[:3]
    objects = targets.valid.shape[1] if targets.valid.ndim == 2 else 0
    for name, sides, kind in (
        ("valid", (), jnp.bool_),
        ("boxes", (4,), jnp.floating),
        ("class_labels", (), jnp.integer),
        ("masks", (height, width), jnp.bool_),
    ):
        value, expected = getattr(targets, names[name]), (batch, objects, *sides)
        if value.shape != expected or not objects or not jnp.issubdtype(value.dtype, kind):
            wanted = ["B", "G", *map(str, sides)]
            raise ValueError(
                f"labels[{name!r}] must be {_KINDS[kind]} [{', '.join(wanted)}] for B = {batch} images with places for G "
                f"objects, at least 1; got {value.dtype} of shape {value.shape}."
            )
    boxes = targets.boxes.astype(jnp.float32)
    are_boxes = (abs(boxes) < np.inf).all(axis=2) & (boxes[..., 2:] > boxes[..., :2]).all(axis=2)
    for name, legal, expected in (
        ("class_labels", (targets.labels >= 0) & (targets.labels < classes), f"in [0, {classes})"),
        ("boxes", are_boxes, "x1, y1, x2, y2 in pixels with sides above 0"),
    ):
        illegal = targets.valid & ~legal
        if not isinstance(illegal, jax.core.Tracer) and illegal.any():
            wrong = np.asarray(getattr(targets, names[name]))[np.asarray(illegal)][:5].tolist()
            raise ValueError(f"labels[{name!r}] of objects must be {expected}; got {wrong}.")
    return Targets(boxes, targets.labels.astype(jnp.int32), targets.valid & are_boxes, targets.masks)


class Sample(NamedTuple):
    """Proposals that learn: those of objects first.

    Attributes:
        boxes: [B, K, 4], 0 where they fill up the list.
        valid: [B, K], which are proposals.
        matched: [B, K] int32, their match, see `natjax.detection.matching`; 0 where they fill up the list.
        is_target: [B, K], which are ground truth itself.
    """

    boxes: Float[Array, "B K 4"]
    valid: Bool[Array, "B K"]
    matched: Int[Array, "B K"]
    is_target: Bool[Array, "B K"]

    @property
    def is_object(self) -> Bool[Array, "B K"]:
        """Which are matched with ground truth."""
        return self.matched > 0

    def of(self, values: Array) -> Array:
        """Returns what ground truth says [B, G, ...] of every proposal [B, K, ...]; of those of no object, anything."""
        return jax.vmap(lambda values, matched: values[jnp.maximum(matched - 1, 0)])(values, self.matched)

    def labels(self, targets: Targets, background: int) -> Int[Array, "B K"]:
        """Returns the class of every proposal."""
        return jnp.where(self.is_object, self.of(targets.labels), background)


def rpn_losses(
    config: MaskRcnnConfig,
    anchors: Float[np.ndarray, "N 4"],
    usable: Bool[Array, "B N"],
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    targets: Targets,
    key: Array,
) -> dict[str, Float[Array, ""]]:
    """Returns the losses of the region proposal network: of its scores, and of the boxes of anchors that are of objects."""

    def sums(usable, logits, deltas, boxes, valid, key):
        matched = match(jnp.asarray(anchors), boxes, valid=usable, gt_valid=valid, low_quality=True, **RPN_IOUS)
        indices, chosen = sample(
            key, matched, count=config.rpn_batch_size, positive_fraction=config.rpn_positive_fraction
        )
        matched = matched[indices]
        positive = chosen & (matched > 0)
        scores = binary_cross_entropy(logits[indices], positive.astype(logits.dtype), chosen.astype(logits.dtype))
        own = jnp.asarray(anchors)[indices]
        wanted = encode(own, jnp.where(positive[:, None], boxes[jnp.maximum(matched - 1, 0)], own), RPN_STDS)
        weights = positive[:, None].astype(deltas.dtype)
        moved = l1_loss(deltas[indices], wanted, weights, beta=config.rpn_smooth_l1_beta)
        positives = jnp.sum(positive)
        number = jnp.maximum(positives, 1) + jnp.maximum(jnp.sum(chosen) - positives, 1)
        return scores, moved, number

    keys = jax.random.split(key, len(logits))
    of_images = (usable, logits, deltas, targets.boxes, targets.valid, keys)
    scores, moved, number = over_batch(jax.vmap(sums), of_images)
    number = jnp.sum(number).astype(scores.dtype)
    return {"loss_rpn_cls": jnp.sum(scores) / number, "loss_rpn_bbox": jnp.sum(moved) / number}


def roi_losses(
    head: RoiHead,
    maps: Sequence[Float[Array, "B _ _ C"]],
    proposals: Float[Array, "B N 4"],
    valid: Bool[Array, "B N"],
    targets: Targets,
    image_sizes: Float[Array, "B 2"],
    key: Array,
) -> dict[str, Float[Array, ""]]:
    """Returns the losses of all stages by mmdetection's names: those of a cascade begin with s0, s1 and so on.

    Args:
        head: its stages learn one after another, each from the boxes of the one before it.
        maps: of the feature pyramid, without its last.
        proposals: of the region proposal network.
        valid: which of them are proposals.
        targets: ground truth.
        image_sizes: (height, width) without padding, which boxes between stages are clipped to.
        key: of the samples.
    """
    config, losses, samples = head.config, {}, []
    prefixes = [f"s{i}." if config.num_stages > 1 else "" for i in range(config.num_stages)]
    for i, of_stage in enumerate(jax.random.split(key, config.num_stages)):
        sampled = sample_proposals(config, i, proposals, valid, targets, of_stage)
        stage = Stage(sampled.boxes, *head.bbox_head[i](head.features(maps, sampled.boxes, BOX_SIDE), sampled.valid))
        for name, loss in box_losses(config, i, stage, sampled, targets).items():
            losses[prefixes[i] + name] = config.stage_loss_weights[i] * loss
        labels = sampled.labels(targets, background=stage.deltas.shape[2])
        proposals = jax.lax.stop_gradient(head.refined(i, stage, image_sizes, labels))
        valid = sampled.valid & ~sampled.is_target
        samples.append(sampled)
    for i, loss in enumerate(mask_losses(head, maps, samples, targets)):
        losses[prefixes[i] + "loss_mask"] = config.stage_loss_weights[i] * loss
    return losses


def sample_proposals(
    config: MaskRcnnConfig,
    index: int,
    proposals: Float[Array, "B N 4"],
    valid: Bool[Array, "B N"],
    targets: Targets,
    key: Array,
) -> Sample:
    """Returns the proposals that a stage learns from; ground truth is among what they are chosen of."""
    threshold = config.box_iou_thresholds[index]

    def choose(key, proposals, valid, boxes, are_boxes):
        matched = match(
            proposals,
            boxes,
            valid=valid,
            gt_valid=are_boxes,
            positive=threshold,
            negative=threshold,
            minimum=threshold,
            low_quality=config.box_low_quality_matches,
        )
        themselves = jnp.where(are_boxes, jnp.arange(1, len(boxes) + 1), -1)
        indices, chosen = sample(
            key,
            jnp.concatenate([themselves, matched]),
            count=config.box_batch_size,
            positive_fraction=config.box_positive_fraction,
        )
        return Sample(
            boxes=jnp.where(chosen[:, None], jnp.concatenate([boxes, proposals])[indices], 0),
            valid=chosen,
            matched=jnp.where(chosen, jnp.concatenate([themselves, matched])[indices], 0),
            is_target=chosen & (indices < len(boxes)),
        )

    keys = jax.random.split(key, len(proposals))
    return over_batch(jax.vmap(choose), (keys, proposals, valid, targets.boxes, targets.valid))


def box_losses(
    config: MaskRcnnConfig, index: int, stage: Stage, sampled: Sample, targets: Targets
) -> dict[str, Float[Array, ""]]:
    """Returns the losses of a box head: of its classes, and of the boxes of proposals that are of objects."""
    dtype, positive = stage.logits.dtype, sampled.is_object
    labels = sampled.labels(targets, background=stage.deltas.shape[2])
    scores = cross_entropy(stage.logits, labels, sampled.valid.astype(dtype))
    own, wanted = (jnp.where(positive[..., None], x, _ANY_BOX) for x in (sampled.boxes, sampled.of(targets.boxes)))
    deltas, stds = stage.of_class(jnp.where(positive, labels, 0)), config.box_stds[index]
    if config.box_loss == "giou":
        moved = giou_loss(decode(own, deltas, stds), wanted, positive.astype(dtype))
    else:
        moved = l1_loss(deltas, encode(own, wanted, stds), positive[..., None].astype(dtype))
    number = jnp.maximum(jnp.sum(sampled.valid), 1).astype(dtype)
    return {"loss_cls": scores / number, "loss_bbox": config.box_loss_weight * moved / number}


def mask_losses(
    head: RoiHead, maps: Sequence[Float[Array, "B _ _ C"]], samples: Sequence[Sample], targets: Targets
) -> list[Float[Array, ""]]:
    """Returns the losses of all mask heads: of the pixels of proposals that are of objects, in their class."""
    config = head.config
    # Positives are the first ones.
    firsts = [Sample(*(x[:, : config.box_positive_size] for x in sampled)) for sampled in samples]
    boxes = jnp.concatenate([jnp.where(first.is_object[..., None], first.boxes, 0) for first in firsts], axis=1)
    ends = np.cumsum([first.valid.shape[1] for first in firsts])[:-1]
    features, losses = jnp.split(head.features(maps, boxes, MASK_SIDE), ends, axis=1), []
    for mask_head, first, of_stage in zip(head.mask_head, firsts, features, strict=True):
        logits = mask_head(of_stage, first.of(targets.labels))
        of_images = (targets.masks, first.boxes, jnp.maximum(first.matched - 1, 0))
        wanted = over_batch(functools.partial(mask_targets, size=logits.shape[-1]), of_images)
        weights = first.is_object.astype(logits.dtype)
        pixels = jnp.maximum(jnp.sum(weights), 1) * logits.shape[-1] ** 2
        losses.append(binary_cross_entropy(logits, wanted.astype(logits.dtype), weights[..., None, None]) / pixels)
    return losses
