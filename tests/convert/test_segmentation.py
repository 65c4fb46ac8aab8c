"""Segmentation models: round trips of mmsegmentation's and Hugging Face's files, config texts, names of published models."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from golden_checkpoints import assert_same
from published_shapes import assert_published, backbone_of, published

import natjax
import natjax_convert
from natjax.configuration import DinatSConfig, NatConfig, UperNetConfig
from natjax.presets import SEGMENTATION_PRESETS as PRESETS
from natjax_convert.config_texts import config_of
from natjax_convert.torch_zip import write_torch

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
MMSEG = GOLDENS / "mmseg_upernet_nat" / "checkpoint.pth"
HUGGING_FACE = ("hf_upernet_nat", "hf_upernet_dinat")
PUBLISHED = published("segmentation")
TEXT = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='DiNAT', embed_dim=6, mlp_ratio=2.0, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], kernel_size=5,
                  dilations=[[1], [4], [1, 2], [1]], drop_path_rate=0.3, out_indices=(0, 1, 2, 3)),
    decode_head=dict(type='UPerHead', channels=24, pool_scales=(1, 2, 3, 6), num_classes=7, dropout_ratio=0.2),
    auxiliary_head=dict(type='FCNHead', channels=12, num_classes=7, in_index=2, num_convs=1,
                        loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.3)))
optimizer = build(lr=print)
"""


def of_files(config):
    """What no config text of mmsegmentation says, and no model computes by."""
    trunk = config.trunk
    return {"extra": config.extra, "backbone_config": trunk, "initializer_range": config.initializer_range}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_to_mmseg_and_back_is_bit_exact(tmp_path, name):
    report = natjax_convert.convert(GOLDENS / name, tmp_path / "model.pth")
    assert (report.source, report.kind, report.to) == ("hf", "segmentation", "mmseg")
    names = natjax_convert.read_state_dict(tmp_path / "model.pth")
    assert "backbone.norm3.weight" in names
    assert "decode_head.psp_modules.2.1.bn.num_batches_tracked" in names
    config = natjax_convert.Checkpoint.open(GOLDENS / name).config
    back = natjax_convert.convert(tmp_path / "model.pth", tmp_path / "back")
    assert (back.source, back.to) == ("mmseg", "hf")
    assert back.config.replace(**of_files(config)) == config
    assert_same(natjax_convert.read_state_dict(tmp_path / "back"), natjax_convert.read_state_dict(GOLDENS / name))


def test_mmseg_to_hugging_face_and_back_is_bit_exact(tmp_path):
    report = natjax_convert.convert(MMSEG, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["UperNetForSemanticSegmentation"]
    assert config["torch_dtype"] == "float32"
    assert config["id2label"]["6"] == "thing 6"
    assert config["palette"][0] == [109, 181, 126]
    assert config["backbone_config"]["model_type"] == "nat"
    natjax_convert.convert(tmp_path / "hf", tmp_path / "back.pth")
    assert_same(natjax_convert.read_state_dict(tmp_path / "back.pth"), natjax_convert.read_state_dict(MMSEG))
    assert report.parameters == natjax_convert.count_parameters(report.config, "segmentation")
    assert report.parameters < sum(np.asarray(t).size for t in natjax_convert.read_state_dict(MMSEG).values())


def test_models_save_and_load_what_they_hold(tmp_path):
    model = natjax.UperNetForSemanticSegmentation.from_pretrained(MMSEG)
    model.save_pretrained(tmp_path)
    again = natjax.UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.config.replace(extra={}) == model.config.replace(extra={})
    states = [nnx.to_flat_state(nnx.state(net)) for net in (model, again)]
    for (path, first), (_, second) in zip(*states, strict=True):
        assert type(first) is type(second), path
        np.testing.assert_array_equal(first[...], second[...], err_msg=str(path))
    half = natjax.UperNetForSemanticSegmentation.from_pretrained(tmp_path, param_dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(half, nnx.Param))} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(half, nnx.BatchStat))} == {"float32", "int32"}


