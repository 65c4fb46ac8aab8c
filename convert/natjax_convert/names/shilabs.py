"""The authors' names: SHI-Labs' classification/nat.py and dinat.py, dinats.py, and isotropic.py."""

import functools
from collections.abc import Mapping

import numpy as np

from natjax.configuration import DinatSConfig, NatConfig, NatIsotropicConfig, VitRpbConfig
from natjax_convert.dialect import Dialect, Joined, Signature, Stacked
from natjax_convert.state_dict import LazyTensor

_PATCHES = "embeddings.patch_embeddings.projection"


def _table(
    levels: str, *, level: str = "{level}", blocks: str = ".{level}.blocks"
) -> dict[str, str | Joined | Stacked]:
    """Returns the table of a model whose levels have such a name, and layers such a one behind it."""
    layer, block = f"encoder.levels.{level}.layers.{{layer}}.", f"{levels}{blocks}.{{layer}}."
    return {
        _PATCHES: "patch_embed.proj",
        _PATCHES + ".{i}": "patch_embed.proj.{i}",
        "embeddings.norm": "patch_embed.norm",
        layer + "layernorm_before": block + "norm1",
        layer + "attention.qkv": block + "attn.qkv",
        layer + "attention.rpb": block + "attn.rpb",
        layer + "attention.output": block + "attn.proj",
        layer + "layernorm_after": block + "norm2",
        layer + "intermediate": block + "mlp.fc1",
        layer + "output": block + "mlp.fc2",
        layer + "layer_scale_parameters": Stacked([block + "gamma1", block + "gamma2"]),
        "encoder.levels.{level}.downsample.{part}": levels + ".{level}.downsample.{part}",
        "layernorm": "norm",
        "classifier": "head",
    }


def _relative_position_indices(config: NatConfig) -> Mapping[str, LazyTensor]:
    """Returns ViT-rpb's buffers: where in the flat table of biases that of a query (row) and a key (column) is."""
    side = config.kernel_size

    def index() -> np.ndarray:
        tokens = np.stack(np.divmod(np.arange(side**2), side))  # rows and columns, [2, side^2]
        rows, columns = tokens[:, None, :] - tokens[:, :, None] + side - 1  # key - query, from 0 on
        return rows * (2 * side - 1) + columns

    buffer = LazyTensor((side**2, side**2), np.dtype("i8"), index)
    return {f"layers.{i}.attn.relative_position_index": buffer for i in range(config.depths[0])}


_dialect = functools.partial(Dialect, name="shilabs", title="SHI-Labs", example="patch_embed.norm.weight")

SHILABS = (
    _dialect(
        model_types=NatConfig.model_types,
        kinds={"classifier": Signature((r"patch_embed\.", r"levels\.\d+\.blocks\."))},
        table=_table("levels"),
    ),
    _dialect(
        model_types=DinatSConfig.model_types,
        kinds={"classifier": Signature((r"patch_embed\.", r"layers\.\d+\.blocks\."))},
        table=_table("layers"),
    ),
    _dialect(
        model_types=VitRpbConfig.model_types,
        kinds={"classifier": Signature((r"patch_embed\.", r"layers\.\d+\.attn\.relative_position_index\Z"))},
        table=_table("layers", level="0", blocks=""),
        buffers=_relative_position_indices,
    ),
    _dialect(
        model_types=NatIsotropicConfig.model_types,
        kinds={"classifier": Signature((r"patch_embed\.", r"layers\.\d+\.attn\."))},
        table=_table("layers", level="0", blocks=""),
    ),
)
