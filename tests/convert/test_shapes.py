"""The declaration of parameters against the models themselves: paths, shapes, counts, and depths."""

import json
import math
import pathlib

import jax
import pytest
from flax import nnx

import natjax
from natjax.configuration import DinatSConfig, NatIsotropicConfig, VitRpbConfig
from natjax.presets import PRESETS
from natjax_convert import shapes
from natjax_convert.shapes import config_from_shapes, count_parameters, parameters

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SMALL = natjax.NatConfig(embed_dim=8, depths=(1, 2, 1), num_heads=(1, 2, 2), kernel_size=3, num_labels=3)
CONFIGS = {
    "odd": SMALL.replace(num_channels=1, num_labels=0, qkv_bias=False, layer_scale_init_value=0.1, mlp_ratio=1.3),
    "dilated": SMALL.replace(dilations=((1,), (1, 2), (3,)), out_features=("stem", "stage2")),
    "a ratio that rounds down": SMALL.replace(embed_dim=14, num_heads=(1, 1, 1), mlp_ratio=61 / 14 + 1e-9),
    "patches": DinatSConfig(
        embed_dim=8, depths=(1, 2), num_heads=(1, 2), kernel_size=5, dilations=((3,), (1, 2)), num_channels=1
    ),
    "isotropic": NatIsotropicConfig(patch_size=6, embed_dim=6, depths=(2,), num_heads=(3,), dilations=((1, 2),)),
    "whole map": VitRpbConfig(image_size=32, patch_size=8, embed_dim=6, depths=(2,), num_heads=(3,)),
    "one level": natjax.NatConfig(embed_dim=2, depths=(1,), num_heads=(1,), kernel_size=11),
}
HEADS = {"fpn_channels": 4, "rpn_channels": 6, "box_conv_channels": 3, "box_fc_channels": 5, "mask_channels": 2}
DETECTORS = {
    "mask": (
        natjax.MaskRcnnForObjectDetection,
        natjax.MaskRcnnConfig(backbone_config=SMALL, anchor_ratios=(1,), **HEADS),
    ),
    "cascade": (
        natjax.CascadeMaskRcnnForObjectDetection,
        natjax.CascadeMaskRcnnConfig(backbone_config=SMALL, box_num_convs=2, mask_num_convs=1, num_labels=3, **HEADS),
    ),
    "no convolutions": (
        natjax.MaskRcnnForObjectDetection,
        natjax.MaskRcnnConfig(backbone_config=SMALL, box_num_fcs=0, mask_num_convs=0, mask_channels=4, fpn_channels=6),
    ),
}
KINDS = {
    "classifier": natjax.NatForImageClassification,
    "model": natjax.NatModel,
    "backbone": natjax.NatBackbone,
}


def shapes_of(model_class, config):
    model = nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    return {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def declared(config, kind):
    found = parameters(config, kind)
    assert len({parameter.path for parameter in found}) == len(found)
    return {parameter.path: parameter.shape for parameter in found}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_declared_parameters_are_those_of_the_models(name, kind):
    assert declared(CONFIGS[name], kind) == shapes_of(KINDS[kind], CONFIGS[name])


@pytest.mark.parametrize("name", DETECTORS)
def test_declared_parameters_are_those_of_the_detectors(name):
    model_class, config = DETECTORS[name]
    assert declared(config, "detection") == shapes_of(model_class, config)


# One of each MLP ratio, with layer scale and without, and of each kernel size; the others differ in width and depth alone.
@pytest.mark.parametrize("name", ["nat_mini", "nat_base", "dinat_large_384_11x11", "dinat_s_tiny", "vitrpb_small"])
def test_declared_parameters_are_those_of_the_presets(name):
    config = PRESETS[name].config
    assert declared(config, "classifier") == shapes_of(natjax.NatForImageClassification, config)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_tell_the_configuration(name):
    config = CONFIGS[name].replace(out_features=None)
    shapes = {p.path[1:] if p.path[0] == "nat" else p.path: p.shape for p in parameters(config)}
    found = config_from_shapes(shapes.__getitem__, config.dilations)
    assert parameters(found) == parameters(config)
    assert found.dilations == config.dilations


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_published_size(name):
    published = json.loads((GOLDENS / "parameter_counts.json").read_text())
    config = PRESETS[name].config
    if config.num_labels != 1000:  # counted with ImageNet-1k's
        config = config.replace(num_labels=1000)
    assert count_parameters(config) == published[name if name in published else "dinat_s_large"]


def test_depths_strides_and_parts():
    found = {"/".join(map(str, p.path)): p for p in parameters(SMALL)}
    layer = "nat/encoder/levels/{}/layers/{}/attention/rpb"
    expected = {
        "nat/embeddings/patch_embeddings/projection/0/kernel": ("stem", 0, 2),
        "nat/embeddings/norm/bias": ("stem", 0, 4),
        layer.format(0, 0): ("level1", 1, 4),
        "nat/encoder/levels/0/downsample/norm/scale": ("level1", 1, 8),
        layer.format(1, 0): ("level2", 2, 8),
        layer.format(1, 1): ("level2", 3, 8),
        "nat/encoder/levels/1/downsample/reduction/kernel": ("level2", 3, 16),
        layer.format(2, 0): ("level3", 4, 16),
        "nat/layernorm/scale": ("head", 5, 16),
        "classifier/kernel": ("head", 5, 0),
    }
    assert {path: (found[path].part, found[path].depth, found[path].stride) for path in expected} == expected
    norms = [p for p in parameters(SMALL.replace(out_indices=(0, 1, 3)), "backbone") if p.part == "head"]
    assert [(p.path[1], math.prod(p.shape), p.depth, p.stride) for p in norms[::2]] == [
        ("stem", 8, 5, 4),
        ("stage1", 8, 5, 4),
        ("stage3", 32, 5, 16),
    ]


def test_buffers_are_no_parameters(monkeypatch):
    mean = shapes.Parameter(("norm", "mean"), (8,), "head", 1, 4, trained=False)
    monkeypatch.setattr(shapes, "parameters", lambda *_: [*shapes.at(("norm",), shapes.norm(8), "head", 1, 4), mean])
    assert count_parameters(SMALL) == 16
