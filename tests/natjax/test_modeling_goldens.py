"""Models against outputs and gradients of the genuine PyTorch code (tests/goldens): every one within 2e-5 in float32."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_convert

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
HUGGING_FACE = ("hf_nat", "hf_nat_layer_scale", "hf_dinat")
SHI_LABS = (
    *("shilabs_nat", "shilabs_dinat_layer_scale", "shilabs_dinat_s"),
    *("shilabs_nat_isotropic", "shilabs_dinat_isotropic", "shilabs_vitrpb"),
)
TOLERANCE = 2e-5

pytestmark = pytest.mark.nnx


def expected(name):
    return np.load(GOLDENS / name / "expected.npz")


def pixel_values(golden):
    return golden["pixel_values"].transpose(0, 2, 3, 1)


def load(name, **options):
    """The classifier of a golden; SHI-Labs files tell their architecture by shapes, their dilations by provenance."""
    if name in HUGGING_FACE:
        return natjax.NatForImageClassification.from_pretrained(GOLDENS / name, **options)
    args = json.loads((GOLDENS / name / "provenance.json").read_text())["args"]
    dilations, dilation = args.get("dilations"), args.get("dilation") or 1
    if dilation > 1:  # of every second layer of an isotropic model
        dilations = [[dilation if i % 2 else 1 for i in range(args["depth"])]]
    path = GOLDENS / name / "checkpoint.pth"
    config = natjax_convert.infer_config(natjax_convert.read_state_dict(path), dilations=dilations)
    return natjax.NatForImageClassification.from_pretrained(path, config=config, **options)


def run(model, x, **options):
    """The model's output, compiled as a whole: operations one by one would each be compiled, too."""
    graphdef, params = nnx.split(model)
    return jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, **options))(params, x)


def assert_close(actual, desired):
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_every_output_of_hugging_face(name):
    golden, model = expected(name), load(name)
    out = run(
        model,
        pixel_values(golden),
        labels=golden["labels"].astype(np.int32),
        output_hidden_states=True,
        output_attentions=True,
    )
    assert_close(out.logits, golden["logits"])
    assert_close(out.loss, golden["loss"])
    states = [key for key in golden.files if key.startswith("hidden_states.")]
    assert len(out.hidden_states) == len(out.reshaped_hidden_states) == len(states)
    for i in range(len(states)):
        assert_close(out.hidden_states[i], golden[f"hidden_states.{i}"])
        assert_close(out.reshaped_hidden_states[i], golden[f"reshaped_hidden_states.{i}"])
    assert len(out.attentions) == sum(key.startswith("attentions.") for key in golden.files)
    for i, weights in enumerate(out.attentions):
        assert_close(weights, golden[f"attentions.{i}"])


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_bare_model(name):
    golden = expected(name)
    out = run(natjax.NatModel.from_pretrained(GOLDENS / name), pixel_values(golden))
    assert_close(out.pooler_output, golden["pooler_output"])
    assert_close(out.last_hidden_state, golden["last_hidden_state"])


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_backbone(name):
    golden = expected(name)
    model = natjax.NatBackbone.from_pretrained(GOLDENS / f"{name}_backbone")
    out = run(model, pixel_values(golden), output_hidden_states=True)
    assert len(out.feature_maps) == len(model.config.out_features) == 3
    for stage, feature_map, channels in zip(model.config.out_features, out.feature_maps, model.channels, strict=True):
        assert_close(feature_map.transpose(0, 3, 1, 2), golden[f"feature_maps.{stage}"])
        assert feature_map.shape[-1] == channels
    assert len(out.hidden_states) == len(model.config.stage_names)


@pytest.mark.parametrize("name", SHI_LABS)
def test_outputs_of_shi_labs(name):
    golden, model = expected(name), load(name)
    out = run(model, pixel_values(golden), labels=golden["labels"].astype(np.int32))
    assert_close(out.logits, golden["logits"])
    assert_close(out.loss, golden["loss"])
    assert_close(run(model.nat, pixel_values(golden)).pooler_output, golden["features"])


@pytest.mark.parametrize(
    ("name", "remat"),
    [*((name, False) for name in HUGGING_FACE + SHI_LABS), ("shilabs_dinat_layer_scale", True)],
)
def test_gradient_of_every_parameter(name, remat):
    """In the training view, as the training step has it, where no dropout is at work."""
    golden, model = expected(name), load(name, drop_path_rate=0.0)
    graphdef, params = nnx.split(nnx.view(model, deterministic=False, remat=remat))

    @jax.jit
    def gradient(params, x, labels):
        return jax.grad(lambda p: nnx.merge(graphdef, p)(x, labels=labels, rngs=jax.random.key(0)).loss)(params)

    grads = gradient(params, pixel_values(golden), golden["labels"].astype(np.int32))
    dialect = "hf" if name in HUGGING_FACE else "shilabs"
    actual = natjax_convert.from_flax(nnx.to_pure_dict(grads), model.config, dialect=dialect)
    desired = {re.sub(r"\Agrad[./](module\.)?", "", key): key for key in golden.files if re.match(r"grad[./]", key)}
    assert {tensor for tensor in actual if not tensor.endswith(".relative_position_index")} == set(desired)
    for tensor, key in desired.items():
        assert_close(actual[tensor], golden[key])


def test_outside_of_jit():
    golden = expected("hf_dinat")
    assert_close(load("hf_dinat")(pixel_values(golden)).logits, golden["logits"])


def test_by_the_plainest_implementation():
    golden = expected("hf_nat")
    assert_close(run(load("hf_nat", implementation="reference"), pixel_values(golden)).logits, golden["logits"])
