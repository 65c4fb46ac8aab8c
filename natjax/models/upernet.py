"""Semantic segmentation: UPerNet (arXiv 1807.10221), `UperNetForSemanticSegmentation` of transformers 4.40.2 and mmsegmentation.

The decode head pools the last feature map to a pyramid, adds every level's map to the one below it, and fuses all at the first
level's size, a quarter of the image's. An auxiliary head on the third map adds to the loss. Both heads have batch statistics:

    train = nnx.view(model, deterministic=False, use_running_average=False)

Letters: B batch, H W height and width of the image, h w of the first feature map, C channels, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import UperNetConfig
from natjax.configuration.upernet import AUXILIARY_FEATURE
from natjax.losses import segmentation_loss
from natjax.models.backbone import NatBackbone
from natjax.models.base import DensePreTrainedModel
from natjax.nn.conv_block import ConvBlock
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import as_rngs, channel_dropout, conv
from natjax.nn.resizing import adaptive_average_pool, resize_bilinear
from natjax.nn.sizes import alike, cut, mask_of_size
from natjax.outputs import SemanticSegmenterOutput
from natjax_kernels.sharding import spec_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class DecodeHead(nnx.Module):
    """Pyramid pooling of the last map, feature pyramid of all, and a classifier of every pixel of the first."""

    def __init__(self, config: UperNetConfig, channels: Sequence[int], **options: Any):
        dim = config.hidden_size
        options["kernel_init"] = truncated_normal(config.initializer_range)
        *lower, last = channels
        pooled = last + len(config.pool_scales) * dim
        self.pool_scales = config.pool_scales
        self.psp_modules = nnx.List([ConvBlock(last, dim, 1, **options) for _ in config.pool_scales])
        self.bottleneck = ConvBlock(pooled, dim, 3, **options)
        self.lateral_convs = nnx.List([ConvBlock(inputs, dim, 1, **options) for inputs in lower])
        self.fpn_convs = nnx.List([ConvBlock(dim, dim, 3, **options) for _ in lower])
        self.fpn_bottleneck = ConvBlock(len(channels) * dim, dim, 3, **options)
        self.dropout = channel_dropout(config.head_dropout_prob)
        self.classifier = conv(dim, config.num_labels or 0, 1, **options)

    def __call__(
        self, features: Sequence[Float[Array, "B _ _ _"]], *, sizes: Sequence[Sequence[int]] | None = None, rngs=None
    ) -> Float[Array, "B h w L"]:
        """Returns logits at the first feature map's size.

        Where maps are padded with zeros at their ends, sizes are those without; what is past them means nothing.
        """
        *lower, last = features
        own = [x.shape[1:3] for x in features] if sizes is None else sizes
        pooled = [block(adaptive_average_pool(last, scale, own[-1])) for scale, block in self._pyramid]
        pooled = [resize_bilinear(x, last.shape[1:3], spec_of(last)[1:3], (x.shape[1:3], own[-1])) for x in pooled]
        maps = [block(x) for block, x in zip(self.lateral_convs, lower, strict=True)]
        maps.append(self.bottleneck(jnp.concatenate([last, *pooled], axis=-1)))
        for i in reversed(range(len(lower))):
            maps[i] += resize_bilinear(maps[i + 1], maps[i].shape[1:3], own=(own[i + 1], own[i]))
        maps = [*(block(x) for block, x in zip(self.fpn_convs, _cut(maps[:-1], sizes), strict=True)), maps[-1]]
        maps[0], *_ = _cut(maps, sizes)
        return self.classifier(self.dropout(self.fpn_bottleneck.of_pyramid(maps, sizes), rngs=rngs))

    @property
    def _pyramid(self):
        return zip(self.pool_scales, self.psp_modules, strict=True)


def _cut(maps: Sequence[Array], sizes: Sequence[Sequence[int]] | None) -> Sequence[Array]:
    """Makes maps 0 past such sizes, as they are beyond the border of an image alone."""
    return maps if sizes is None else [cut(x, alike(size, len(x))) for x, size in zip(maps, sizes, strict=False)]


class AuxiliaryHead(nnx.Module):
    """A few convolutions and a classifier on the third feature map (FCN, arXiv 1411.4038)."""

    def __init__(self, config: UperNetConfig, in_features: int, **options: Any):
        dim = config.auxiliary_channels
        options["kernel_init"] = truncated_normal(config.initializer_range)
        inputs = (in_features, *(dim,) * config.auxiliary_num_convs)[: config.auxiliary_num_convs]
        self.convs = nnx.List([ConvBlock(n, dim, 3, **options) for n in inputs])
        concat = config.auxiliary_concat_input
        self.conv_cat = ConvBlock(in_features + dim, dim, 3, **options) if concat else nnx.data(None)
        self.dropout = channel_dropout(config.head_dropout_prob)
        self.classifier = conv(dim, config.num_labels or 0, 1, **options)

    def __call__(self, features: Sequence[Float[Array, "B _ _ _"]], *, rngs=None) -> Float[Array, "B _ _ L"]:
        """Returns logits at the third feature map's size."""
        x = given = features[AUXILIARY_FEATURE]
        for block in self.convs:
            x = block(x)
        if self.conv_cat is not None:
            x = self.conv_cat(jnp.concatenate([given, x], axis=-1))
        return self.classifier(self.dropout(x, rngs=rngs))


