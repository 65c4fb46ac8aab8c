"""mmsegmentation's names, of the authors' segmentation/ folder: UPerNet's heads on a backbone."""

from natjax_convert.dialect import Dialect, Signature
from natjax_convert.names.dense import TRUNKS, backbone_keys, backbone_table
from natjax_convert.names.upernet import HEADS, heads_table


def _dialect(trunk: Dialect) -> Dialect:
    return Dialect(
        name="mmseg",
        title="mmsegmentation",
        example="backbone.patch_embed.norm.weight",
        model_types=trunk.model_types,
        kinds={"segmentation": Signature((r"decode_head\.", *backbone_keys(trunk)), prefix="backbone.")},
        table=backbone_table(trunk) | heads_table(batch_norm="bn", classifier="conv_seg"),
        heads=HEADS,
    )


MMSEG = tuple(map(_dialect, TRUNKS))
