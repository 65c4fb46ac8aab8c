"""UPerNet against mmsegmentation and transformers (tests/goldens): every number within 2e-5 of the largest of its array."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax.losses import segmentation_loss
from natjax.nn.resizing import resize_bilinear

pytestmark = pytest.mark.nnx

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SOURCES = {"mmseg_upernet_nat": "checkpoint.pth", "hf_upernet_nat": "", "hf_upernet_dinat": ""}
HUGGING_FACE = ("hf_upernet_nat", "hf_upernet_dinat")
# What tests/conftest.py turns off. Without, two gradients through batch statistics are off by 2.5e-5 of the largest.
USUAL = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
MARGIN = 2e-3  # between the best two logits; the goldens have it in float16, and theirs and ours differ by 1e-5 at most


def load(name, **options):
    golden = np.load(GOLDENS / name / "expected.npz")
    return golden, natjax.UperNetForSemanticSegmentation.from_pretrained(GOLDENS / name / SOURCES[name], **options)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def run(model, function, x):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: function(nnx.merge(graphdef, state), x))(state, x)


def assert_close(actual, desired, name=""):
    actual, largest = np.asarray(actual), np.abs(desired).max()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=2e-5 * max(largest, 1e-3), err_msg=name)


def assert_same_classes(logits, golden, classes, margin):
    sure = golden[margin].astype(np.float32) > MARGIN
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(np.argmax(np.asarray(logits), axis=-1)[sure], golden[classes][sure])


@pytest.mark.parametrize("name", SOURCES)
def test_features_logits_and_classes_of_an_odd_size(name):
    golden, model = load(name)

    def parts(model, x):
        features = model.backbone(x).feature_maps
        return features, model.decode_head(features), model.auxiliary_head(features)

    features, logits, auxiliary = run(model, parts, nhwc(golden["b/input"]))
    for i, feature in enumerate(features):
        assert_close(feature, nhwc(golden[f"b/feature_{i}"]))
    assert_close(logits, nhwc(golden["b/decode_logits"]))
    assert_close(auxiliary, nhwc(golden["b/aux_logits"]))
    resized = np.asarray(resize_bilinear(logits, golden["b/seg"].shape[1:]))
    assert_same_classes(resized, golden, "b/seg", "b/margin")
    if name not in HUGGING_FACE:
        twice = resize_bilinear(resized, golden["b/seg_ori"].shape[1:])
        assert_same_classes(twice, golden, "b/seg_ori", "b/margin_ori")
        return
    assert_close(hf_loss(logits, auxiliary, golden["b/labels"]), golden["b/loss"])
    twice = resize_bilinear(resized, golden["b/seg_target"].shape[1:])  # transformers' post-processing
    assert (np.argmax(np.asarray(twice), axis=-1) == golden["b/seg_target"]).mean() > 0.999


def hf_loss(logits, auxiliary, labels):
    return segmentation_loss(logits, labels) + 0.4 * segmentation_loss(auxiliary, labels)


def test_logits_of_mmsegmentation():
    golden, model = load("mmseg_upernet_nat")
    logits, auxiliary = run(model, lambda model, x: model.decode(x), nhwc(golden["a/input"]))
    assert_close(logits, nhwc(golden["a/decode_logits"]))
    assert_close(auxiliary, nhwc(golden["a/aux_logits"]))
    assert_same_classes(resize_bilinear(logits, golden["a/seg"].shape[1:]), golden, "a/seg", "a/margin")


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_output_of_hugging_face(name):
    golden, model = load(name)
    labels = golden["a/labels"]
    out = run(model, lambda model, x: model(x, labels), nhwc(golden["a/input"]))
    assert_close(out.loss, golden["a/loss"])
    assert_close(out.logits, np.asarray(resize_bilinear(nhwc(golden["a/decode_logits"]), labels.shape[1:])))
    assert_same_classes(out.logits, golden, "a/seg", "a/margin")


def step(model, loss, x, labels, *, use_running_average):
    """Losses, gradients and updated statistics of a training step, the last two by the names of the model's own format."""
    view = nnx.view(model, deterministic=False, use_running_average=use_running_average)
    graphdef, params, stats = nnx.split(view, nnx.Param, nnx.BatchStat)

    def losses(params, stats):
        model = nnx.merge(graphdef, params, stats, copy=True)
        value, parts = loss(model, x, labels)
        return value, (parts, nnx.state(model, nnx.BatchStat))

    (value, (parts, stats)), gradients = jax.jit(jax.value_and_grad(losses, has_aux=True), compiler_options=USUAL)(
        params, stats
    )
    return value, parts, merged(nnx.to_pure_dict(gradients), nnx.to_pure_dict(stats))


def merged(a, b):
    """A nested dict with the leaves of two others."""
    if not isinstance(a, dict):
        return a
    return {key: merged(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in {**a, **b}}


def by_name(values, config, dialect):
    tensors = natjax_convert.from_flax(values, config, kind="segmentation", dialect=dialect)
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def mmseg_loss(model, x, labels):
    logits, auxiliary = model.decode(x)
    decode = segmentation_loss(logits, labels, average="all")
    aux = model.config.auxiliary_loss_weight * segmentation_loss(auxiliary, labels, average="all")
    return decode + aux, {"decode": decode, "aux": aux}


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_training_step_of_mmsegmentation(mode):
    golden, model = load("mmseg_upernet_nat", head_dropout_prob=0.0)
    x, labels = nhwc(golden["train/input"]), golden["train/labels"]
    value, parts, tensors = step(model, mmseg_loss, x, labels, use_running_average=mode == "running")
    assert_close(value, golden[f"train_{mode}/loss"])
    for head in parts:
        assert_close(parts[head], golden[f"train_{mode}/{head}.loss_ce"])
    check_tensors(by_name(tensors, model.config, "mmseg"), golden, f"train_{mode}/", gradients=112)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_training_step_of_hugging_face(name):
    golden, model = load(name)
    x, labels = nhwc(golden["train/input"]), golden["train/labels"]

    def loss(model, x, labels):
        return model(x, labels).loss, {}

    value, _, tensors = step(model, loss, x, labels, use_running_average=False)
    assert_close(value, golden["train/loss"])
    check_tensors(by_name(tensors, model.config, "hf"), golden, "train/", gradients=61)


def check_tensors(tensors, golden, beginning, *, gradients):
    """Gradients of one part of the model have one scale: what is of the size of its noise is noise."""
    names = [name for name in golden.files if name.startswith((f"{beginning}grad/", f"{beginning}stats/"))]
    largest = {}
    for name in names:
        largest[part(name)] = max(largest.get(part(name), 0), np.abs(golden[name]).max())
    for name in names:
        tensor = tensors[name.removeprefix(beginning).split("/")[1]]
        np.testing.assert_allclose(tensor, golden[name], rtol=0, atol=2e-5 * largest[part(name)], err_msg=name)
    assert sum("grad/" in name for name in names) >= gradients


def part(name):
    return ".".join(name.split(".")[:2]) if "grad/" in name else name
