"""The names of UPerNet's heads, which Hugging Face's and mmsegmentation's share but for two words."""

from __future__ import annotations

HEADS = ("decode_head", "auxiliary_head")
_BLOCKS = {  # of a convolution and its norm
    "decode_head.psp_modules.{i}": "decode_head.psp_modules.{i}.1",  # pooling is number 0
    "decode_head.{module}.{i}": "decode_head.{module}.{i}",
    "decode_head.{module}": "decode_head.{module}",
    "auxiliary_head.convs.{i}": "auxiliary_head.convs.{i}",
    "auxiliary_head.conv_cat": "auxiliary_head.conv_cat",
}


def heads_table(*, batch_norm: str, classifier: str) -> dict[str, str]:
    """Returns the rows of a dialect's table for both heads.

    Args:
        batch_norm: what the dialect calls a norm.
        classifier: what it calls a classifier.
    """
    rows = {f"{head}.classifier": f"{head}.{classifier}" for head in HEADS}
    for module, name in _BLOCKS.items():
        rows |= {f"{module}.conv": f"{name}.conv", f"{module}.batch_norm": f"{name}.{batch_norm}"}
    return rows
