"""What all models share: construction from a configuration, loading and saving, and checks of their input."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from natjax.configuration import Configuration, NatConfig
from natjax_kernels.checks import as_array, check_known

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from natjax_convert import Checkpoint


# About pixel values, by the type that was passed.
_ADVICE = {
    "": "natjax.NatImageProcessor makes one of images, paths and lists.",
    "torch.Tensor": "A tensor of PyTorch's, channels first, becomes one with tensor.permute(0, 2, 3, 1).numpy().",
}


class NatPreTrainedModel(nnx.Module):
    """What all models share: construction from a configuration, and loading and saving of published weights."""

    kind: ClassVar[str]  # which parameters of a checkpoint belong to the model
    config_class: ClassVar[type[Configuration]] = NatConfig

    def __init__(
        self,
        config: Any,
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
            ValueError: config is not of the class's `config_class`.
        """
        expected = self.config_class
        if not isinstance(config, expected):
            raise ValueError(
                f"config must be a {expected.__name__}; got {type(config).__name__}. For presets see natjax.create_model."
            )
        self.config = config
        self._build(config, implementation=implementation, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def _build(self, config: Any, *, implementation: str | None, **options: Any) -> None:
        """Makes the layers; `options` are dtype, param_dtype and rngs, as layers take them."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike | Checkpoint, **options: Any) -> Self:
        """Loads published weights; see `natjax.pretrained.from_pretrained` for the options."""
        from natjax import pretrained  # models themselves know nothing of checkpoints

        return pretrained.from_pretrained(cls, source, **options)

    def save_pretrained(self, directory: str | os.PathLike, **options: Any) -> None:
        """Saves what transformers 4.40.2 and `from_pretrained` load; see `natjax.pretrained.save_pretrained`."""
        from natjax import pretrained

        pretrained.save_pretrained(self, directory, **options)

    def outputs_wanted(self, output_hidden_states: bool | None, output_attentions: bool | None) -> tuple[bool, bool]:
        """Returns whether hidden states and attention weights are to be returned; None asks the configuration."""
        config = self.config
        return (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
        )


class DensePreTrainedModel(NatPreTrainedModel):
    """A model with heads on all feature maps of a backbone, for segmentation or detection."""

    @classmethod
    def from_backbone(cls, source: str | os.PathLike | Checkpoint, **options: Any) -> Self:
        """Loads a backbone, as of a classifier, and starts with new heads, to be trained.

            UperNetForSemanticSegmentation.from_backbone("nat_tiny", num_labels=19, drop_path_rate=0.3)

        See `natjax.pretrained.from_backbone` for the options.
        """
        from natjax import pretrained  # as in `NatPreTrainedModel.from_pretrained`

        return pretrained.from_backbone(cls, source, **options)


def checked_pixel_values(pixel_values: Any, config: NatConfig) -> jax.Array:
    """Returns a batch of images as an array, checked against a model.

    Raises:
        TypeError: it is neither an array of JAX's nor one of NumPy's.
        ValueError: it is no floating point [B, H, W, num_channels] array with at least one pixel.
    """
    pixel_values = as_array("pixel_values", pixel_values, _ADVICE)
    expected = f"[batch, height, width, {config.num_channels}]"
    shape, dtype = pixel_values.shape, pixel_values.dtype
    if len(shape) != 4 or shape[-1] != config.num_channels or 0 in shape[1:3]:
        hint = ""
        if len(shape) == 4 and shape[1] == config.num_channels:
            hint = " This looks like PyTorch's layout: move the channels last, x.transpose(0, 2, 3, 1)."
        raise ValueError(f"pixel_values must be {expected}; got shape {shape}.{hint}")
    check_known("pixel_values", shape)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"pixel_values must be normalised floating point images; got {dtype}. natjax.NatImageProcessor makes them."
        )
    return pixel_values