def test_a_new_head_for_other_classes():
    old = natjax.UperNetForSemanticSegmentation.from_pretrained(MMSEG)
    with pytest.raises(natjax.CheckpointError, match="replace_head=True"):
        natjax.UperNetForSemanticSegmentation.from_pretrained(MMSEG, num_labels=3)
    new = natjax.UperNetForSemanticSegmentation.from_pretrained(MMSEG, num_labels=3, replace_head=True)
    for head in ("decode_head", "auxiliary_head"):
        kernel = getattr(new, head).classifier.kernel[...]
        assert kernel.shape[-1] == 3
        assert kernel.std() > 0.01
    np.testing.assert_array_equal(
        new.decode_head.bottleneck.conv.kernel[...], old.decode_head.bottleneck.conv.kernel[...]
    )
    np.testing.assert_array_equal(
        new.decode_head.bottleneck.batch_norm.mean[...], old.decode_head.bottleneck.batch_norm.mean[...]
    )


@pytest.mark.parametrize(("path", "norms"), [(GOLDENS / "hf_nat", False), (MMSEG, True)], ids=["classifier", "mmseg"])
def test_a_backbone_starts_a_segmentation_model(path, norms):
    model = natjax.UperNetForSemanticSegmentation.from_backbone(path, num_labels=4, hidden_size=8, drop_path_rate=0.3)
    assert (model.config.num_labels, model.config.hidden_size, model.config.trunk.drop_path_rate) == (4, 8, 0.3)
    tensors = natjax_convert.read_state_dict(path)
    name = "backbone.patch_embed.proj.0.weight" if norms else "nat.embeddings.patch_embeddings.projection.0.weight"
    kernel = model.backbone.embeddings.patch_embeddings.projection[0].kernel[...]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensors[name])
    scale = model.backbone.hidden_states_norms["stage1"].scale[...]
    assert bool((scale == 1).all()) is not norms
    with pytest.raises(ValueError, match="give num_labels or id2label"):
        natjax.UperNetForSemanticSegmentation.from_backbone(path)


def test_a_classifier_is_no_segmentation_model():
    with pytest.raises(natjax.CheckpointError, match=r"no heads of a UPerNet.*from_backbone"):
        natjax.UperNetForSemanticSegmentation.from_pretrained(GOLDENS / "hf_nat")


def test_a_segmentation_model_serves_as_a_backbone():
    backbone = natjax.NatBackbone.from_pretrained(MMSEG)
    assert natjax.NatBackbone.from_pretrained(MMSEG, out_features=("stage2",)).channels == (12,)
    model = natjax.UperNetForSemanticSegmentation.from_pretrained(MMSEG)
    assert backbone.config == model.config.trunk
    np.testing.assert_array_equal(
        backbone.hidden_states_norms["stage4"].scale[...], model.backbone.hidden_states_norms["stage4"].scale[...]
    )


def test_presets_that_fit_are_named(tmp_path):
    from natjax_convert.state_dict import LazyTensor

    entries = natjax_convert.entries(PRESETS["upernet_dinat_base"].config, "segmentation", dialect="mmseg")
    tensors = {}
    for entry in entries:
        dtype = np.dtype("i8" if entry.path[-1] == "num_batches_tracked" else "f4")
        tensors |= {name: LazyTensor(entry.tensor_shape, dtype, lambda: None) for name in entry.names}
    with pytest.raises(
        natjax.CheckpointError, match=r"fit upernet_nat_base, upernet_dinat_base;.*--config upernet_nat_b"
    ):
        natjax_convert.find_config(tmp_path / "a.pth", tensors)


def write(path, meta, **others):
    """A file of mmcv's with the golden's weights."""
    torch = pytest.importorskip("torch", reason="writes files of mmcv's kind")
    weights = {name: torch.tensor(np.array(tensor)) for name, tensor in natjax_convert.read_state_dict(MMSEG).items()}
    torch.save({"meta": meta, "state_dict": weights, **others}, path)


