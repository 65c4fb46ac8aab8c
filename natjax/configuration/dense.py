"""What the configurations of dense prediction share: a backbone's configuration inside, its fields within reach, and classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from natjax.configuration.base import Configuration, model_type_of
from natjax.configuration.checks import plain
from natjax.configuration.dinat_s import DinatSConfig
from natjax.configuration.labels import TOGETHER, aligned_labels
from natjax.configuration.nat import NatConfig

BACKBONES: dict[str, type[NatConfig]] = {
    name: family for family in (NatConfig, DinatSConfig) for name in family.model_types
}

# Keys of config.json that follow from other fields.
_DERIVED = ("model_type", "num_labels", "label2id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig(Configuration):
    """A model on the feature maps of all levels of a backbone.

    Attributes:
        backbone_config: the backbone's; the model takes the maps of all its levels, `out_features` stage1 and so on. A mapping is
            read as a config.json. Its own classes mean nothing and are dropped.
        num_labels: number of classes.
        id2label: class names by class index. Giving it or `num_labels` fills in the other.
        label2id: class indices by class name; follows from `id2label`.
        output_hidden_states: default of the argument of the same name when calling a model.
        output_attentions: default of the argument of the same name when calling a model.
        extra: entries of a config.json that natjax has no use for, kept so that writing it back loses nothing.

    Raises:
        ValueError: a field, or a combination of them, is impossible; the message names field, value and expectation.
    """

    title: ClassVar[str]  # what messages call the architecture
    does: ClassVar[str]  # to images, in messages

    backbone_config: NatConfig = dataclasses.field(default_factory=lambda: NatConfig(drop_path_rate=0.2))
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
        for field in dataclasses.fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise ValueError(f"{field.name} must be true or false; got {getattr(self, field.name)!r}.")
        self._check_heads()
        self._set(**aligned_labels(self.num_labels, self.id2label, self.label2id))
        if not self.num_labels:
            raise ValueError(f"num_labels must be at least 1: a {self.title} without classes {self.does} nothing.")

    def __hash__(self):  # as NatConfig's: what decides the shape of a model
        return hash((self.backbone_config, self.num_labels))

    def _check_heads(self) -> None:
        """Checks the fields of the heads, and fills in those that follow from others."""
        raise NotImplementedError

    @property
    def model_type(self) -> str:
        """Name of the architecture in a config.json."""
        return self.model_types[0]

    @property
    def trunk(self) -> NatConfig:
        """The backbone's configuration."""
        return self.backbone_config

    @property
    def num_channels(self) -> int:
        """Channels of the input image."""
        return self.backbone_config.num_channels

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, those that are not the model's own in its backbone: `drop_path_rate`.

        Raises:
            ValueError: there is no such field, or the changes are impossible.
        """
        own = {field.name for field in dataclasses.fields(self)}
        inner = {field.name for field in dataclasses.fields(self.backbone_config)} - own
        within = {name: changes.pop(name) for name in list(changes) if name in inner}
        if within:
            backbone = self._read_backbone(changes.get("backbone_config", self.backbone_config))
            changes["backbone_config"] = backbone.replace(**within)
        return super().replace(**changes)

    def _following(self, changes: Mapping[str, Any]) -> Iterable[str]:
        if any(name in changes for name in TOGETHER):
            yield from TOGETHER

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a config.json."""
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
        """Makes a configuration from the content of a config.json.

        Raises:
            ValueError: it is of another architecture or over another backbone, or a value is impossible.
        """
        model_type = model_type_of(values)
        if model_type not in cls.model_types:
            known = " and ".join(map(repr, cls.model_types))
            raise ValueError(f"This configuration is of a {model_type!r} model; {cls.__name__} reads {known}.")
        if values.get("backbone_config") is None:
            named = f"; it names {values['backbone']!r}" if values.get("backbone") else ""
            raise ValueError(f"A {cls.title}'s configuration needs the backbone_config of a {_known()}{named}.")
        names = {f.name for f in dataclasses.fields(cls)} - {"extra", "label2id"}
        fields = {k: v for k, v in values.items() if k in names and not (k == "num_labels" and values.get("id2label"))}
        extra = {k: v for k, v in values.items() if k not in names and k not in _DERIVED}
        return cls(**fields, extra=extra)

    def _check_backbone(self) -> None:
        backbone = self._read_backbone(self.backbone_config)
        levels = backbone.stage_names[1:]
        if backbone.out_features not in (levels, levels[-1:]):
            raise ValueError(
                f"backbone_config: a {self.title} takes the maps of all levels, out_features {levels}; "
                f"got {backbone.out_features}."
            )
        self._set(backbone_config=backbone.replace(out_features=levels, num_labels=0))

    def _read_backbone(self, backbone: Any) -> NatConfig:
        """Returns a backbone's configuration, read where it is the content of a config.json."""
        if isinstance(backbone, Mapping):
            model_type = model_type_of(backbone)
            if not isinstance(model_type, str) or model_type not in BACKBONES:
                raise ValueError(
                    f"backbone_config is of a {model_type!r} model; natjax's {self.title} is over a {_known()}."
                )
            backbone = BACKBONES[model_type].from_dict(backbone)
        if not isinstance(backbone, tuple(BACKBONES.values())):
            raise ValueError(f"backbone_config must be that of a {_known()}; got {type(backbone).__name__}.")
        return backbone


def _known() -> str:
    return " or ".join(map(repr, BACKBONES))
