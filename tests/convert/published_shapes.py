"""What is recorded of the authors' published segmentation and detection models, and how tests compare with it."""

import hashlib
import json
import pathlib

import natjax_convert
from natjax.configuration import DinatSConfig, NatConfig

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
_ORDER = (
    *("backbone", "decode_head", "auxiliary_head", "patch_embed", "levels", "layers", "gamma1", "gamma2", "blocks"),
    *("downsample", "norm0", "norm1", "attn", "norm2", "mlp", "norm3", "rpb", "qkv", "proj", "fc1", "fc2", "conv_seg"),
    *("psp_modules", "bottleneck", "neck", "lateral_convs", "fpn_convs", "fpn_bottleneck"),
    *("rpn_head", "rpn_conv", "rpn_cls", "rpn_reg", "roi_head", "bbox_head", "fc_cls", "fc_reg", "shared_convs"),
    *("shared_fcs", "mask_head", "convs", "upsample", "conv_logits", "reduction", "conv", "bn"),
    *("norm", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
)


def published(task):
    """The records of a task by the names of the authors' config files."""
    return json.loads((GOLDENS / f"mm_{task}_published_shapes.json").read_text())


def backbone_of(record):
    """The configuration of a published model's backbone, from the arguments of the authors' class."""
    arguments = dict(record["backbone"])
    family = DinatSConfig if arguments.pop("type") == "DiNAT_s" else NatConfig
    return family(layer_scale_init_value=arguments.pop("layer_scale", 0.0), **arguments)


def assert_published(config, task, dialect, record):
    """Parameters, their number by part, and names and shapes of tensors are the recorded ones."""
    assert natjax_convert.count_parameters(config, task) == record["parameters"]
    by_part = dict.fromkeys(record["by_part"], 0)
    for parameter in natjax_convert.parameters(config, task):
        by_part[parameter.path[0]] += parameter.size if parameter.trained else 0
    assert by_part == record["by_part"]
    entries = natjax_convert.entries(config, task, dialect=dialect)
    shapes = {tensor: list(entry.tensor_shape) for entry in entries for tensor in entry.names}
    assert len(shapes) == record["tensors"]
    lines = [f"{tensor} {shapes[tensor]}" for tensor in sorted(shapes, key=_in_pytorchs_order)]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == record["names_and_shapes_sha256"]
    assert shapes == record.get("state_dict", shapes)


def _in_pytorchs_order(name):
    return tuple(int(step) if step.isdigit() else _ORDER.index(step) for step in name.split("."))