def test_mmcv_files_with_an_optimizer(tmp_path):
    torch = pytest.importorskip("torch", reason="writes files of mmcv's kind")
    moments = {"step": 3, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    optimizer = {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 6e-5, "params": [0, 1]}]}
    write(tmp_path / "a.pth", {"config": TEXT, "CLASSES": tuple("abcdefg"), "iter": 3}, optimizer=optimizer)
    checkpoint = natjax_convert.Checkpoint.open(tmp_path / "a.pth")
    assert_same(checkpoint.tensors, natjax_convert.read_state_dict(MMSEG))
    config = checkpoint.config
    assert config.trunk.dilations == ((1,), (4,), (1, 2), (1,))
    assert (config.trunk.drop_path_rate, config.head_dropout_prob, config.auxiliary_loss_weight) == (0.3, 0.2, 0.3)
    assert list(config.id2label.values()) == list("abcdefg")


def test_a_model_behind_a_prefix_is_taken_whole(tmp_path):
    tensors = natjax_convert.read_state_dict(MMSEG)
    write_torch(tmp_path / "a.pth", {f"module.{name}": tensor for name, tensor in tensors.items()})
    assert_same(natjax_convert.read_state_dict(tmp_path / "a.pth"), tensors)
    write_torch(tmp_path / "b.pth", {f"model.{n}": t for n, t in tensors.items()} | {"loss.weight": np.ones(3, "f4")})
    with pytest.warns(UserWarning, match="took the weights 'model"):
        assert_same(natjax_convert.read_state_dict(tmp_path / "b.pth"), tensors)


SMALL = {"depths": (1, 1, 1, 1), "kernel_size": 3}
NAT = NatConfig(
    embed_dim=4, num_heads=(1, 1, 2, 2), dilations=[[1], [2], [1], [3]], layer_scale_init_value=1e-5, **SMALL
)
DINAT_S = DinatSConfig(embed_dim=4, num_heads=(1, 1, 2, 2), qkv_bias=False, drop_path_rate=0.4, **SMALL)
UPERNET = UperNetConfig(backbone_config=NAT, hidden_size=4, auxiliary_channels=3, num_labels=3)


@pytest.mark.parametrize(
    "config",
    [
        UPERNET.replace(
            extra={"palette": [[1, 2, 3], [4, 5, 6], [7, 8, 255]]}, id2label={0: "it's", 1: 'a "b"', 2: "é"}
        ),
        UPERNET.replace(backbone_config=DINAT_S, auxiliary_num_convs=2, auxiliary_concat_input=True),
        UPERNET.replace(pool_scales=(1, 5), use_auxiliary_head=False, head_dropout_prob=0.0, loss_ignore_index=0),
        UPERNET.replace(dilations=None, auxiliary_loss_weight=0.3, extra={"palette": "none"}),
        UPERNET.replace(
            backbone_config=NatConfig(embed_dim=4, depths=(1, 1), num_heads=(1, 1), kernel_size=3),
            use_auxiliary_head=False,
        ),
    ],
    ids=["DiNAT", "DiNAT_s", "two scales", "NAT", "two levels"],
)
def test_written_files_say_what_model_they_are(tmp_path, config):
    natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "hf")
    natjax_convert.convert(tmp_path / "hf", tmp_path / "a.pth")
    palette = config.extra["palette"] if isinstance(config.extra.get("palette"), list) else None
    again = natjax_convert.Checkpoint.open(tmp_path / "a.pth")
    assert again.config.extra.get("palette") == palette
    untold = (
        {"extra": {}}
        if config.use_auxiliary_head
        else {"extra": {}, "auxiliary_channels": 1, "auxiliary_in_channels": None}
    )
    assert again.config.replace(**untold) == config.replace(**untold)
    natjax_convert.convert(tmp_path / "a.pth", tmp_path / "back")
    assert_same(natjax_convert.read_state_dict(tmp_path / "back"), natjax_convert.read_state_dict(tmp_path / "hf"))
    torch = pytest.importorskip("torch", reason="reads the file as mmcv does")
    file = torch.load(tmp_path / "a.pth", weights_only=True)
    assert file["meta"]["CLASSES"] == list(config.id2label.values())
    assert file["meta"]["PALETTE"] == palette
    assert {name: tuple(t.shape) for name, t in file["state_dict"].items()} == {
        name: tensor.shape for name, tensor in again.tensors.items()
    }


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-6}])
def test_what_a_config_text_cannot_say_is_asked_for(tmp_path, changes):
    config = UPERNET.replace(**changes)
    natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "hf")
    natjax_convert.convert(tmp_path / "hf", tmp_path / "a.pth")
    with pytest.raises(natjax.CheckpointError, match="no text of mmsegmentation's config"):
        natjax_convert.Checkpoint.open(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(1, 2, 3, 6)", "(1, 2, 3)", r"pool to 4 maps, and pool_scales are \(1, 2, 3\)"),
        ("(1, 2, 3, 6)", "'1236'", "pool_scales"),
        ("(1, 2, 3, 6)", f"'{'x' * 999}'", "pool_scales .* got 'x{300,500}[.]{3}[.] Its tensors"),
        ("(1, 2, 3, 6)", "(0, 1, 2, 3)", "minimum|at least"),
        (
            "num_classes=7",
            "num_classes=9999999",
            "num_labels is said to be 9999999, and is 7 by the shapes[.] Its tensors",
        ),
    ],
)
def test_texts_of_other_heads_than_the_tensors_are_refused(tmp_path, old, new, message):
    assert old in TEXT
    write(tmp_path / "a.pth", {"config": TEXT.replace(old, new)})
    with pytest.raises(natjax.CheckpointError, match=message):
        natjax_convert.Checkpoint.open(tmp_path / "a.pth")