class UperNetForSemanticSegmentation(DensePreTrainedModel):
    """A backbone of natjax with UPerNet's heads: a class for every pixel."""

    kind = "segmentation"
    config_class = UperNetConfig
    config: UperNetConfig

    def _build(self, config: UperNetConfig, *, implementation: str | None, **options: Any) -> None:
        self.backbone = NatBackbone(config.backbone_config, implementation=implementation, **options)
        channels = self.backbone.channels
        self.decode_head = DecodeHead(config, channels, **options)
        auxiliary = config.use_auxiliary_head
        self.auxiliary_head = (
            AuxiliaryHead(config, channels[AUXILIARY_FEATURE], **options) if auxiliary else nnx.data(None)
        )

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        labels: Int[Array, "B H W"] | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> SemanticSegmenterOutput:
        """Segments images.

        The logits are [B, H, W, L] float32 of the whole image, gigabytes for large ones with many classes; `decode` returns
        those of a sixteenth of the pixels.

        Args:
            pixel_values: normalised images, floating point, any height and width.
            labels: class index of every pixel, integers; `config.loss_ignore_index` does not count. Where given, the loss of both
                heads is returned too, as Hugging Face's: the mean over the pixels that count.
            output_hidden_states: see `NatBackbone`.
            output_attentions: see `NatBackbone`.
            rngs: `nnx.Rngs` or a `jax.random.key` for dropouts; needed by a training view with any rate above 0.

        Raises:
            ValueError: pixel_values or labels do not fit the model; or a training view's statistics would be of one value.
        """
        want_states, want_attentions = self.outputs_wanted(output_hidden_states, output_attentions)
        logits, auxiliary_logits, outputs = self._decode(
            pixel_values, output_hidden_states=want_states, output_attentions=want_attentions, rngs=rngs
        )
        logits = resize_bilinear(logits, pixel_values.shape[1:3])
        loss = None
        if labels is not None:
            ignore_index = self.config.loss_ignore_index
            loss = segmentation_loss(logits, labels, ignore_index=ignore_index)
            if auxiliary_logits is not None:
                auxiliary = segmentation_loss(auxiliary_logits, labels, ignore_index=ignore_index)
                loss += self.config.auxiliary_loss_weight * auxiliary
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def decode(
        self,
        pixel_values: Float[Array, "B H W C"],
        *,
        image_size: tuple[int, int] | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> tuple[Float[Array, "B h w L"], Float[Array, "B _ _ L"] | None]:
        """Returns the logits of both heads before any resizing, None for an auxiliary head that the model does not have.

        The decode head's are at a quarter of the image's size, rounded up, the auxiliary head's at a sixteenth.

        Args:
            pixel_values: normalised images, floating point, any height and width.
            image_size: (height, width) of the images where arrays are padded at the bottom and right. Logits of the decode head
                are those of the images alone, what is past them means nothing, and there are none of the auxiliary head.
            rngs: see `__call__`.

        Raises:
            ValueError: pixel_values do not fit the model; or a training view's statistics would be of one value.
        """
        return self._decode(pixel_values, image_size=image_size, rngs=rngs)[:2]

    def _decode(self, pixel_values, *, image_size=None, rngs, **wanted):
        rngs, sizes = as_rngs(rngs), None
        if image_size is not None:
            wanted["pixel_mask"] = mask_of_size(image_size, pixel_values)
            config = self.backbone.config
            strides = [config.patch_size * 2 ** max(0, i - 1) for i in config.out_indices or ()]
            sizes = [tuple(-(-side // stride) for side in image_size) for stride in strides]
        outputs = self.backbone(pixel_values, rngs=rngs, **wanted)
        with jax.named_scope("decode_head"):
            logits = self.decode_head(outputs.feature_maps, sizes=sizes, rngs=rngs)
        if self.auxiliary_head is None or image_size is not None:
            return logits, None, outputs
        with jax.named_scope("auxiliary_head"):
            return logits, self.auxiliary_head(outputs.feature_maps, rngs=rngs), outputs
