"""Detection models: round trips of mmdetection's files and natjax's own, config texts, names and shapes of published models."""

import contextlib
import copy
import json
import pathlib
import re

import numpy as np
import pytest
from flax import nnx
from golden_checkpoints import assert_same
from published_shapes import assert_published, backbone_of, published

import natjax
import natjax_convert
from natjax.configuration import CascadeMaskRcnnConfig, DinatSConfig, MaskRcnnConfig, NatConfig
from natjax.labels import coco
from natjax.presets import DETECTION_PRESETS as PRESETS
from natjax_convert.config_texts import config_of, meta_of, untold
from natjax_convert.config_texts.literals import model_of, source
from natjax_convert.torch_zip import write_torch

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
MODELS = {
    "mmdet_mask_rcnn": natjax.MaskRcnnForObjectDetection,
    "mmdet_cascade_mask_rcnn": natjax.CascadeMaskRcnnForObjectDetection,
}
MASK, CASCADE = (GOLDENS / name / "checkpoint.pth" for name in MODELS)
PUBLISHED = published("detection")
TENSORS = {path: natjax_convert.read_state_dict(path) for path in (MASK, CASCADE)}
SMALL = NatConfig(
    embed_dim=4,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    kernel_size=3,
    dilations=[[1], [2], [1], [3]],
    layer_scale_init_value=1e-5,
)
HEADS = {"fpn_channels": 4, "rpn_channels": 3, "box_conv_channels": 5, "box_fc_channels": 6, "mask_channels": 2}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_says_all_of_its_model(name):
    config = natjax_convert.Checkpoint.open(GOLDENS / name / "checkpoint.pth").config
    said = json.loads((GOLDENS / name / "provenance.json").read_text())["config"]
    assert type(config) is MODELS[name].config_class
    assert config.fpn_channels == said["neck"]["out_channels"]
    assert [list(level) for level in config.trunk.dilations or ()] == said["backbone"].get("dilations", [])
    assert (config.rpn_pre_nms, config.rpn_post_nms, config.max_detections) == (60, 70, 30)
    assert (config.train_rpn_pre_nms, config.train_rpn_post_nms, config.rpn_batch_size) == (250, 180, 1000000)
    assert config.id2label == {0: "object 0", 1: "object 1", 2: "object 2"}
    published = PRESETS["mask_rcnn_nat_mini" if name == "mmdet_mask_rcnn" else "cascade_mask_rcnn_nat_mini"].config
    widths = ("fpn_channels", "rpn_channels", "box_conv_channels", "box_fc_channels", "mask_channels")
    counts = ("rpn_pre_nms", "rpn_post_nms", "max_detections", "train_rpn_pre_nms", "train_rpn_post_nms")
    counts += ("rpn_batch_size", "box_batch_size")
    same = {field: getattr(config, field) for field in (*widths, *counts, "backbone_config", "id2label")}
    assert published.replace(**same) == config  # whatever else the text says are natjax's defaults


@pytest.mark.parametrize("name", MODELS)
def test_files_of_mmdetection_come_back_bit_exact(tmp_path, name):
    path = GOLDENS / name / "checkpoint.pth"
    report = natjax_convert.convert(path, tmp_path / "own")
    assert (report.source, report.kind, report.to, report.processor) == ("mmdet", "detection", "hf", "default")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["architectures"] == [MODELS[name].__name__]
    assert natjax.NatImageProcessor.from_pretrained(tmp_path / "own").size_divisor == 32
    own = natjax_convert.read_state_dict(tmp_path / "own")
    assert {"roi_head.bbox_head.0.fc_cls.weight", "backbone.hidden_states_norms.stage4.bias"} < own.keys()
    back = natjax_convert.convert(tmp_path / "own", tmp_path / "back.pth")
    assert (back.source, back.kind, back.to) == ("hf", "detection", "mmdet")
    assert_same(natjax_convert.read_state_dict(tmp_path / "back.pth"), TENSORS[path])
    again = natjax_convert.Checkpoint.open(tmp_path / "back.pth").config
    assert again.replace(backbone_config=report.config.trunk) == report.config
    assert again.trunk.dilations == report.config.trunk.dilations
    assert report.parameters == natjax_convert.count_parameters(report.config, "detection")


