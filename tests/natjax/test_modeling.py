"""Behaviour of the models beyond parity: training views, dtypes, sizes, losses, transformations, errors."""

import os
import re
import subprocess
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax.outputs
import natjax_convert
from natjax.losses import classification_loss

pytestmark = pytest.mark.nnx

SMALL = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "kernel_size": 3, "num_labels": 5}


def make(model_class=natjax.NatForImageClassification, **changes):
    options = {key: changes.pop(key) for key in ("dtype", "implementation", "param_dtype") if key in changes}
    return model_class(natjax.NatConfig(**{**SMALL, **changes}), rngs=nnx.Rngs(0), **options)


def run(model, x, **options):
    """The model's output, compiled as a whole: operations one by one would each be compiled, too."""
    graphdef, params = nnx.split(model)
    return jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, **options))(params, x)


def shapes(model, x, **options):
    """The shapes of the model's outputs; not as one of its outputs, whose fields are checked to be arrays."""
    return types.SimpleNamespace(**jax.eval_shape(lambda x: vars(model(x, **options)), x))


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape or (2, 32, 32, 3), np.float32)


def test_training_view_draws_what_evaluation_does_not():
    model = make(depths=(1, 1), drop_path_rate=0.5, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    x = images(4, 32, 32, 3)
    graphdef, params = nnx.split(nnx.view(model, deterministic=False))
    train = jax.jit(lambda params, x, key: nnx.merge(graphdef, params)(x, rngs=key).logits)
    first, again, other = (train(params, x, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    np.testing.assert_array_equal(run(model, x).logits, run(make(depths=(1, 1)), x).logits)  # the same weights
    with pytest.raises(ValueError, match="rngs"):
        shapes(nnx.merge(graphdef, params), x)


def test_named_implementations_without_weights_are_not_replaced():
    model = make(implementation="triton", attention_probs_dropout_prob=0.2)
    for call in (
        lambda: shapes(model, images(), output_attentions=True),
        lambda: shapes(nnx.view(model, deterministic=False), images(), rngs=jax.random.key(0)),
    ):
        with pytest.raises(
            NotImplementedError, match="implementation='triton' cannot run: it neither returns attention w"
        ):
            call()
    assert shapes(make(implementation="xla"), images(), output_attentions=True).attentions


def test_training_view_without_rates_is_evaluation():
    model = make(drop_path_rate=0.0)
    train = nnx.view(model, deterministic=False)
    np.testing.assert_array_equal(run(train, images()).logits, run(model, images()).logits)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = make(drop_path_rate=0.5, depths=(2,), num_heads=(1,)).nat.encoder.levels[0].layers[1]
    x = jnp.ones((2000, 1, 1, 16))
    dropped = nnx.view(layer, deterministic=False).drop_path(x, rngs=nnx.Rngs(0))
    per_sample = np.asarray(dropped).reshape(2000, -1)
    assert set(np.unique(per_sample)) == {0.0, 2.0}
    assert (per_sample == per_sample[:, :1]).all()
    assert abs(per_sample.mean() - 1) < 0.1


@pytest.mark.parametrize("deterministic", [True, False])
def test_models_hold_nothing_but_parameters(deterministic):
    model = nnx.view(make(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), deterministic=deterministic)
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert jax.tree.leaves(params)
    assert not jax.tree.leaves(rest)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.05), (jnp.float16, 0.01)])
def test_half_precision_computes_close_to_float32_with_float32_parameters(dtype, tolerance):
    model = make(dtype=dtype, initializer_range=0.1)
    out = run(model, images(), labels=np.array([0, 1]))
    logits = out.logits
    assert logits.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    desired = run(make(initializer_range=0.1), images()).logits
    assert np.abs(logits.astype(jnp.float32) - desired).max() < tolerance * np.abs(desired).max()
    assert out.loss.dtype == jnp.float32


