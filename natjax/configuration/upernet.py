"""Configuration of UPerNet (arXiv 1807.10221): semantic segmentation on the feature maps of a backbone.

The fields and the config.json of Hugging Face's `UperNetConfig` (transformers 4.40.2), and the dropout of mmsegmentation's heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from natjax.configuration.checks import MAX_SIZE, expect_int, expect_number, int_tuple
from natjax.configuration.dense import DenseConfig

AUXILIARY_FEATURE = 2  # the feature map that the auxiliary head takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class UperNetConfig(DenseConfig):
    """A UPerNet: its heads, and its backbone and classes as in `DenseConfig`.

    The defaults are those of `upernet_nat_mini` with Hugging Face's two labels.

    Attributes:
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

    Raises:
        ValueError: a field, or a combination of them, is impossible; the message names field, value and expectation.
    """

    model_types: ClassVar[tuple[str, ...]] = ("upernet",)
    title: ClassVar[str] = "UPerNet"
    does: ClassVar[str] = "segments"

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

    def __hash__(self):  # as NatConfig's: what decides the shape of a model
        return hash((self.backbone_config, self.hidden_size, self.pool_scales, self.num_labels))

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, in the backbone where they are its own; see `DenseConfig`.

        Other classes leave a palette in `extra` behind: its colours are those of the old ones.

        Raises:
            ValueError: there is no such field, or the changes are impossible.
        """
        new = super().replace(**changes)
        if new.id2label == self.id2label or "extra" in changes:
            return new
        return dataclasses.replace(new, extra={k: v for k, v in self.extra.items() if k != "palette"})

    def _following(self, changes: Mapping[str, Any]) -> Iterable[str]:
        yield from super()._following(changes)
        if "backbone_config" in changes:
            yield "auxiliary_in_channels"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a configuration from the content of a config.json of a UPerNet: Hugging Face's or natjax's.

        Raises:
            ValueError: it is of another architecture or over another backbone, or a value is impossible.
        """
        return super().from_dict({"head_dropout_prob": 0.0, **values} if isinstance(values, Mapping) else values)

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
