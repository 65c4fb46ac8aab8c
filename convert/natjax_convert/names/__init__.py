"""The dialects of checkpoints. A new one is a file here and an entry in `DIALECTS`, or one for each family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natjax.errors import CheckpointError
from natjax_convert.dialect import Dialect, Found
from natjax_convert.names.hf import HF
from natjax_convert.names.mmdet import MMDET
from natjax_convert.names.mmseg import MMSEG
from natjax_convert.names.shilabs import SHILABS
from natjax_convert.state_dict import unusable

DIALECTS: tuple[Dialect, ...] = (HF, *SHILABS, *MMSEG, *MMDET)  # in the order in which they are tried
NAMES = tuple(dict.fromkeys(dialect.name for dialect in DIALECTS))


def dialect_of(name: str, config: Any) -> Dialect:
    """Returns the dialect of a name that has names for the model of a configuration.

    Raises:
        CheckpointError: there is none.
    """
    model_type = config.trunk.model_type
    of_trunk = [dialect for dialect in DIALECTS if dialect.name == name and model_type in dialect.model_types]
    if of_trunk:
        return next((dialect for dialect in of_trunk if dialect.family is type(config)), of_trunk[0])
    title = next((dialect.title for dialect in DIALECTS if dialect.name == name), repr(name))
    raise CheckpointError(
        f"The format of {title} has no names for a {model_type!r} model; there are: {', '.join(NAMES)}."
    )


def detect(state_dict: Mapping[str, Any]) -> Found:
    """Returns the dialect and kind of a state dict, by its keys.

    Raises:
        CheckpointError: it is of no NAT or DiNAT.
    """
    for dialect in DIALECTS:
        if found := dialect.recognise(state_dict):
            return found
    examples = " or ".join(dict.fromkeys(f"{dialect.example} ({dialect.title})" for dialect in DIALECTS))
    got = ", ".join(map(repr, list(state_dict)[:3])) or "no tensors"
    raise unusable(state_dict, f"The checkpoint is of no NAT or DiNAT: expected names such as {examples}; got {got}.")