@pytest.mark.parametrize("name", MODELS)
def test_models_save_and_load_what_they_hold(tmp_path, name):
    model = MODELS[name].from_pretrained(GOLDENS / name / "checkpoint.pth")
    model.save_pretrained(tmp_path)
    again = MODELS[name].from_pretrained(tmp_path)
    assert again.config.replace(extra={}) == model.config.replace(extra={})
    states = [nnx.to_flat_state(nnx.state(net)) for net in (model, again)]
    for (path, first), (_, second) in zip(*states, strict=True):
        assert type(first) is type(second), path
        np.testing.assert_array_equal(first[...], second[...], err_msg=str(path))


def test_kernels_are_the_transposed_weights():
    model = natjax.MaskRcnnForObjectDetection.from_pretrained(MASK)
    head, weights = model.roi_head.mask_head[0], TENSORS[MASK]
    upsample = np.asarray(weights["roi_head.mask_head.upsample.weight"])  # inputs, outputs, height, width
    np.testing.assert_array_equal(head.upsample.kernel[...], upsample.transpose(2, 3, 1, 0))
    first = np.asarray(weights["roi_head.bbox_head.shared_fcs.0.weight"])
    np.testing.assert_array_equal(model.roi_head.bbox_head[0].shared_fcs[0].kernel[...], first.T)


def test_new_heads_for_other_classes():
    with pytest.raises(natjax.CheckpointError, match=r"fc_cls.*replace_head=True"):
        natjax.CascadeMaskRcnnForObjectDetection.from_pretrained(CASCADE, num_labels=5)
    new = natjax.CascadeMaskRcnnForObjectDetection.from_pretrained(CASCADE, num_labels=5, replace_head=True)
    for stage in range(3):
        box_head, mask_head = new.roi_head.bbox_head[stage], new.roi_head.mask_head[stage]
        assert box_head.fc_cls.kernel.shape == (16, 6)
        assert box_head.fc_reg.kernel.shape == (16, 20)
        assert mask_head.conv_logits.kernel.shape == (1, 1, 8, 5)
        deviations = [layer.kernel[...].std() for layer in (box_head.fc_cls, box_head.fc_reg, mask_head.conv_logits)]
        np.testing.assert_allclose(deviations, [0.0088, 0.00088, 0.88 * np.sqrt(2 / 5)], rtol=0.3)  # mmdetection's
    shared = np.asarray(TENSORS[CASCADE]["roi_head.bbox_head.2.shared_fcs.0.weight"])
    np.testing.assert_array_equal(new.roi_head.bbox_head[2].shared_fcs[0].kernel[...], shared.T)


def test_a_detection_model_serves_as_a_backbone():
    backbone = natjax.NatBackbone.from_pretrained(CASCADE)
    assert backbone.channels == (6, 12, 24, 48)
    norm = np.asarray(TENSORS[CASCADE]["backbone.norm3.weight"])
    np.testing.assert_array_equal(backbone.hidden_states_norms["stage4"].scale[...], norm)


@pytest.mark.parametrize("path", [GOLDENS / "hf_nat", CASCADE], ids=["classifier", "detector"])
def test_a_backbone_starts_a_detection_model(path):
    model = natjax.MaskRcnnForObjectDetection.from_backbone(path, num_labels=4, drop_path_rate=0.3, **HEADS)
    assert (type(model.config), model.config.num_labels, model.config.trunk.drop_path_rate) == (MaskRcnnConfig, 4, 0.3)
    name = "backbone.patch_embed.proj.1" if path == CASCADE else "nat.embeddings.patch_embeddings.projection.1"
    kernel = np.asarray(natjax_convert.read_state_dict(path)[f"{name}.weight"]).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.backbone.embeddings.patch_embeddings.projection[1].kernel[...], kernel)
    with pytest.raises(ValueError, match="give num_labels or id2label"):
        natjax.MaskRcnnForObjectDetection.from_backbone(path)


