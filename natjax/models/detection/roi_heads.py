"""The heads of Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1906.09756), on features of regions of interest.

Letters: B batch, N regions of an image, S side of their features, C channels, L classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import MaskRcnnConfig
from natjax.configuration.detection import BOX_SIDE, MASK_SIDE
from natjax.detection.boxes import decode
from natjax.detection.lists import of_valid
from natjax.detection.nms import classwise_nms
from natjax.detection.roi_align import product, roi_align
from natjax.nn.conv_block import ConvBlock
from natjax.nn.initializers import glorot_uniform, he_normal, truncated_normal
from natjax.nn.layers import add_bias, conv, linear
from natjax_kernels.sharding import over_batch, reshape_batch, shared_along

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Stage(NamedTuple):
    """What a box head says of its regions.

    Attributes:
        boxes: [B, N, 4] float32, the regions, in the network's pixels.
        logits: [B, N, L + 1] float32, of the classes and of the background, which is last.
        deltas: [B, N, L, 4] float32, of each class's box.
    """

    boxes: Float[Array, "B N 4"]
    logits: Float[Array, "B N LB"]
    deltas: Float[Array, "B N L 4"]

    def of_class(self, labels: Int[Array, "B N"]) -> Float[Array, "B N 4"]:
        """Returns the deltas of one class per region."""
        return jnp.take_along_axis(self.deltas, labels[..., None, None], axis=2)[:, :, 0]


class PaddedDetections(NamedTuple):
    """What is found, those of the highest scores first; see `natjax.outputs.ObjectDetectionOutput`."""

    boxes: Float[Array, "B K 4"]
    scores: Float[Array, "B K"]
    labels: Int[Array, "B K"]
    valid: Bool[Array, "B K"]


class BoxHead(nnx.Module):
    """Convolutions and linear layers, then scores of all classes and of the background, which is last, and a box per class."""

    def __init__(self, config: MaskRcnnConfig, **options: Any):
        classes, dim, width = config.num_labels or 0, config.fpn_channels, config.box_fc_channels
        convs, fcs = [], []
        for _ in range(config.box_num_convs):
            channels = config.box_conv_channels
            convs.append(ConvBlock(dim, channels, 3, kernel_init=he_normal(9 * channels), **options))
            dim = channels
        dim *= BOX_SIDE**2
        for _ in range(config.box_num_fcs):
            fcs.append(linear(dim, width, kernel_init=glorot_uniform(dim, width), **options))
            dim = width
        self.shared_convs, self.shared_fcs = nnx.List(convs), nnx.List(fcs)
        for_scores, for_boxes = (truncated_normal(config.classifier_range(name)) for name in ("fc_cls", "fc_reg"))
        self.fc_cls = linear(dim, classes + 1, kernel_init=for_scores, **options)
        self.fc_reg = linear(dim, 4 * classes, kernel_init=for_boxes, **options)

    def __call__(
        self, features: Float[Array, "B N S S C"], valid: Bool[Array, "B N"] | None = None
    ) -> tuple[Float[Array, "B N LB"], Float[Array, "B N L 4"]]:
        """Returns logits of L + 1 classes and deltas of the boxes of L classes, float32.

        Args:
            features: of regions.
            valid: which regions a batch's statistics are of; None for all.
        """
        x = self.convolved(_flat(features), None if valid is None else _flat(valid))
        return self.classified(reshape_batch(x, *features.shape[:2], *x.shape[1:]))

    def convolved(
        self, x: Float[Array, "M S S C"], counted: Bool[Array, " M"] | None = None
    ) -> Float[Array, "M S S D"]:
        """Returns what the convolutions make of the features of regions. For `counted` see `BatchNorm`."""
        for block in self.shared_convs:
            x = block(x, counted)
        return x

    def classified(self, x: Float[Array, "B N S S D"]) -> tuple[Float[Array, "B N LB"], Float[Array, "B N L 4"]]:
        """Returns logits and deltas of what the convolutions made."""
        lead = x.shape[:2]
        x = x.transpose(0, 1, 4, 2, 3)  # PyTorch's order: channels, height, width
        x = reshape_batch(x, *lead, math.prod(x.shape[2:]))
        for layer in self.shared_fcs:
            x = jax.nn.relu(layer(x))
        logits, deltas = (layer(x).astype(jnp.float32) for layer in (self.fc_cls, self.fc_reg))
        return logits, reshape_batch(deltas, *lead, deltas.shape[2] // 4, 4)


class Upsample(nnx.Module):
    """A transposed convolution with a kernel and a stride of 2: every point becomes 2 x 2 points by a linear layer."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.dtype = dtype
        shape = (2, 2, outputs, inputs)  # height, width before them
        self.kernel = nnx.Param(he_normal(4 * inputs)(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype))

    def __call__(self, x: Float[Array, "N S S C"]) -> Float[Array, "N M M D"]:
        """Returns maps of M = 2 S points a side."""
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel[...].dtype)
        x, kernel, bias = (jnp.asarray(value, dtype) for value in (x, self.kernel[...], self.bias[...]))
        y = jnp.einsum("nhwc,yxdc->nhywxd", x, shared_along(kernel, x))
        y = reshape_batch(y, len(x), 2 * x.shape[1], 2 * x.shape[2], len(bias))
        return add_bias(y, bias)


