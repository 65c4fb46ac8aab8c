"""mmdetection's names, of the authors' detection/ folder: the heads of Mask R-CNN and Cascade Mask R-CNN on a backbone."""

from natjax.configuration import CascadeMaskRcnnConfig, MaskRcnnConfig
from natjax_convert.dialect import Dialect, Signature
from natjax_convert.names.dense import TRUNKS, backbone_keys, backbone_table
from natjax_convert.names.rcnn import HEADS, heads_table


def _dialect(trunk: Dialect, family: type[MaskRcnnConfig]) -> Dialect:
    stages = family is CascadeMaskRcnnConfig
    box_head = r"roi_head\.bbox_head\.\d+\." if stages else r"roi_head\.bbox_head\.[a-z]"
    return Dialect(
        name="mmdet",
        title="mmdetection",
        example="backbone.patch_embed.norm.weight",
        model_types=trunk.model_types,
        kinds={"detection": Signature((box_head, *backbone_keys(trunk)), prefix="backbone.")},
        table=backbone_table(trunk) | heads_table(batch_norm="bn", stages=stages),
        heads=HEADS,
        family=family,
    )


MMDET = tuple(_dialect(trunk, family) for trunk in TRUNKS for family in (MaskRcnnConfig, CascadeMaskRcnnConfig))