def test_models_are_not_those_of_other_heads():
    with pytest.raises(natjax.CheckpointError, match="no heads of a Mask R-CNN but those of a Cascade Mask R-CNN"):
        natjax.MaskRcnnForObjectDetection.from_pretrained(CASCADE)
    with pytest.raises(natjax.CheckpointError, match="no heads of a Mask R-CNN;"):
        natjax.MaskRcnnForObjectDetection.from_pretrained(GOLDENS / "hf_nat")
    config = natjax.CascadeMaskRcnnConfig(num_labels=3)
    with pytest.raises(natjax.CheckpointError, match=r"weights are those of a Mask R-CNN, .* of a Cascade Mask R-CNN"):
        natjax.CascadeMaskRcnnForObjectDetection.from_pretrained(MASK, config=config)


def test_formats_that_do_not_have_such_models(tmp_path):
    with pytest.raises(natjax.CheckpointError, match="SHI-Labs is for image classifiers; this is a detection model"):
        natjax_convert.convert(MASK, tmp_path / "a.pth", to="shilabs")
    with pytest.raises(natjax.CheckpointError, match="mmdetection is for detection models; this is a classifier"):
        natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "a.pth", to="mmdet")


def test_a_model_behind_a_prefix_is_taken_whole(tmp_path):
    for path, tensors in TENSORS.items():
        write_torch(tmp_path / "a.pth", {f"module.{name}": tensor for name, tensor in tensors.items()})
        assert_same(natjax_convert.read_state_dict(tmp_path / "a.pth"), TENSORS[path])


TWO_STAGES = {
    "box_stds": ((0.1, 0.1, 0.2, 0.3), (0.05, 0.05, 0.1, 0.1)),
    "box_iou_thresholds": (0.4, 0.55),
    "stage_loss_weights": (1.0, 0.3),
}
INFERENCE = {"rpn_pre_nms": 7, "rpn_post_nms": 6, "rpn_nms_threshold": 0.6, "score_threshold": 0.1}
INFERENCE |= {"nms_threshold": 0.4, "max_detections": 5, "mask_threshold": 0.45}
TRAINING = {"train_rpn_pre_nms": 9, "train_rpn_post_nms": 8, "rpn_batch_size": 10, "rpn_positive_fraction": 0.3}
TRAINING |= {"rpn_anchor_border": 3, "rpn_smooth_l1_beta": 0.2, "box_batch_size": 11, "box_positive_fraction": 0.2}
TRAINING |= {"box_low_quality_matches": False, "box_loss": "giou", "box_loss_weight": 5.0}


@pytest.mark.parametrize(
    "config",
    [
        MaskRcnnConfig(backbone_config=SMALL, id2label={0: "it's", 1: 'a "b"', 2: "é"}, **HEADS),
        MaskRcnnConfig(backbone_config=SMALL.replace(dilations=None), **HEADS, **INFERENCE, **TRAINING),
        CascadeMaskRcnnConfig(backbone_config=SMALL, box_num_convs=1, box_num_fcs=2, **HEADS, **TWO_STAGES),
        CascadeMaskRcnnConfig(
            backbone_config=DinatSConfig(embed_dim=4, depths=(1, 1, 1), num_heads=(1, 1, 2), kernel_size=3),
            anchor_scale=4,
            anchor_ratios=(1.0, 3.0),
            mask_num_convs=1,
            **HEADS,
        ),
    ],
    ids=["DiNAT", "NAT, other values", "two stages", "DiNAT_s, three levels, two anchors"],
)
def test_written_files_say_what_model_they_are(tmp_path, config):
    model = next(model for model in MODELS.values() if model.config_class is type(config))
    model(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "own")
    natjax_convert.convert(tmp_path / "own", tmp_path / "a.pth")
    assert natjax_convert.Checkpoint.open(tmp_path / "a.pth").config == config
    natjax_convert.convert(tmp_path / "a.pth", tmp_path / "back")
    assert_same(natjax_convert.read_state_dict(tmp_path / "back"), natjax_convert.read_state_dict(tmp_path / "own"))
    torch = pytest.importorskip("torch", reason="reads the file as mmcv does")
    file = torch.load(tmp_path / "a.pth", weights_only=True)
    assert file["meta"].keys() == {"CLASSES", "config"}
    assert file["meta"]["CLASSES"] == list(config.id2label.values())


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"stage_loss_weights": (0.5,)}])
def test_what_a_config_text_cannot_say_is_asked_for(tmp_path, changes):
    config = natjax_convert.Checkpoint.open(MASK).config.replace(**changes)
    assert untold(config) == [*changes]
    natjax_convert.convert(MASK, tmp_path / "a.pth", config=config, to="mmdet")
    with pytest.raises(natjax.CheckpointError, match="no text of mmdetection's config"):
        natjax_convert.Checkpoint.open(tmp_path / "a.pth")


