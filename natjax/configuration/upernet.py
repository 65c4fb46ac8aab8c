"""Configuration of UPerNet (arXiv 1807.10221): semantic segmentation on the feature maps of a backbone.

The fields and the config.json of Hugging Face's `UperNetConfig` (transformers 4.40.2), and the dropout of mmsegmentation's heads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from natjax.configuration.base import Configuration, model_type_of
from natjax.configuration.checks import MAX_SIZE, expect_int, expect_number, int_tuple, plain
from natjax.configuration.dinat_s import DinatSConfig
from natjax.configuration.labels import TOGETHER, aligned_labels
from natjax.configuration.nat import NatConfig

BACKBONES: dict[str, type[NatConfig]] = {
    name: family for family in (NatConfig, DinatSConfig) for name in family.model_types
}
AUXILIARY_FEATURE = 2  # the feature map that the auxiliary head takes

# Keys of config.json that follow from other fields.
_DERIVED = ("model_type", "num_labels", "label2id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig(Configuration):
    """A UPerNet: its backbone, heads and classes. The defaults are those of `upernet_nat_mini` with Hugging Face's two labels.

    Attributes:
        backbone_config: the backbone's; UPerNet takes the maps of all its levels, `out_features` stage1 and so on. A mapping is
            read as a config.json. Its own classes mean nothing and are dropped.
        hidden_size: channels of the decode head.
        initializer_range: standard deviation of the normal initialiser of the heads' convolutions.
        pool_scales: sides of the maps that the last feature map is pooled to.
        use_auxiliary_head: whether a second head on the third feature map adds to the loss.
        auxiliary_loss_weight: weight of its loss.
        auxiliary_in_channels: channels of the third feature map; follows from the backbone.
        auxiliary_channels: channels of the auxiliary head.
        auxiliary_num_convs: its 3 x 3 convolutions; without any, its channels are those of the feature map.
        auxiliary_concat_input: whether its input goes into one more convolution beside what the others made of it.
        loss_ignore_index: the label of pixels that do not count.
        head_dropout_prob: dropout of whole channels before both classifiers: 0.1 in mmsegmentation. Hugging Face has none, so
            a config.json that does not say means 0.
        num_labels: number of classes.
        id2label: class names by class index. Giving it or `num_labels` fills in the other.
        label2id: class indices by class name; follows from `id2label`.
        output_hidden_states: default of the argument of the same name when calling a model.
        output_attentions: default of the argument of the same name when calling a model.
        extra: entries of a config.json that natjax has no use for, kept so that writing it back loses nothing.

    Raises:
        ValueError: a field, or a combination of them, is impossible; the message names field, value and expectation.
    """

    model_types: ClassVar[tuple[str, ...]] = ("upernet",)

    backbone_config: NatConfig = dataclasses.field(default_factory=lambda: NatConfig(drop_path_rate=0.2))
    hidden_size: int = 512
    initializer_range: float = 0.02
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    auxiliary_in_channels: int | None = None
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    loss_ignore_index: int = 255
    head_dropout_prob: float = 0.1
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    label2id: Mapping[str, int] | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        names = (f.name for f in dataclasses.fields(self) if f.name not in ("extra", "id2label", "label2id"))
        self._set(**{name: plain(getattr(self, name)) for name in names})
        self._check_backbone()
        self._check_heads()
        self._set(**aligned_labels(self.num_labels, self.id2label, self.label2id))
        if not self.num_labels:
            raise ValueError("num_labels must be at least 1: a UPerNet without classes segments nothing.")

    def __hash__(self):  # as NatConfig's: what decides the shape of a model
        return hash((self.backbone_config, self.hidden_size, self.pool_scales, self.num_labels))

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the architecture."""
        return "upernet"

    @property
    def trunk(self) -> NatConfig:
        """The backbone's configuration."""
        return self.backbone_config

    @property
    def num_channels(self) -> int:
        """Channels of the input image."""
        return self.backbone_config.num_channels

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed. What is no field of a UPerNet is changed in its backbone: `drop_path_rate`.

        Other classes leave a palette in `extra` behind: its colours are those of the old ones.

        Raises:
            ValueError: there is no such field, or the changes are impossible.
        """
        own = {field.name for field in dataclasses.fields(self)}
        inner = {field.name for field in dataclasses.fields(self.backbone_config)} - own
        within = {name: changes.pop(name) for name in list(changes) if name in inner}
        if within:
            backbone = _read(changes.get("backbone_config", self.backbone_config))
            changes["backbone_config"] = backbone.replace(**within)
        new = super().replace(**changes)
        if new.id2label == self.id2label or "extra" in changes:
            return new
        return dataclasses.replace(new, extra={k: v for k, v in self.extra.items() if k != "palette"})

    def _following(self, changes: Mapping[str, Any]) -> Iterable[str]:
        if any(name in changes for name in TOGETHER):
            yield from TOGETHER
        if "backbone_config" in changes:
            yield "auxiliary_in_channels"

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a config.json, which transformers 4.40.2 reads as the same model where it has its backbone."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        fields |= {
            "backbone_config": self.backbone_config.to_dict(),
            "id2label": {str(i): label for i, label in (self.id2label or {}).items()},
            "model_type": self.model_type,
        }
        del fields["num_labels"]
        return json.loads(json.dumps({**self.extra, **fields}, sort_keys=True))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a configuration from the content of a config.json of a UPerNet: Hugging Face's or natjax's.

        Raises:
            ValueError: it is of another architecture or over another backbone, or a value is impossible.
        """
        model_type = model_type_of(values)
        if model_type not in cls.model_types:
            raise ValueError(f"This configuration is of a {model_type!r} model; UperNetConfig reads 'upernet'.")
        if values.get("backbone_config") is None:
            named = f"; it names {values['backbone']!r}" if values.get("backbone") else ""
            raise ValueError(f"A UPerNet's configuration needs the backbone_config of a {_known()}{named}.")
        names = {f.name for f in dataclasses.fields(cls)} - {"extra", "label2id"}
        fields = {k: v for k, v in values.items() if k in names and not (k == "num_labels" and values.get("id2label"))}
        fields.setdefault("head_dropout_prob", 0.0)
        extra = {k: v for k, v in values.items() if k not in names and k not in _DERIVED}
        return cls(**fields, extra=extra)

    def _check_backbone(self) -> None:
        backbone = _read(self.backbone_config)
        levels = backbone.stage_names[1:]
        if backbone.out_features not in (levels, levels[-1:]):
            raise ValueError(
                f"backbone_config: a UPerNet takes the maps of all levels, out_features {levels}; got {backbone.out_features}."
            )
        self._set(backbone_config=backbone.replace(out_features=levels, num_labels=0))

    def _check_heads(self) -> None:
        for name in ("hidden_size", "auxiliary_channels"):
            expect_int(name, getattr(self, name), minimum=1, maximum=MAX_SIZE)
        expect_int("auxiliary_num_convs", self.auxiliary_num_convs, minimum=0, maximum=100)
        self._set(pool_scales=int_tuple("pool_scales", self.pool_scales))
        for scale in self.pool_scales:
            expect_int("pool_scales' entries", scale, minimum=1, maximum=MAX_SIZE)
        for name in ("initializer_range", "auxiliary_loss_weight", "head_dropout_prob"):
            expect_number(name, getattr(self, name))
        if self.initializer_range < 0 or not 0 <= self.head_dropout_prob < 1:
            raise ValueError(
                "initializer_range must not be negative and head_dropout_prob must be in [0, 1); "
                f"got {self.initializer_range} and {self.head_dropout_prob}."
            )
        for name in ("use_auxiliary_head", "auxiliary_concat_input", "output_hidden_states", "output_attentions"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {getattr(self, name)!r}.")
        if isinstance(self.loss_ignore_index, bool) or not isinstance(self.loss_ignore_index, int):
            raise ValueError(f"loss_ignore_index must be an integer; got {self.loss_ignore_index!r}.")
        dims = self.backbone_config.level_dims
        if not self.use_auxiliary_head:
            return
        if len(dims) <= AUXILIARY_FEATURE:
            raise ValueError(
                f"The auxiliary head takes the third feature map, and the backbone has {len(dims)} levels; "
                "use_auxiliary_head=False leaves it out."
            )
        channels = dims[AUXILIARY_FEATURE]
        if self.auxiliary_in_channels not in (None, channels):
            raise ValueError(
                f"auxiliary_in_channels must be the channels of the backbone's third level, {channels}; "
                f"got {self.auxiliary_in_channels}."
            )
        if not self.auxiliary_num_convs and self.auxiliary_channels != channels:
            raise ValueError(
                f"without convolutions, auxiliary_channels must be those of the backbone's third level, {channels}; "
                f"got {self.auxiliary_channels}."
            )
        self._set(auxiliary_in_channels=channels)


def _read(backbone: Any) -> NatConfig:
    """Returns a backbone's configuration, read where it is the content of a config.json."""
    if isinstance(backbone, Mapping):
        model_type = model_type_of(backbone)
        if not isinstance(model_type, str) or model_type not in BACKBONES:
            raise ValueError(f"backbone_config is of a {model_type!r} model; natjax's UPerNet is over a {_known()}.")
        backbone = BACKBONES[model_type].from_dict(backbone)
    if not isinstance(backbone, tuple(BACKBONES.values())):
        raise ValueError(f"backbone_config must be that of a {_known()}; got {type(backbone).__name__}.")
    return backbone


def _known() -> str:
    return " or ".join(map(repr, BACKBONES))
