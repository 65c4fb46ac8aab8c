"""Configuration of DiNAT_s (arXiv 2209.15001, section 4): Swin's architecture with dilated neighborhood attention."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from natjax.configuration.nat import NatConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DinatSConfig(NatConfig):
    """Architecture and head of a DiNAT_s model: the fields of `NatConfig`. The defaults are those of `dinat_s_tiny`.

    Stem and downsamplers are patches side by side, which pad maps at the bottom and right to a multiple of theirs. Every layer
    has a dilation; where no `dilations` are given, all are 1. transformers has no such models: config.json is natjax's own.
    """

    model_types: ClassVar[tuple[str, ...]] = ("dinat_s",)
    overlapping: ClassVar[bool] = False

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.2

    __hash__ = NatConfig.__hash__

    def __post_init__(self):
        super().__post_init__()
        if self.dilations is None:
            self._set(dilations=tuple((1,) * depth for depth in self.depths))

    @property
    def model_type(self) -> str:
        """natjax's name of the architecture, "dinat_s"."""
        return "dinat_s"
