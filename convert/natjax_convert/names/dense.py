"""The authors' names of a backbone in mmsegmentation and mmdetection: as in classification, and a norm of every feature map."""

from natjax.configuration.dense import BACKBONES
from natjax_convert.dialect import Dialect, Joined, Stacked
from natjax_convert.names.shilabs import SHILABS

_MAX_LEVELS = 16
_NORMS = {f"hidden_states_norms.stage{i + 1}": f"norm{i}" for i in range(_MAX_LEVELS)}

TRUNKS = tuple(trunk for trunk in SHILABS if set(trunk.model_types) <= set(BACKBONES))


def backbone_table(trunk: Dialect) -> dict[str, str | Joined | Stacked]:
    """Returns the rows of a backbone's parameters, by the dialect of its classifiers."""
    return {row: names for row, names in trunk.table.items() if row not in ("layernorm", "classifier")} | _NORMS


def backbone_keys(trunk: Dialect) -> tuple[str, ...]:
    """Returns the regular expressions of the keys that tell such a backbone."""
    return tuple(rf"backbone\.{key}" for key in trunk.kinds["classifier"].keys)