@pytest.mark.parametrize("size", [(1, 1), (33, 57), (100, 9)])
@pytest.mark.parametrize("dilations", [None, ((4,), (2,))])
def test_any_image_size(size, dilations):
    model = make(depths=(1, 1), dilations=dilations)
    out = run(model, images(2, *size, 3), output_hidden_states=True, output_attentions=True)
    assert out.logits.shape == (2, 5)
    assert np.isfinite(out.logits).all()
    height, width = (-(-n // 4) for n in size)
    assert out.hidden_states[0].shape == (2, height, width, 16)
    assert out.reshaped_hidden_states[0].shape == (2, 16, height, width)


def test_grey_scale_and_no_classifier():
    assert shapes(make(num_channels=1), images(1, 32, 32, 1)).logits.shape == (1, 5)
    model = make(num_labels=0)
    assert shapes(model, images()).logits.shape == (2, 32)
    assert model.classifier is None


def test_outputs_are_pytrees_with_hugging_faces_fields():
    out = run(make(), images(), output_attentions=True)
    assert isinstance(out, natjax.outputs.NatImageClassifierOutput)
    assert out.keys() == ("logits", "attentions")
    assert out["logits"] is out.logits
    assert out.loss is None
    with pytest.raises(KeyError, match="logits"):
        out["loss"]
    by_config = run(make(output_hidden_states=True), images())
    assert by_config.keys() == ("logits", "hidden_states", "reshaped_hidden_states")


@pytest.mark.parametrize("model_class", [natjax.NatModel, natjax.NatBackbone])
def test_attention_weights_sum_to_one(model_class):
    for weights in run(make(model_class), images(), output_attentions=True).attentions:
        np.testing.assert_allclose(np.asarray(weights).sum(-1), 1, rtol=1e-5)


def test_bad_inputs_say_what_is_expected():
    model = make()
    with pytest.raises(ValueError, match=r"\[batch, height, width, 3\]; got shape \(2, 3, 32, 32\).*transpose"):
        model(images(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"got shape \(32, 32, 3\)"):
        model(images(32, 32, 3))
    with pytest.raises(ValueError, match=r"uint8.*NatImageProcessor"):
        model(np.zeros((1, 32, 32, 3), np.uint8))
    tensor = type("Tensor", (), {"__module__": "torch", "shape": (1, 3, 32, 32), "__array__": lambda self: images()})
    for bad, message in (
        (np.zeros((1, 32, 32, 3), np.float32).tolist(), "got list. natjax.NatImageProcessor makes one"),
        (["cat.jpg"], "got list"),
        (None, "got NoneType"),
        (tensor(), r"got torch\.Tensor\. .* tensor\.permute\(0, 2, 3, 1\)\.numpy\(\)"),
    ):
        for kind in (model, make(natjax.NatBackbone)):
            with pytest.raises(TypeError, match=f"pixel_values must be an array of JAX or NumPy; {message}"):
                kind(bad)
    with pytest.raises(ValueError, match="must be a NatConfig; got str"):
        natjax.NatModel("nat_mini", rngs=nnx.Rngs(0))


LOGITS = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -2.0]], np.float32)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_losses_are_those_of_their_definitions():
    config = natjax.NatConfig(num_labels=3)
    picked = log_softmax(LOGITS)[[0, 1], [2, 1]]
    assert np.isclose(classification_loss(LOGITS, np.array([2, 1]), config), -picked.mean())
    assert np.isclose(classification_loss(LOGITS, np.array([2, -100]), config), -picked[0])
    targets = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    p = 1 / (1 + np.exp(-LOGITS))
    entropy = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
    assert np.isclose(classification_loss(LOGITS, targets, config), entropy)
    regression = config.replace(problem_type="regression")
    assert np.isclose(classification_loss(LOGITS, targets, regression), ((LOGITS - targets) ** 2).mean())
    one = natjax.NatConfig(num_labels=1)
    assert np.isclose(classification_loss(LOGITS[:, :1], np.array([1.0, 2.0]), one), (0.5**2 + 1) / 2)


def test_losses_refuse_labels_that_do_not_fit():
    config = natjax.NatConfig(num_labels=3)
    with pytest.raises(ValueError, match=r"\[0, 3\) or -100; got \[3\]"):
        classification_loss(LOGITS, np.array([3, 0]), config)
    assert np.isnan(jax.jit(lambda y: classification_loss(LOGITS, y, config))(np.array([3, 0])))
    with pytest.raises(ValueError, match="one integer class index per image"):
        classification_loss(LOGITS, np.array([0, 1, 2]), config)
    with pytest.raises(ValueError, match="labels like the logits"):
        classification_loss(LOGITS, np.zeros((2, 2), np.float32), config)


def test_large_logits_do_not_overflow_the_loss():
    config = natjax.NatConfig(num_labels=3)
    huge = LOGITS * 1e4
    assert np.isfinite(classification_loss(huge, np.ones((2, 3), np.float32), config))
    assert np.isfinite(classification_loss(huge, np.array([0, 1]), config))


def test_create_model_and_presets():
    sizes = ["nat_mini", "nat_tiny", "nat_small", "nat_base"]
    assert natjax.list_models("nat_*") == [*sizes, "nat_isotropic_small", "nat_isotropic_base"]
    assert natjax.list_models("upernet_nat_*") == [f"upernet_{name}" for name in sizes]
    changes = {"num_labels": 7, "embed_dim": 8, "depths": (1,), "num_heads": (1,)}
    model = natjax.create_model("nat_mini", model_class=natjax.NatForImageClassification, **changes)
    assert model.classifier.kernel.shape == (8, 7)
    with pytest.raises(ValueError, match=r"no model named 'nat_minni'\. Did you mean nat_mini"):
        natjax.create_model("nat_minni")
    with pytest.raises(ValueError, match="no field 'num_classes'"):
        natjax.create_model("nat_mini", num_classes=7)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_functional_step_over_pure_params(checkpoint):
    """The way training uses a model: a jitted gradient over a dict of arrays, here with rematerialisation."""
    model = nnx.view(make(drop_path_rate=0.3, depths=(1, 1)), deterministic=False)
    graphdef, params = nnx.split(model)

    def loss(params, x, labels, key):
        return nnx.merge(graphdef, params)(x, labels=labels, rngs=key).loss

    step = jax.jit(jax.value_and_grad(jax.checkpoint(loss) if checkpoint else loss))
    value, grads = step(params, images(), np.array([0, 3]), jax.random.key(0))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_linen_bridge_takes_the_same_parameters():
    model = make(depths=(1, 1))
    module = natjax.to_linen(model.config)
    variables = {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}
    logits = jax.jit(module.apply)(variables, images()).logits
    np.testing.assert_allclose(logits, run(model, images()).logits, atol=1e-6)


