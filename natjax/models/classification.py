"""Image classification, `NatForImageClassification` of transformers 4.40.2 (and its Dinat twin)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import nnx

from natjax.configuration import NatConfig
from natjax.losses import classification_loss
from natjax.models.base import NatPreTrainedModel
from natjax.models.nat import NatModel
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import linear
from natjax.outputs import NatImageClassifierOutput

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num, Shaped


class NatForImageClassification(NatPreTrainedModel):
    """The bare model with a linear classifier on its pooled features; without one where `num_labels` is 0."""

    kind = "classifier"

    def _build(self, config: NatConfig, *, implementation: str | None, **options: Any) -> None:
        self.nat = NatModel(config, implementation=implementation, **options)
        if config.num_labels:
            kernel_init = truncated_normal(config.initializer_range)
            self.classifier = linear(config.hidden_size, config.num_labels, kernel_init=kernel_init, **options)
        else:
            self.classifier = nnx.data(None)

    def __call__(
        self,
        pixel_values: Float[Array, "B H W C"],
        labels: Num[Array, "..."] | None = None,
        *,
        pixel_mask: Shaped[Array, "B H W"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> NatImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: normalised images, floating point, any height and width.
            labels: where given, the mean loss is returned too; see `natjax.losses.classification_loss`.
            pixel_mask: see `NatModel`.
            output_hidden_states: see `NatModel`.
            output_attentions: see `NatModel`.
            rngs: see `NatModel`.

        Raises:
            ValueError: pixel_values or labels do not fit the model.
        """
        outputs = self.nat(
            pixel_values,
            pixel_mask=pixel_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            rngs=rngs,
        )
        logits = outputs.pooler_output if self.classifier is None else self.classifier(outputs.pooler_output)
        return NatImageClassifierOutput(
            logits=logits,
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            hidden_states=outputs.hidden_states,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
            attentions=outputs.attentions,
        )
