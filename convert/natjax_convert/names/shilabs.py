"""The authors' names: SHI-Labs' classification/nat.py and classification/dinat.py."""

from natjax_convert.dialect import Dialect, Signature, Stacked

_LAYER = "encoder.levels.{level}.layers.{layer}."
_BLOCK = "levels.{level}.blocks.{layer}."

SHILABS = Dialect(
    name="shilabs",
    title="SHI-Labs",
    example="patch_embed.norm.weight",
    kinds={"classifier": Signature((r"patch_embed\.", r"levels\.\d+\.blocks\."))},
    table={
        "embeddings.patch_embeddings.projection.{i}": "patch_embed.proj.{i}",
        "embeddings.norm": "patch_embed.norm",
        _LAYER + "layernorm_before": _BLOCK + "norm1",
        _LAYER + "attention.qkv": _BLOCK + "attn.qkv",
        _LAYER + "attention.rpb": _BLOCK + "attn.rpb",
        _LAYER + "attention.output": _BLOCK + "attn.proj",
        _LAYER + "layernorm_after": _BLOCK + "norm2",
        _LAYER + "intermediate": _BLOCK + "mlp.fc1",
        _LAYER + "output": _BLOCK + "mlp.fc2",
        _LAYER + "layer_scale_parameters": Stacked([_BLOCK + "gamma1", _BLOCK + "gamma2"]),
        "encoder.levels.{level}.downsample.{part}": "levels.{level}.downsample.{part}",
        "layernorm": "norm",
        "classifier": "head",
    },
)