STDS = CascadeMaskRcnnConfig.box_stds


def text_of(path):
    return TENSORS[path].meta["config"]


def config_in(path, text):
    return config_of(
        "detection", {"config": text}, lambda said: natjax_convert.infer_config(TENSORS[path], fields=said)
    )


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (MASK, "embed_dim=6", "embed_dim=__import__('os').system('touch hacked')", "a Call in it"),
        (MASK, "type='MaskRCNN'", "type='FasterRCNN'", "type is 'FasterRCNN'; natjax has 'MaskRCNN' alone"),
        (MASK, "type='NAT'", "type='ResNet'", "the backbone is 'ResNet'"),
        (CASCADE, "dilations=[[4], [1, 3], [2], [1]],", "", "has no dilations"),
        (MASK, "type='FPN'", "type='PAFPN'", "neck.type is 'PAFPN'; natjax has 'FPN' alone"),
        (MASK, "num_outs=5", "num_outs=5, add_extra_convs='on_input'", "neck.add_extra_convs is 'on_input'"),
        (MASK, "scales=[8]", "scales=[8, 16]", r"anchor_generator.scales is \[8, 16\]; natjax has \[8\] alone"),
        (MASK, "ratios=[0.5, 1.0, 2.0]", "ratios=[1.0]", r"3 anchors of a point, and anchor_ratios are \(1.0,\)"),
        (MASK, "num_classes=3", "num_classes=9999999", "num_labels is said to be 9999999, and is 3 by the shapes"),
        (MASK, "num_convs=4", "num_convs=5", "mask_num_convs is said to be 5, and is 4 by the shapes"),
        (MASK, "num_outs=5", f"num_outs='{'x' * 999}'", "neck.num_outs is 'x{199}[.]{3}; natjax has 5 alone"),
        (MASK, "ratios=[0.5, 1.0, 2.0]", "ratios=3", "anchor_ratios must be a sequence"),
        (MASK, "type='RPNHead'", "type='RPNHead', num_convs=2", "rpn_head.num_convs is 2; natjax has 1 alone"),
        (MASK, "sampling_ratio=0", "sampling_ratio=2", "bbox_roi_extractor.roi_layer.sampling_ratio is 2"),
        (MASK, "reg_class_agnostic=False", "reg_class_agnostic=True", "bbox_head.0.reg_class_agnostic is True"),
        (CASCADE, "0.067, 0.067", "0.067", r"box_stds\[2\] must be a sequence of 4 entries"),
        (
            CASCADE,
            "[0.05, 0.05, 0.1, 0.1]",
            "[0.05, 0.05, 0.1, 0.1], clip_border=False",
            "head.1.bbox_coder.clip_border is",
        ),
        (CASCADE, "num_stages=3", "num_stages=3, shared_head=dict(type='ResLayer')", "shared_head is"),
        (CASCADE, "type='SyncBN'", "type='GN'", "bbox_head.0.norm_cfg.type is 'GN'; natjax has 'SyncBN' alone"),
        (CASCADE, "type='FCNMaskHead'", "type='HTCMaskHead'", "roi_head.mask_head.0.type is 'HTCMaskHead'"),
        (MASK, "type='RandomSampler'", "type='OHEMSampler'", "train_cfg.rpn.sampler.type is 'OHEMSampler'"),
        (MASK, "nms_pre=60", "nms_pre=0", "rpn_pre_nms must be an integer of at least 1; got 0"),
        (
            MASK,
            "score_thr=0.05,\n            nms=dict(type='nms'",
            "nms=dict(type='soft_nms'",
            "test_cfg.rcnn.nms.type",
        ),
        (
            MASK,
            "nms_pre=250",
            "nms_pre=250, nms_across_levels=True",
            "train_cfg.rpn_proposal.nms_across_levels is True",
        ),
        (MASK, "nms_pre=60", "nms_pre=60, nms_across_levels=True", "test_cfg.rpn.nms_across_levels is True"),
        (
            MASK,
            "iou_threshold=0.7",
            "iou_threshold=0.7, class_agnostic=True",
            "train_cfg.rpn_proposal.nms.class_agnostic is True; natjax has False alone",
        ),
        (
            CASCADE,
            "max_per_img=70,\n            nms=dict(",
            "max_per_img=70,\n            nms=dict(class_agnostic=True, ",
            "test_cfg.rpn.nms.class_agnostic is True",
        ),
        (
            CASCADE,
            "iou_threshold=0.5",
            "iou_threshold=0.5, class_agnostic=True",
            "test_cfg.rcnn.nms.class_agnostic is True",
        ),
        (MASK, "iou_threshold=0.5", "iou_threshold=0.5, offset=1", "test_cfg.rcnn.nms.offset is 1; natjax has 0 alone"),
        (MASK, "test_cfg=dict(", "test_cfg=[", "not Python"),
    ],
)
def test_config_texts_that_are_refused(path, old, new, message):
    assert old in text_of(path)
    with pytest.raises(ValueError, match=message):
        config_in(path, text_of(path).replace(old, new, 1))
    assert not pathlib.Path("hacked").exists()