class MaskHead(nnx.Module):
    """Convolutions, an upsampling one, and a classifier of every pixel for every class."""

    def __init__(self, config: MaskRcnnConfig, **options: Any):
        dim, convs = config.fpn_channels, []
        for _ in range(config.mask_num_convs):
            channels = config.mask_channels
            convs.append(conv(dim, channels, 3, kernel_init=he_normal(9 * channels), **options))
            dim = channels
        self.convs = nnx.List(convs)
        self.upsample = Upsample(dim, config.mask_channels, **options)
        kernel_init = truncated_normal(config.classifier_range("conv_logits"))
        self.conv_logits = conv(config.mask_channels, config.num_labels or 0, 1, kernel_init=kernel_init, **options)

    def __call__(self, features: Float[Array, "B N S S C"], labels: Int[Array, "B N"]) -> Float[Array, "B N M M"]:
        """Returns logits, float32, of the pixels of one class per region, of M = 2 S a side."""
        x = _flat(features)
        for layer in self.convs:
            x = jax.nn.relu(layer(x))
        x = jax.nn.relu(self.upsample(x))
        kernel, bias = self.conv_logits.kernel[...][0, 0], self.conv_logits.bias[...]  # ty: ignore[not-subscriptable]
        x, kernel, bias = self.conv_logits.promote_dtype((x, kernel, bias), dtype=self.conv_logits.dtype)
        kernel, bias = (shared_along(weight, x) for weight in (kernel, bias))
        # Picked by a product, as the gradient of a gather would be a scatter to what all devices have.
        is_class = (_flat(labels)[:, None] == jnp.arange(len(bias))).astype(x.dtype)
        of_kernel, of_bias = (product(is_class, weight) for weight in (kernel.T, bias))
        logits = jnp.einsum("nyxc,nc->nyx", x, of_kernel).astype(jnp.float32)
        logits = logits + of_bias.astype(jnp.float32)[:, None, None]
        return reshape_batch(logits, *labels.shape, *x.shape[1:3])


def _flat(x: Array) -> Array:
    """Returns [B N, ...] of [B, N, ...]."""
    return reshape_batch(x, x.shape[0] * x.shape[1], *x.shape[2:])


