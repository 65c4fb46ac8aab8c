"""NAT and DiNAT models in Flax NNX: the bare model, the image classifier and the backbone.

They mirror `NatModel`, `NatForImageClassification` and `NatBackbone` of transformers 4.40.2 (and their Dinat twins) with images
in JAX's layout, [B, H, W, C]. A model is evaluated unless it is viewed for training:

    train = nnx.view(model, deterministic=False)
    train(pixel_values, labels=labels, rngs=nnx.Rngs(0)).loss
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import NatConfig
from natjax.layers import Builder, Embeddings, Encoder
from natjax.losses import classification_loss
from natjax.outputs import NatBackboneOutput, NatImageClassifierOutput, NatModelOutput

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import Array, Float, Num


class NatPreTrainedModel(nnx.Module):
    """What all models share: construction from a configuration, and loading and saving of published weights."""

    kind: ClassVar[str]  # which parameters of a checkpoint belong to the model

    def __init__(
        self,
        config: NatConfig,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes a model with random weights.

        Args:
            config: the architecture.
            dtype: compute dtype, for instance `jnp.bfloat16`; None computes in float32.
            param_dtype: dtype of the parameters.
            implementation: of neighborhood attention, see `natjax.neighborhood_attention`.
            rngs: source of the initial weights.

        Raises:
            ValueError: config is not a `NatConfig`.
        """
        if not isinstance(config, NatConfig):
            raise ValueError(
                f"config must be a NatConfig; got {type(config).__name__}. For presets see natjax.create_model."
            )
        self.config = config
        self._build(Builder(config, dtype=dtype, param_dtype=param_dtype, implementation=implementation, rngs=rngs))

    def _build(self, make: Builder) -> None:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> Self:
        """Loads published weights; see `natjax.pretrained.from_pretrained` for the options."""
        from natjax import pretrained  # models themselves know nothing of checkpoints

        return pretrained.from_pretrained(cls, source, **options)

    def save_pretrained(self, directory: str | os.PathLike, **options: Any) -> None:
        """Saves what transformers 4.40.2 and `from_pretrained` load; see `natjax.pretrained.save_pretrained`."""
        from natjax import pretrained

        pretrained.save_pretrained(self, directory, **options)

    def _outputs_wanted(self, output_hidden_states: bool | None, output_attentions: bool | None) -> tuple[bool, bool]:
        config = self.config
        return (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
        )


class NatModel(NatPreTrainedModel):
    """The bare model: stem, levels, final norm and mean pooling."""

    kind = "model"

    def _build(self, make: Builder) -> None:
        config = make.config
        self.embeddings = Embeddings(make)
        self.encoder = Encoder(make)
        self.layernorm = make.norm(config.hidden_size, config.layer_norm_eps)

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatModelOutput:
        """Computes features.

        Args:
            pixel_values: normalised images, floating point, any height and width.
            output_hidden_states: whether to return the output of the stem and of every level.
            output_attentions: whether to return the attention weights of every level's last layer.
            rngs: `nnx.Rngs` or a `jax.random.key` for dropouts; needed by a training view with any rate above 0.

        Raises:
            ValueError: pixel_values has another rank, number of channels or kind of dtype.
        """
        check_pixel_values(pixel_values, self.config)
        want_states, want_attentions = self._outputs_wanted(output_hidden_states, output_attentions)
        rngs = _as_rngs(rngs)
        stem = self.embeddings(pixel_values, rngs=rngs)
        levels, _, attentions = self.encoder(stem, rngs=rngs, output_attentions=want_attentions)
        last = self.layernorm(levels[-1])
        states = (stem, *levels)
        return NatModelOutput(
            last_hidden_state=last,
            pooler_output=jnp.mean(last, axis=(1, 2)),
            hidden_states=states if want_states else None,
            reshaped_hidden_states=tuple(jnp.moveaxis(x, -1, 1) for x in states) if want_states else None,
            attentions=attentions if want_attentions else None,
        )


class NatForImageClassification(NatPreTrainedModel):
    """The bare model with a linear classifier on its pooled features; without one where `num_labels` is 0."""

    kind = "classifier"

    def _build(self, make: Builder) -> None:
        config = make.config
        self.nat = NatModel(config, **make.options)
        self.classifier = make.linear(config.hidden_size, config.num_labels) if config.num_labels else nnx.data(None)

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        labels: Num[Array, "..."] | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: normalised images, floating point, any height and width.
            labels: where given, the mean loss is returned too; see `natjax.losses.classification_loss`.
            output_hidden_states: see `NatModel`.
            output_attentions: see `NatModel`.
            rngs: see `NatModel`.

        Raises:
            ValueError: pixel_values or labels do not fit the model.
        """
        outputs = self.nat(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions, rngs=rngs
        )
        logits = outputs.pooler_output if self.classifier is None else self.classifier(outputs.pooler_output)
        return NatImageClassifierOutput(
            logits=logits,
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            hidden_states=outputs.hidden_states,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
            attentions=outputs.attentions,
        )


class NatBackbone(NatPreTrainedModel):
    """Feature maps of the stages `config.out_features` for detection and segmentation, each with a norm of its own."""

    kind = "backbone"

    def _build(self, make: Builder) -> None:
        config = make.config
        self.embeddings = Embeddings(make)
        self.encoder = Encoder(make)
        self.hidden_states_norms = nnx.Dict(
            {stage: make.norm(dim) for stage, dim in zip(config.out_features or (), self.channels, strict=True)}
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every feature map."""
        dims = (self.config.embed_dim, *self.config.level_dims)
        return tuple(dims[i] for i in self.config.out_indices or ())

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatBackboneOutput:
        """Computes feature maps. Arguments and errors are those of `NatModel`."""
        check_pixel_values(pixel_values, self.config)
        want_states, want_attentions = self._outputs_wanted(output_hidden_states, output_attentions)
        rngs = _as_rngs(rngs)
        stem = self.embeddings(pixel_values, rngs=rngs)
        _, before_downsampling, attentions = self.encoder(stem, rngs=rngs, output_attentions=want_attentions)
        states = dict(zip(self.config.stage_names, (stem, *before_downsampling), strict=True))
        return NatBackboneOutput(
            feature_maps=tuple(
                self.hidden_states_norms[stage](states[stage]) for stage in self.config.out_features or ()
            ),
            hidden_states=tuple(states.values()) if want_states else None,
            attentions=attentions if want_attentions else None,
        )


def check_pixel_values(pixel_values: Any, config: NatConfig) -> None:
    """Checks a batch of images against a model.

    Raises:
        ValueError: it is no floating point [B, H, W, num_channels] array with at least one pixel.
    """
    shape, dtype = jnp.shape(pixel_values), jnp.result_type(pixel_values)
    expected = f"[batch, height, width, {config.num_channels}]"
    if len(shape) != 4 or shape[-1] != config.num_channels or 0 in shape[1:3]:
        hint = ""
        if len(shape) == 4 and shape[1] == config.num_channels:
            hint = " This looks like PyTorch's layout: move the channels last, x.transpose(0, 2, 3, 1)."
        raise ValueError(f"pixel_values must be {expected}; got shape {shape}.{hint}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"pixel_values must be normalised floating point images; got {dtype}. natjax.NatImageProcessor makes them."
        )


def _as_rngs(rngs: nnx.Rngs | Array | None) -> nnx.Rngs | None:
    return nnx.Rngs(dropout=rngs) if isinstance(rngs, jax.Array) else rngs