@pytest.fixture
def shapes():
    return natjax_convert.infer_config(natjax_convert.read_state_dict(MMSEG))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("embed_dim=6", "embed_dim=__import__('os').system('touch hacked')", "a Call in it"),
        ("embed_dim=6", "embed_dim=open", "a Name in it"),
        ("embed_dim=6", "embed_dim=(lambda: 6)()", "a Call in it"),
        ("embed_dim=6", "**dict(embed_dim=6)", "a Call in it"),
        ("embed_dim=6", "embed_dim=" + "[" * 80 + "]" * 80, "nested too deeply"),
        ("embed_dim=6", "embed_dim=" + "-" * 100000 + "6", "not Python|UnaryOp"),
        ("embed_dim=6", "embed_dim=", "not Python"),
        ("embed_dim=6", "embed_dim='six'", "embed_dim must be an integer"),
        ("model = dict(", "model = [1] or dict(", "BoolOp"),
        ("type='UPerHead'", "type='PSPHead'", "decode_head.type is 'PSPHead'; natjax has 'UPerHead' alone"),
        ("in_index=2", "in_index=1", "auxiliary_head.in_index"),
        ("type='UPerHead'", "type='UPerHead', act_cfg=dict(type='GELU')", "act_cfg.type is 'GELU'"),
        (
            "type='UPerHead'",
            "type='UPerHead', norm_cfg=dict(type='GN')",
            "decode_head.norm_cfg.type is 'GN'; natjax has 'BN' alone",
        ),
        ("type='FCNHead'", "type='FCNHead', norm_cfg=dict(eps=1e-3)", "auxiliary_head.norm_cfg.eps is 0.001"),
        ("type='DiNAT'", "type='ResNet'", "the backbone is 'ResNet'"),
        ("dilations=[[1], [4], [1, 2], [1]],", "", "has no dilations"),
        ("[[1], [4], [1, 2], [1]]", "[[1], [4], [1], [1]]", "one entry per layer"),
        ("num_classes=7, dropout", "num_classes=-7, dropout", "num_labels"),
        ("\nmodel", "\n#" + "x" * 2**20 + "\nmodel", "characters"),
    ],
)
def test_config_texts_that_are_refused(shapes, old, new, message):
    assert old in TEXT
    with pytest.raises(ValueError, match=message):
        config_of("segmentation", {"config": TEXT.replace(old, new, 1)}, lambda said: shapes.replace(**said))
    assert not pathlib.Path("hacked").exists()