@pytest.mark.parametrize(
    ("path", "old", "new", "fields"),
    [
        (MASK, "output_size=7", "output_size=(7, 7)", {}),
        (MASK, "train_cfg=dict(", "train_cfg=None, unused=dict(", {"rpn_batch_size": 256, "train_rpn_pre_nms": 2000}),
        (MASK, "allowed_border=-1", "allowed_border=4", {"rpn_anchor_border": 4}),
        (CASCADE, "beta=0.1111111111111111, ", "", {"rpn_smooth_l1_beta": 1.0}),
        (CASCADE, "type='SmoothL1Loss', beta=0.1111111111111111", "type='L1Loss'", {"rpn_smooth_l1_beta": 0.0}),
        (
            CASCADE,
            "0.033, 0.033, 0.067, 0.067",
            "1, 2, 3, 4",
            {"box_stds": ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (1, 2, 3, 4))},
        ),
        (CASCADE, "nms_pre=250", "nms_across_levels=False, nms_post=250, nms_pre=300", {"train_rpn_pre_nms": 300}),
        (MASK, "iou_threshold=0.5", "iou_threshold=0.4, class_agnostic=False", {"nms_threshold": 0.4}),
        (MASK, "mask_thr_binary=0.5", "mask_thr_binary=0.4, unknown=3", {"mask_threshold": 0.4}),
        (MASK, "type='Shared2FCBBoxHead'", "type='ConvFCBBoxHead', num_shared_convs=0, num_shared_fcs=2", {}),
    ],
)
def test_config_texts_that_are_read(path, old, new, fields):
    assert old in text_of(path)
    config = config_in(path, text_of(path).replace(old, new, 1))
    expected = config_in(path, text_of(path))
    if "unused" in new:
        fields |= {"train_rpn_post_nms": 1000, "box_batch_size": 512}
    assert config == expected.replace(**fields)


def test_a_mapping_for_several_stages_is_that_of_each():
    config = natjax_convert.Checkpoint.open(CASCADE).config
    same = config.replace(box_stds=(config.box_stds[0],) * 3, box_iou_thresholds=(0.5,) * 3)
    text = meta_of(same)["config"]
    [heads] = re.findall(r"bbox_head=\[(.*?)\],\n +mask_roi", text, re.DOTALL)
    first = heads[: heads.index("\n            dict(", 9)].rstrip(", ")
    single = text.replace(f"[{heads}]", first)
    assert single != text
    assert config_in(CASCADE, single) == same.replace(id2label=None, num_labels=3)


