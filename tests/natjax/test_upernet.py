"""UPerNet: its configuration, its outputs' shapes and views, and the loss of segmentation by its definition."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.configuration import config_from_dict
from natjax.losses import segmentation_loss

pytestmark = pytest.mark.nnx

BACKBONE = natjax.NatConfig(embed_dim=4, depths=(1, 1, 1), num_heads=(1, 1, 1), kernel_size=3, drop_path_rate=0.0)
CONFIG = natjax.UperNetConfig(backbone_config=BACKBONE, hidden_size=6, auxiliary_channels=5, num_labels=7)


def images(*size):
    return np.random.default_rng(0).standard_normal((*size, 3), np.float32)


def test_config_json_is_hugging_faces_and_comes_back():
    values = CONFIG.to_dict()
    assert values["model_type"] == "upernet"
    assert values["backbone_config"]["model_type"] == "nat"
    assert values["backbone_config"]["out_features"] == ["stage1", "stage2", "stage3"]
    assert values["auxiliary_in_channels"] == 16
    assert config_from_dict(json.loads(CONFIG.to_json())) == CONFIG
    assert hash(config_from_dict(values)) == hash(CONFIG)
    del values["head_dropout_prob"]  # which Hugging Face does not have
    assert config_from_dict(values) == CONFIG.replace(head_dropout_prob=0.0)


def test_changes_go_to_the_backbone_where_they_are_its_fields():
    changed = CONFIG.replace(drop_path_rate=0.3, hidden_size=8, embed_dim=8, num_labels=3)
    assert (changed.trunk.drop_path_rate, changed.trunk.embed_dim) == (0.3, 8)
    assert (changed.hidden_size, changed.auxiliary_in_channels, changed.num_labels) == (8, 32, 3)
    of_json = CONFIG.replace(drop_path_rate=0.3, hidden_size=8, num_labels=3, backbone_config={
        **BACKBONE.to_dict(), "embed_dim": 8
    })  # fmt: skip
    assert of_json == changed


def test_colours_are_of_the_classes():
    config = CONFIG.replace(id2label={0: "a", 1: "b"}, extra={"palette": [[1, 2, 3], [4, 5, 6]], "other": 1})
    assert config.replace(drop_path_rate=0.1).extra == config.extra
    assert config.replace(id2label={0: "a", 1: "b"}).extra == config.extra
    assert config.replace(id2label={0: "a", 1: "c"}).extra == config.replace(num_labels=5).extra == {"other": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 3}, "no field 'hiden_size'"),
        ({"num_labels": 0}, "at least 1"),
        ({"pool_scales": (1, 0)}, "pool_scales"),
        ({"auxiliary_in_channels": 3}, "auxiliary_in_channels must be .* 16; got 3"),
        ({"auxiliary_num_convs": 0}, "without convolutions, auxiliary_channels"),
        ({"head_dropout_prob": 1.0}, "head_dropout_prob"),
        ({"backbone_config": {"model_type": "swin"}}, "'swin' model; natjax's UPerNet is over a 'nat'"),
        ({"backbone_config": None}, "backbone_config must be that of"),
        ({"backbone_config": BACKBONE.replace(out_features=("stage1", "stage3"))}, "all levels"),
        ({"backbone_config": BACKBONE.replace(depths=(1,), num_heads=(1,))}, "third feature map"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**changes)


def test_a_config_json_over_another_backbone_is_refused():
    with pytest.raises(ValueError, match=r"backbone_config of a 'nat'.*'microsoft/resnet-50'"):
        config_from_dict({"model_type": "upernet", "backbone_config": None, "backbone": "microsoft/resnet-50"})


def shapes(config, size, method="__call__", *, dtype=jnp.float32, **options):
    """Shapes and dtypes of what a new model returns for images of a size, by name where they have names."""

    def run(x):
        model = natjax.UperNetForSemanticSegmentation(config, dtype=dtype, rngs=nnx.Rngs(0))
        out = getattr(model, method)(x, **options)
        return out if isinstance(out, tuple) else vars(out)

    return jax.eval_shape(run, jax.ShapeDtypeStruct((*size, 3), dtype))


def test_shapes_at_any_size():
    out = shapes(CONFIG, (2, 33, 50), output_hidden_states=True, output_attentions=True)
    logits, auxiliary = shapes(CONFIG, (2, 33, 50), "decode")
    assert out["logits"].shape == (2, 33, 50, 7)
    assert (logits.shape, auxiliary.shape) == ((2, 9, 13, 7), (2, 3, 4, 7))
    assert out["loss"] is None
    assert [state.shape[-1] for state in out["hidden_states"]] == [4, 4, 8, 16]
    assert len(out["attentions"]) == 3


def test_padded_images_give_what_they_give_alone():
    model = natjax.UperNetForSemanticSegmentation(CONFIG, rngs=nnx.Rngs(0))
    decode = nnx.jit(lambda model, pixels, size: model.decode(pixels, image_size=size), static_argnums=2)
    pixels = images(2, 53, 38)
    alone, _ = decode(model, pixels, None)
    padded, auxiliary = decode(model, jnp.pad(pixels, ((0, 0), (0, 27), (0, 10), (0, 0))), (53, 38))
    assert auxiliary is None
    np.testing.assert_allclose(padded[:, :14, :10], alone, rtol=1e-5, atol=1e-5)


def test_heads_may_be_of_another_kind():
    config = CONFIG.replace(auxiliary_num_convs=0, auxiliary_channels=16, auxiliary_concat_input=True, pool_scales=(2,))
    assert shapes(config, (1, 16, 16), "decode")[1].shape == (1, 1, 1, 7)
    without = config.replace(use_auxiliary_head=False)
    assert shapes(without, (1, 16, 16), "decode")[1] is None
    assert shapes(without, (1, 16, 16), labels=np.zeros((1, 16, 16), np.uint8))["loss"].shape == ()


def test_views_for_training():
    model = natjax.UperNetForSemanticSegmentation(CONFIG, rngs=nnx.Rngs(0))
    x = images(2, 16, 32)
    train = nnx.view(model, deterministic=False, use_running_average=False)
    before = int(model.decode_head.bottleneck.batch_norm.num_batches_tracked[...])
    decode = nnx.jit(lambda train, x, key: train.decode(x, rngs=key)[0])
    first, second = (decode(train, x, jax.random.key(i)) for i in range(2))
    assert np.abs(first - second).max() > 1e-3  # dropout of the heads
    assert model.decode_head.bottleneck.batch_norm.num_batches_tracked[...] == before + 2
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # the coarsest pooled map of one image
        decode(train, x[:1], jax.random.key(0))


def test_bfloat16():
    out = shapes(CONFIG, (1, 16, 16), dtype=jnp.bfloat16, labels=np.zeros((1, 16, 16), np.uint8))
    assert (out["logits"].dtype, out["loss"].dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("average", ["valid", "all"])
def test_loss_by_its_definition(average):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, 5, 6)).astype(np.uint8)
    labels[0, :2] = 255
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = labels != 255
    picked = np.take_along_axis(log_probabilities, np.where(valid, labels, 0)[..., None].astype(int), -1)[..., 0]
    expected = -picked[valid].sum() / (valid.sum() if average == "valid" else labels.size)
    loss = jax.jit(lambda logits: segmentation_loss(logits, labels, average=average))
    np.testing.assert_allclose(loss(logits), expected, rtol=1e-6)
    assert not np.any(np.asarray(jax.grad(loss)(logits))[~valid])


def test_loss_of_labels_that_do_not_fit():
    logits = np.zeros((1, 2, 2, 3), np.float32)
    labels = np.full((1, 4, 4), 3, np.uint8)
    with pytest.raises(ValueError, match=r"\[0, 3\) or 255.*got \[3, 3, 3, 3, 3\]"):
        segmentation_loss(logits, labels)
    assert np.isnan(jax.jit(segmentation_loss)(logits, labels))
    for wrong in (labels[0], labels.astype(np.float32), np.zeros((2, 4, 4), np.int32)):
        with pytest.raises(ValueError, match=r"integer class indices \[1, height, width\]"):
            segmentation_loss(logits, wrong)
