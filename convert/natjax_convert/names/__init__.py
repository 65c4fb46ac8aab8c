"""The dialects of checkpoints. A new one is a file here and an entry in `DIALECTS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natjax_convert.dialect import Dialect, Found
from natjax_convert.names.hf import HF
from natjax_convert.names.shilabs import SHILABS
from natjax_convert.state_dict import unusable

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (HF, SHILABS)}


def detect(state_dict: Mapping[str, Any]) -> Found:
    """Returns the dialect and kind of a state dict, by its keys.

    Raises:
        CheckpointError: it is of no NAT or DiNAT.
    """
    for dialect in DIALECTS.values():
        if found := dialect.recognise(state_dict):
            return found
    examples = " or ".join(f"{dialect.example} ({dialect.title})" for dialect in DIALECTS.values())
    got = ", ".join(map(repr, list(state_dict)[:3])) or "no tensors"
    raise unusable(state_dict, f"The checkpoint is of no NAT or DiNAT: expected names such as {examples}; got {got}.")