def places(value, path=()):
    """Where the values of nested mappings and lists are, innermost and others."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("odd", [None, {}, [], "x", -1, 10**30, [[1]], [{"type": 3}]], ids=repr)
def test_odd_values_in_texts(odd):
    """Each is read or refused with a ValueError, wherever it is."""
    model, read = model_of(text_of(MASK)), []
    for path in places(model):
        changed = inner = copy.deepcopy(model)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = odd
        with contextlib.suppress(ValueError):
            read.append(config_in(MASK, f"model = {source(changed)}"))
    assert {type(config) for config in read} == {MaskRcnnConfig}


def test_dilations_are_asked_for(tmp_path):
    """Files of detection models may have nothing but the names of the classes."""
    meta = {"mmdet_version": "2.19.0", "CLASSES": ("cat", "dog", "owl")}
    write_torch(tmp_path / "plain.pth", TENSORS[CASCADE], meta)
    with pytest.raises(
        natjax.CheckpointError, match=r"no text of mmdetection's config.* at most 28, 14, 7, 3 by level"
    ):
        natjax_convert.Checkpoint.open(tmp_path / "plain.pth")
    config = natjax_convert.Checkpoint.open(tmp_path / "plain.pth", dilations=[[4], [1, 3], [2], [1]]).config
    said = natjax_convert.Checkpoint.open(CASCADE).config
    assert config.trunk.dilations == said.trunk.dilations
    assert config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert natjax_convert.Checkpoint.open(tmp_path / "plain.pth", dilations="none").config.trunk.dilations is None


def test_published_dilations_are_named(tmp_path):
    found = PRESETS["cascade_mask_rcnn_dinat_tiny"].config.replace(num_labels=7)
    tensors = {
        tensor: np.broadcast_to(np.float32(0), entry.tensor_shape)
        for entry in natjax_convert.entries(found, "detection", dialect="mmdet")
        for tensor in entry.names
    }
    with pytest.raises(natjax.CheckpointError) as refused:
        natjax_convert.find_config(tmp_path / "a.pth", tensors)
    said = str(refused.value)
    assert "they fit cascade_mask_rcnn_nat_tiny, cascade_mask_rcnn_dinat_tiny;" in said
    assert f"(cascade_mask_rcnn_dinat_tiny has --dilations '{json.dumps(found.trunk.dilations)}')" in said


def test_what_is_no_detector_of_natjax():
    with pytest.raises(natjax.CheckpointError, match=r"of no NAT or DiNAT.*'0.weight', '0.bias'"):
        natjax_convert.Checkpoint.open(GOLDENS / "mmdet_mask_rcnn" / "optimizer_format.pth")
    boxes = {name: tensor for name, tensor in TENSORS[MASK].items() if "mask_head" not in name}
    with pytest.raises(natjax.CheckpointError, match="there is no mask head, and natjax has Mask R-CNN and"):
        natjax_convert.infer_config(boxes)
    two = {name: tensor for name, tensor in TENSORS[CASCADE].items() if "head.2." not in name}
    with pytest.raises(natjax.CheckpointError, match="there are 2 box heads, and box_stds are"):
        natjax_convert.infer_config(two)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("roi_head.bbox_head.1.shared_convs.3.bn.running_var"), "3.bn.running_var: missing"),
        (lambda t: t.pop("backbone.norm2.bias"), "backbone.norm2.bias: missing"),
        (lambda t: t.update({"roi_head.extra.weight": np.ones(3, "f4")}), "roi_head.extra.weight: not part"),
        (lambda t: t.update({"neck.fpn_convs.2.conv.bias": np.ones(3, "f4")}), r"expected \(8,\), got \(3,\)"),
        (
            lambda t: t.update({"roi_head.mask_head.2.upsample.weight": np.ones((8, 8, 2), "f4")}),
            r"expected \(8, 8, 2, 2\), got \(8, 8, 2\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(spoil, message):
    tensors = dict(TENSORS[CASCADE])
    spoil(tensors)
    config = natjax_convert.Checkpoint.open(CASCADE).config
    with pytest.raises(natjax.CheckpointError, match=message):
        natjax_convert.to_flax(tensors, config, kind="detection")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_these_tensors(name):
    preset = PRESETS[name.removesuffix("_3x_coco")].config
    family = CascadeMaskRcnnConfig if name.startswith("cascade") else MaskRcnnConfig
    assert preset == family(backbone_config=backbone_of(PUBLISHED[name]), num_labels=len(coco()))
    assert_published(preset, "detection", "mmdet", PUBLISHED[name])