class RoiHead(nnx.Module):
    """A box head and a mask head for every stage. Maps are those of the feature pyramid, without its last."""

    def __init__(self, config: MaskRcnnConfig, **options: Any):
        self.config = config
        self.bbox_head = nnx.List([BoxHead(config, **options) for _ in config.box_stds])
        self.mask_head = nnx.List([MaskHead(config, **options) for _ in config.box_stds])

    def features(
        self, maps: Sequence[Float[Array, "B _ _ C"]], boxes: Float[Array, "B N 4"], side: int
    ) -> Float[Array, "B N S S C"]:
        """Returns the features of regions; 0 for those without an area."""
        align = functools.partial(roi_align, strides=self.config.strides[: len(maps)], output_size=side)
        return over_batch(align, (list(maps), boxes))

    def stages(
        self,
        maps: Sequence[Float[Array, "B _ _ C"]],
        boxes: Float[Array, "B N 4"],
        valid: Bool[Array, "B N"],
        image_sizes: Float[Array, "B 2"],
    ) -> list[Stage]:
        """Returns what all stages say of boxes that are valid, the first of proposals, each other of the boxes before it."""
        found: list[Stage] = []
        for i, head in enumerate(self.bbox_head):
            if found:
                boxes = self.refined(i - 1, found[-1], image_sizes)
            features = self.features(maps, boxes, BOX_SIDE)
            if head.shared_convs:
                features = _of_valid(BoxHead.convolved, head, valid, features)
            found.append(Stage(boxes, *head.classified(features)))
        return found

    def refined(
        self, index: int, stage: Stage, image_sizes: Float[Array, "B 2"], labels: Int[Array, "B N"] | None = None
    ) -> Float[Array, "B N 4"]:
        """Returns the boxes of the stage of this index, each of one class.

        Args:
            index: of the stage.
            stage: what it says.
            image_sizes: (height, width) without padding, which boxes are clipped to.
            labels: true classes, L for the background; None where they are not known. Then, and for the background, it is the
                class, background aside, that the stage finds the most likely.
        """
        classes, likeliest = stage.deltas.shape[2], jnp.argmax(stage.logits[..., :-1], axis=-1)
        labels = likeliest if labels is None else jnp.where(labels == classes, likeliest, labels)
        return decode(stage.boxes, stage.of_class(labels), self.config.box_stds[index], image_sizes[:, None])

    def detections(
        self,
        stages: Sequence[Stage],
        valid: Bool[Array, "B N"],
        image_sizes: Float[Array, "B 2"],
        scale_factors: Float[Array, "B 4"],
    ) -> PaddedDetections:
        """Returns the best boxes of the last stage, by the mean of all stages' logits.

        Args:
            stages: of `stages`.
            valid: which of their boxes are proposals.
            image_sizes: (height, width) without padding, which boxes are clipped to.
            scale_factors: what boxes are divided by, before non-maximum suppression.
        """
        config, last = self.config, stages[-1]
        scores = jax.nn.softmax(sum(stage.logits for stage in stages) / len(stages))[..., :-1]
        boxes = decode(last.boxes[:, :, None], last.deltas, config.box_stds[-1], image_sizes[:, None, None])

        def suppress(boxes: Array, scores: Array, valid: Array) -> PaddedDetections:
            row, label, kept = classwise_nms(
                boxes,
                scores,
                score_threshold=config.score_threshold,
                iou_threshold=config.nms_threshold,
                max_kept=config.max_detections,
                valid=valid,
            )
            found = jnp.where(kept[:, None], boxes[row, label], 0), jnp.where(kept, scores[row, label], 0)
            return PaddedDetections(*found, jnp.where(kept, label, -1), kept)

        return over_batch(jax.vmap(suppress), (boxes / scale_factors[:, None, None], scores, valid))

    def masks(
        self, maps: Sequence[Float[Array, "B _ _ C"]], boxes: Float[Array, "B N 4"], labels: Int[Array, "B N"]
    ) -> Float[Array, "B N M M"]:
        """Returns probabilities of the pixels of boxes, of one class each: the mean of all stages'; 0 for label -1."""

        def probabilities(heads: Any, features: Array, labels: Array) -> Array:
            first, *others = (jax.nn.sigmoid(head(features[None], labels[None])[0]) for head in heads)
            return sum(others, first) / len(heads)

        features = self.features(maps, boxes, MASK_SIDE)
        return _of_valid(probabilities, self.mask_head, labels >= 0, features, labels)


def _of_valid(function: Callable[..., Array], module: nnx.Module, valid: Array, *arrays: Array) -> Array:
    """Returns what a function of a module and entries makes of the valid ones, see `of_valid`; every device of its images'."""
    graphdef, state = nnx.split(module)

    def of_images(valid: Array, arrays: tuple[Array, ...], state: Any) -> Array:
        return of_valid(functools.partial(function, nnx.merge(graphdef, state)), valid, *arrays)

    return over_batch(of_images, (valid, arrays), (state,))
