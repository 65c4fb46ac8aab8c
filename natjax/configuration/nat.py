"""Configuration of NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001) models.

One frozen, validated dataclass with the fields of Hugging Face's `NatConfig` and `DinatConfig` (transformers 4.40.2), read
from and written to their `config.json`. `dilations=None` is NAT; one dilation per layer makes it DiNAT.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from natjax.configuration.base import Configuration, model_type_of
from natjax.configuration.checks import MAX_SIZE, expect_int, expect_number, int_tuple, plain, stages_named
from natjax.configuration.labels import TOGETHER, aligned_labels

ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

UNDILATED = ("nat", "nat_isotropic", "vitrpb")  # model types without dilations
_MAX_LEVELS = 16  # channels double with each: bounds for files that nobody means to run

# Keys of config.json that follow from other fields; `to_dict` writes them, `from_dict` derives them anew.
_DERIVED = ("model_type", "hidden_size", "num_layers", "num_labels", "stage_names", "label2id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NatConfig(Configuration):
    """Architecture and head of a NAT or DiNAT model. The defaults are those of `nat_mini` with Hugging Face's two labels.

    Attributes:
        patch_size: side of a patch in pixels. Only 4 exists (two stride-2 convolutions).
        num_channels: channels of the input image; 1 for grey scale.
        embed_dim: channels of the first level; every further level doubles them.
        depths: layers per level.
        num_heads: attention heads per level.
        kernel_size: side of the square attention window, in tokens. Odd, because of the relative positional bias.
        dilations: one dilation per layer, grouped by level (DiNAT), or None (NAT).
        mlp_ratio: hidden channels of the MLP per channel.
        qkv_bias: whether query, key and value projections have a bias.
        hidden_dropout_prob: dropout after the embeddings and the MLP.
        attention_probs_dropout_prob: dropout of the attention weights and after the output projection.
        drop_path_rate: stochastic depth of the last layer; earlier layers grow linearly from 0.
        hidden_act: one of "gelu" (exact), "relu", "selu", "gelu_new" (tanh approximation).
        initializer_range: standard deviation of the normal initialiser of linear and convolution weights.
        layer_norm_eps: epsilon of the layers' and the final LayerNorm.
        layer_scale_init_value: initial layer scale; no layer scale where 0 or less.
        out_features: stages that a backbone returns, of `stage_names`, in order.
        out_indices: the same as indices. Giving one fills in the other; giving none means the last stage.
        num_labels: number of classes; 0 means no classifier.
        id2label: class names by class index, which may be text ("0") as in JSON. Giving it or `num_labels` fills in the other.
        label2id: class indices by class name; follows from `id2label`, and may be given instead of it or beside it.
        problem_type: which loss `labels` mean: "regression", "single_label_classification",
            "multi_label_classification"; None decides by `num_labels` and the labels' dtype.
        output_hidden_states: default of the argument of the same name when calling a model.
        output_attentions: default of the argument of the same name when calling a model.
        extra: entries of a config.json that natjax has no use for, kept so that writing it back loses nothing.

    Raises:
        ValueError: a field, or a combination of them, is impossible; the message names field, value and expectation.
    """

    model_types: ClassVar[tuple[str, ...]] = ("nat", "dinat")
    overlapping: ClassVar[bool] = (
        True  # whether stem and downsamplers are overlapping convolutions, or patches as in Swin
    )

    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 5)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] | None = None
    mlp_ratio: float = 3.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    layer_scale_init_value: float = 0.0
    out_features: tuple[str, ...] | None = None
    out_indices: tuple[int, ...] | None = None
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    label2id: Mapping[str, int] | None = None
    problem_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        names = (f.name for f in dataclasses.fields(self) if f.name not in ("extra", "id2label", "label2id"))
        self._set(**{name: plain(getattr(self, name)) for name in names})
        self._check_numbers()
        self._check_patches()
        self._check_kernel_size()
        self._check_levels()
        self._set(**aligned_labels(self.num_labels, self.id2label, self.label2id))
        self._align_out_features()
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}; got {self.hidden_act!r}.")
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"problem_type must be None or one of {', '.join(PROBLEM_TYPES)}; got {self.problem_type!r}."
            )

    # Only what decides the shape of a model is hashed: cheap, and enough next to full equality. (Models are static
    # arguments of jitted functions, so this runs on every call of one.)
    def __hash__(self):
        return hash((self.embed_dim, self.depths, self.num_heads, self.kernel_size, self.dilations, self.num_labels))

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the architecture: "nat", or "dinat" where there are dilations."""
        return "nat" if self.dilations is None else "dinat"

    @property
    def trunk(self) -> Self:
        """The configuration of stem and levels: this one. (That of a UPerNet is its backbone's.)"""
        return self

    @property
    def num_levels(self) -> int:
        """Number of levels, called stages where features are selected."""
        return len(self.depths)

    @property
    def level_dims(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.embed_dim * 2**i for i in range(self.num_levels))

    @property
    def hidden_size(self) -> int:
        """Channels of the last level."""
        return self.level_dims[-1]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names a backbone's features go by: the stem, then every level."""
        return ("stem", *(f"stage{i}" for i in range(1, self.num_levels + 1)))

    def check_image_size(self, height: int, width: int, *, mixed: bool = False) -> None:
        """Checks that the model takes batches of this size in pixels, of images of mixed sizes where so: here, any."""

    def layer_dilations(self, level: int) -> tuple[int, ...]:
        """The dilation of every layer of a level."""
        return (1,) * self.depths[level] if self.dilations is None else self.dilations[level]

    def _following(self, changes: Mapping[str, Any]) -> Iterable[str]:
        for together in (("out_features", "out_indices"), TOGETHER):
            if any(name in changes for name in together):
                yield from together
        if "depths" in changes:
            yield from ("out_features", "out_indices")

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a config.json; that of NAT and DiNAT transformers 4.40.2 reads as the same model."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        if self.dilations is None:
            del fields["dilations"]
        fields |= {
            "id2label": {str(i): label for i, label in (self.id2label or {}).items()},
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_levels,
            "stage_names": self.stage_names,
        }
        del fields["num_labels"]  # Hugging Face derives it from id2label
        # JSON has lists only; a round trip through it makes the result what a reader of the file would see.
        return json.loads(json.dumps({**self.extra, **fields}, sort_keys=True))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a configuration from the content of a config.json of this family: Hugging Face's or natjax's.

        Raises:
            ValueError: it is of another architecture, or a value is impossible.
        """
        model_type = model_type_of(values)
        if model_type not in cls.model_types:
            raise ValueError(
                f"This configuration is of a {model_type!r} model; {cls.__name__} reads "
                f"{' and '.join(map(repr, cls.model_types))}."
            )
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        fields = {k: v for k, v in values.items() if k in names and not (k == "num_labels" and values.get("id2label"))}
        fields.pop("label2id", None)  # follows from id2label
        if model_type in UNDILATED:
            fields.pop("dilations", None)
        elif not fields.get("dilations"):
            raise ValueError(f"A {model_type!r} configuration needs dilations, one per layer; got none.")
        if "id2label" in fields and not fields["id2label"]:
            fields |= {"id2label": None, "num_labels": fields.get("num_labels", 0)}
        extra = {k: v for k, v in values.items() if k not in names and k not in _DERIVED}
        return cls(**fields, extra=extra)

    def _check_numbers(self) -> None:
        for name in ("num_channels", "embed_dim", "kernel_size"):
            expect_int(name, getattr(self, name), minimum=1, maximum=MAX_SIZE)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
            expect_number(name, getattr(self, name))
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}.")
        for name in ("mlp_ratio", "initializer_range", "layer_norm_eps", "layer_scale_init_value"):
            expect_number(name, getattr(self, name))
        if not 0 < self.mlp_ratio < 1e6 or int(self.mlp_ratio * self.embed_dim) < 1:
            raise ValueError(
                f"mlp_ratio must be below 1e6 and leave at least one hidden channel; got {self.mlp_ratio}."
            )
        if self.initializer_range < 0 or not self.layer_norm_eps > 0:
            raise ValueError(
                "initializer_range must not be negative and layer_norm_eps must be positive; "
                f"got {self.initializer_range} and {self.layer_norm_eps}."
            )
        for name in ("qkv_bias", "output_hidden_states", "output_attentions"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {getattr(self, name)!r}.")

    def _check_patches(self) -> None:
        if self.patch_size != 4:
            raise ValueError(f"patch_size must be 4, the only one there is; got {self.patch_size!r}.")
        if self.overlapping and self.embed_dim % 2:
            raise ValueError(
                f"embed_dim must be even (the stem's first convolution has half of it); got {self.embed_dim}."
            )

    def _check_kernel_size(self) -> None:
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd and at least 3 (relative positional bias); got {self.kernel_size}."
            )

    def _check_levels(self) -> None:
        self._set(depths=int_tuple("depths", self.depths), num_heads=int_tuple("num_heads", self.num_heads))
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(
                "depths and num_heads need one entry per level each; "
                f"got {len(self.depths)} ({self.depths}) and {len(self.num_heads)} ({self.num_heads})."
            )
        if len(self.depths) > _MAX_LEVELS:
            raise ValueError(f"depths may have at most {_MAX_LEVELS} levels; got {len(self.depths)}.")
        for level, (dim, heads) in enumerate(zip(self.level_dims, self.num_heads, strict=True)):
            if dim % heads:
                raise ValueError(f"level {level} has {dim} channels, not a multiple of its {heads} heads (num_heads).")
        if self.dilations is None:
            return
        if isinstance(self.dilations, str) or not isinstance(self.dilations, Sequence):
            raise ValueError(f"dilations must be one sequence per level, or None; got {self.dilations!r}.")
        dilations = tuple(int_tuple(f"dilations[{i}]", level) for i, level in enumerate(self.dilations))
        if tuple(map(len, dilations)) != self.depths:
            raise ValueError(f"dilations need one entry per layer, so {self.depths} per level; got {dilations}.")
        self._set(dilations=dilations)

    def _align_out_features(self) -> None:
        stages = self.stage_names
        if self.out_features is None and self.out_indices is None:
            features: tuple[str, ...] = stages[-1:]
        elif self.out_features is not None:
            features = stages_named("out_features", self.out_features, stages)
        else:
            indices = self.out_indices
            if isinstance(indices, str) or not isinstance(indices, Sequence):
                raise ValueError(f"out_indices must be a sequence of stage indices; got {indices!r}.")
            for i in indices:
                if isinstance(i, bool) or not isinstance(i, int) or not -len(stages) <= i < len(stages):
                    raise ValueError(f"out_indices must index {', '.join(stages)}; got {i!r}.")
            features = stages_named("out_indices", [stages[i] for i in indices], stages)
        indices = tuple(map(stages.index, features))
        if self.out_features is not None and self.out_indices is not None:
            given = tuple(i % len(stages) if isinstance(i, int) else i for i in self.out_indices)
            if given != indices:
                raise ValueError(
                    f"out_features {features} and out_indices {tuple(self.out_indices)} disagree; give one."
                )
        self._set(out_features=features, out_indices=indices)