@pytest.mark.parametrize("backbone", ["NAT", "DiNAT"])
def test_a_text_of_another_backbone_than_the_tensors_is_refused(backbone):
    patches = UperNetConfig(backbone_config=DinatSConfig(embed_dim=6, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)))
    with pytest.raises(ValueError, match=f"the backbone is '{backbone}', the tensors are those of 'dinat_s'"):
        config_of("segmentation", {"config": TEXT.replace("DiNAT", backbone)}, lambda _: patches)


@pytest.mark.parametrize("meta", [{}, {"config": None}, {"config": 3}, {"config": "x = 1"}, {"config": "model += 3"}])
def test_texts_without_a_model_say_nothing(shapes, meta):
    assert config_of("segmentation", meta, lambda _: shapes) is None


def test_classes_and_palettes_that_do_not_fit_are_left_out(shapes):
    for meta in ({"CLASSES": ("a", "b")}, {"CLASSES": "abcdefg"}, {"CLASSES": [1] * 7}, {"PALETTE": [[256, 0, 0]] * 7}):
        config = config_of("segmentation", {"config": TEXT, **meta}, lambda said: shapes.replace(**said))
        assert config.id2label[0] == "LABEL_0"
        assert not config.extra


def test_dilations_are_asked_for(tmp_path):
    write_torch(tmp_path / "plain.pth", natjax_convert.read_state_dict(MMSEG))
    with pytest.raises(natjax.CheckpointError, match=r"no text of mmsegmentation's config.*--dilations"):
        natjax_convert.Checkpoint.open(tmp_path / "plain.pth")
    write(tmp_path / "bad.pth", {"config": TEXT.replace("UPerHead", "PSPHead")})
    with pytest.raises(natjax.CheckpointError, match=r"not usable: decode_head.type is 'PSPHead'.*config="):
        natjax_convert.Checkpoint.open(tmp_path / "bad.pth")
    given = natjax_convert.Checkpoint.open(tmp_path / "plain.pth", dilations=[[1], [4], [1, 2], [1]])
    assert given.config.trunk.model_type == "dinat"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("decode_head.bottleneck.bn.running_var"), "running_var: missing"),
        (lambda t: t.pop("backbone.norm2.bias"), "backbone.norm2.bias: missing"),
        (lambda t: t.update({"decode_head.extra.weight": np.ones(3, "f4")}), "decode_head.extra.weight: not part"),
        (
            lambda t: t.update({"decode_head.bottleneck.bn.num_batches_tracked": np.float32(1)}),
            "num_batches_tracked: expected int64, got float32",
        ),
        (lambda t: t.update({"decode_head.bottleneck.bn.running_mean": np.ones(3, "f4")}), r"\(24,\), got \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit(shapes, spoil, message):
    tensors = dict(natjax_convert.read_state_dict(MMSEG))
    spoil(tensors)
    with pytest.raises(natjax.CheckpointError, match=message):
        natjax_convert.to_flax(tensors, shapes, kind="segmentation")


def test_formats_that_do_not_have_such_models(tmp_path):
    shutil.copytree(GOLDENS / "hf_upernet_nat", tmp_path / "hf")
    with pytest.raises(natjax.CheckpointError, match="SHI-Labs is for image classifiers; this is a segmentation model"):
        natjax_convert.convert(tmp_path / "hf", tmp_path / "a.pth", to="shilabs")
    with pytest.raises(natjax.CheckpointError, match="mmsegmentation is for segmentation models; this is a classifier"):
        natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "a.pth", to="mmseg")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_these_tensors(name):
    config = natjax.UperNetConfig(backbone_config=backbone_of(PUBLISHED[name]), num_labels=150)
    assert PRESETS[re.sub("_[0-9]+x.*", "", name)].config == config
    assert_published(config, "segmentation", "mmseg", PUBLISHED[name])