def test_export_round_trip():
    from jax import export

    graphdef, params = nnx.split(make(depths=(1, 1)))
    forward = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x).logits)
    exported = export.export(forward)(params, images())
    np.testing.assert_allclose(exported.call(params, images()), forward(params, images()), atol=1e-6)


def test_parameters_round_trip_through_the_converter_for_every_kind():
    for model_class in (natjax.NatForImageClassification, natjax.NatModel, natjax.NatBackbone):
        model = make(model_class, layer_scale_init_value=0.1, qkv_bias=False, dilations=((2,), (1, 2)))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        state_dict = natjax_convert.from_flax(params, model.config, kind=model.kind)
        again = natjax_convert.to_flax(state_dict, model.config, kind=model.kind)
        jax.tree.map(np.testing.assert_array_equal, params, again)


def test_export_of_any_batch():
    config = natjax.NatConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2), kernel_size=3, num_labels=4)
    model = natjax.NatForImageClassification(config, rngs=nnx.Rngs(0))
    run = jax.jit(lambda x: model(x).logits)
    images = jax.random.normal(jax.random.key(0), (3, 30, 33, 3))
    shape = jax.export.symbolic_shape("b, 30, 33, 3")
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))
    for batch in (images[:1], images):
        np.testing.assert_allclose(exported.call(batch), run(batch), atol=1e-5)
    shape = jax.export.symbolic_shape("b, h, w, 3")
    with pytest.raises(ValueError, match="pixel_values must have a known size along every axis but the batch"):
        jax.export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))


def test_graph_mode_off():
    """NNX's tree mode, which Flax will make its default, in a process of its own."""
    code = (
        "import numpy as np, natjax; from flax import nnx;"
        f"m = natjax.NatForImageClassification(natjax.NatConfig(**{ {**SMALL, 'depths': (1, 1)}!r}), rngs=nnx.Rngs(0));"
        "g, p = nnx.split(m); assert nnx.merge(g, p)(np.ones((1, 32, 32, 3), 'f')).logits.shape == (1, 5);"
        "nnx.view(m, deterministic=False)(np.ones((1, 32, 32, 3), 'f'), rngs=nnx.Rngs(0))"
    )
    env = {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={**os.environ, **env})


INITIAL = """
import itertools

import jax
import numpy as np
from flax import nnx
from natjax.nn.initializers import truncated_normal

key = jax.random.key(7)
for shape, dtype in itertools.product([(3, 3, 3, 32), (64,), (2, 13, 13)], map(jax.numpy.dtype, ("float32", "bfloat16"))):
    init = truncated_normal(0.02)
    desired = nnx.initializers.truncated_normal(0.02)(key, shape, dtype)
    for weights in (init(key, shape, dtype), jax.jit(lambda key: init(key, shape, dtype))(key)):
        assert weights.dtype == dtype
        np.testing.assert_array_equal(
            np.asarray(weights, np.float32), np.asarray(desired, np.float32), err_msg=f"{shape} {dtype}"
        )
"""


def test_initialiser():
    """Initial weights are JAX's own truncated normal, bit for bit, also where they are traced: compiled as users have it."""
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    subprocess.run([sys.executable, "-W", "error", "-c", INITIAL], check=True, env=env)


def test_gradients_of_the_residual_stream_are_summed_once():
    """XLA fuses no layer's sums into those of the layers before it, which would take time that grows with depth squared."""
    model = natjax.NatForImageClassification(
        natjax.NatConfig(embed_dim=8, depths=[8], num_heads=[1], kernel_size=3, num_labels=2), rngs=nnx.Rngs(0)
    )
    graphdef, params = nnx.split(model)

    def loss(params, x):
        return nnx.merge(graphdef, params)(x).logits[0, 0]

    text = jax.jit(jax.grad(loss)).lower(params, jnp.zeros((1, 32, 32, 3))).compile().as_text()
    operands = [found.count("%") for found in re.findall(r" fusion\(([^)]*)\)", text)]
    assert len(operands) > 50
    assert max(operands) < 20
