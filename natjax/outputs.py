"""What models return: dataclasses with Hugging Face's field names, registered as JAX pytrees.

Fields that were not asked for are None. `output["logits"]` works beside `output.logits`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class ModelOutput:
    """Base of all outputs."""

    def __getitem__(self, name: str):
        """Returns a field by name, as Hugging Face's outputs do.

        Raises:
            KeyError: there is no such field, or it was not asked for.
        """
        value = getattr(self, name, None) if isinstance(name, str) else None
        if value is None:
            raise KeyError(f"{name!r}; this output has {', '.join(self.keys())}")
        return value

    def keys(self) -> tuple[str, ...]:
        """Returns the names of the fields that are present."""
        return tuple(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)  # ty: ignore[invalid-argument-type]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NatModelOutput(ModelOutput):
    """Output of `NatModel`.

    Attributes:
        last_hidden_state: [B, H/32, W/32, C], after the final norm.
        pooler_output: [B, C], its mean over the map.
        hidden_states: output of the stem and of every level, [B, H_i, W_i, C_i].
        reshaped_hidden_states: the same, [B, C_i, H_i, W_i].
        attentions: per level, weights of its last layer, [B, N, H_i, W_i, K*K]; maps smaller than the window show the padded map.
    """

    last_hidden_state: Float[Array, "B H W C"]
    pooler_output: Float[Array, "B C"]
    hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    reshaped_hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    attentions: tuple[Float[Array, "B _ _ _ _"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NatImageClassifierOutput(ModelOutput):
    """Output of `NatForImageClassification`.

    Attributes:
        logits: [B, num_labels], before softmax.
        loss: scalar, where labels were given.
        hidden_states: see `NatModelOutput`.
        reshaped_hidden_states: see `NatModelOutput`.
        attentions: see `NatModelOutput`.
    """

    logits: Float[Array, "B L"]
    loss: Float[Array, ""] | None = None
    hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    reshaped_hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    attentions: tuple[Float[Array, "B _ _ _ _"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticSegmenterOutput(ModelOutput):
    """Output of `UperNetForSemanticSegmentation`.

    Attributes:
        logits: [B, H, W, num_labels] at the image's size, before softmax.
        loss: scalar, where labels were given.
        hidden_states: see `NatBackboneOutput`.
        attentions: see `NatModelOutput`.
    """

    logits: Float[Array, "B H W L"]
    loss: Float[Array, ""] | None = None
    hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    attentions: tuple[Float[Array, "B _ _ _ _"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectDetectionOutput(ModelOutput):
    """Output of `MaskRcnnForObjectDetection` and `CascadeMaskRcnnForObjectDetection`.

    Every image has K entries, the detections first, in the order of their scores. The others are padding: `valid` is False,
    boxes, scores and masks are 0, labels -1.

    Attributes:
        boxes: [B, K, 4] float32, x1, y1, x2, y2 in pixels, divided by the scale factors that the model was called with.
        scores: [B, K] float32, probabilities.
        labels: [B, K] int32, class indices.
        valid: [B, K], whether an entry is a detection.
        masks: [B, K, 28, 28] float32, probabilities of the pixels of the box, each a 28th of its width and height.
        hidden_states: see `NatBackboneOutput`.
        attentions: see `NatModelOutput`.
    """

    boxes: Float[Array, "B K 4"]
    scores: Float[Array, "B K"]
    labels: Int[Array, "B K"]
    valid: Bool[Array, "B K"]
    masks: Float[Array, "B K 28 28"] | None = None
    hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    attentions: tuple[Float[Array, "B _ _ _ _"], ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NatBackboneOutput(ModelOutput):
    """Output of `NatBackbone`.

    Attributes:
        feature_maps: one per `config.out_features`, in that order, [B, H_i, W_i, C_i], each after a norm of its own.
        hidden_states: output of the stem and of every level before downsampling, [B, H_i, W_i, C_i].
        attentions: see `NatModelOutput`.
    """

    feature_maps: tuple[Float[Array, "B _ _ _"], ...]
    hidden_states: tuple[Float[Array, "B _ _ _"], ...] | None = None
    attentions: tuple[Float[Array, "B _ _ _ _"], ...] | None = None
