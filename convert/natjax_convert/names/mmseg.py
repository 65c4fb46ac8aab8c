"""mmsegmentation's names, of the authors' segmentation/ folder: backbones as in classification, and UPerNet's heads."""

from natjax.configuration.dense import BACKBONES
from natjax_convert.dialect import Dialect, Signature
from natjax_convert.names.shilabs import SHILABS
from natjax_convert.names.upernet import HEADS, heads_table

_MAX_LEVELS = 16
_NORMS = {f"hidden_states_norms.stage{i + 1}": f"norm{i}" for i in range(_MAX_LEVELS)}


def _dialect(trunk: Dialect) -> Dialect:
    keys = (rf"backbone\.{key}" for key in trunk.kinds["classifier"].keys)
    rows = {row: names for row, names in trunk.table.items() if row not in ("layernorm", "classifier")}
    return Dialect(
        name="mmseg",
        title="mmsegmentation",
        example="backbone.patch_embed.norm.weight",
        model_types=trunk.model_types,
        kinds={"segmentation": Signature((r"decode_head\.", *keys), prefix="backbone.")},
        table={**rows, **_NORMS, **heads_table(batch_norm="bn", classifier="conv_seg")},
        heads=HEADS,
    )


MMSEG = tuple(_dialect(trunk) for trunk in SHILABS if set(trunk.model_types) <= set(BACKBONES))
