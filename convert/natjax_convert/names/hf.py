"""Hugging Face's names: NatForImageClassification, NatModel, NatBackbone, their Dinat twins, and UPerNet of transformers 4.40.2.

transformers has no other family. Theirs are named alike: natjax's own extension, with the patch embedding's name of its Swin.
It has no Mask R-CNN either, whose heads have mmdetection's names.
"""

from natjax.configuration import FAMILIES
from natjax_convert.dialect import Dialect, Joined, Signature
from natjax_convert.names import rcnn, upernet

_LAYER = "encoder.levels.{level}.layers.{layer}."

HF = Dialect(
    name="hf",
    directory=True,
    title="Hugging Face",
    example="nat.embeddings.norm.weight",
    model_types=tuple(FAMILIES),
    kinds={
        "classifier": Signature((r"{model_type}\.(?:embeddings|encoder|layernorm)\.",), prefix="{model_type}."),
        "backbone": Signature((r"embeddings\.patch_embeddings\.", r"hidden_states_norms\.")),
        "model": Signature((r"embeddings\.patch_embeddings\.",)),
        "segmentation": Signature((r"decode_head\.", r"backbone\.embeddings\.patch_embeddings\."), prefix="backbone."),
        "detection": Signature((r"roi_head\.", r"backbone\.embeddings\.patch_embeddings\."), prefix="backbone."),
    },
    table={
        "embeddings.patch_embeddings.projection": "embeddings.patch_embeddings.projection",
        "embeddings.patch_embeddings.projection.{i}": "embeddings.patch_embeddings.projection.{i}",
        "embeddings.norm": "embeddings.norm",
        _LAYER + "layernorm_before": _LAYER + "layernorm_before",
        _LAYER + "attention.qkv": Joined(_LAYER + f"attention.self.{part}" for part in ("query", "key", "value")),
        _LAYER + "attention.rpb": _LAYER + "attention.self.rpb",
        _LAYER + "attention.output": _LAYER + "attention.output.dense",
        _LAYER + "layernorm_after": _LAYER + "layernorm_after",
        _LAYER + "intermediate": _LAYER + "intermediate.dense",
        _LAYER + "output": _LAYER + "output.dense",
        _LAYER + "layer_scale_parameters": _LAYER + "layer_scale_parameters",
        "encoder.levels.{level}.downsample.{part}": "encoder.levels.{level}.downsample.{part}",
        "layernorm": "layernorm",
        "hidden_states_norms.{stage}": "hidden_states_norms.{stage}",
        "classifier": "classifier",
        **upernet.heads_table(batch_norm="batch_norm", classifier="classifier"),
        **rcnn.heads_table(batch_norm="batch_norm"),
    },
    heads=("classifier", *upernet.HEADS, *rcnn.HEADS),
)
