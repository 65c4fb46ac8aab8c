"""The public attention layer in 1-D, 2-D and 3-D, against the op applied to its parameters."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax

pytestmark = pytest.mark.nnx

DIM, HEADS = 8, 2
WINDOWS = {
    "1-D": ((9,), {"kernel_size": 3, "num_spatial_dims": 1, "dilation": 2}),
    "1-D, even, causal": ((8,), {"kernel_size": (4,), "stride": 2, "is_causal": True}),
    "2-D": ((5, 6), {"kernel_size": 3, "dilation": (1, 2)}),
    "2-D, mixed": ((6, 7), {"kernel_size": (2, 3), "stride": (2, 1), "is_causal": (False, True)}),
    "2-D, periodic": ((6, 8), {"kernel_size": (4, 3), "dilation": (1, 2), "stride": (3, 1), "periodic": True}),
    "3-D": (
        (3, 4, 5),
        {"kernel_size": (3, 3, 5), "qkv_bias": False, "rpb": False, "scale": 0.5, "logits_soft_cap": 0.2},
    ),
}


def make(**options):
    layer = natjax.NeighborhoodAttention(
        DIM, HEADS, **{"kernel_size": 3, "kernel_init": nnx.initializers.normal(0.3), "rngs": nnx.Rngs(0), **options}
    )
    if layer.qkv.bias is not None:  # of another value than a new layer's, so that it is seen
        layer.qkv.bias[...] = jnp.linspace(-1, 1, 3 * DIM)
    layer.output.bias[...] = jnp.linspace(-1, 1, DIM)
    return layer


def tokens(*spatial, batch=2):
    return np.random.default_rng(0).standard_normal((batch, *spatial, DIM), np.float32)


def run(layer, x, **options):
    """The layer's output, compiled as a whole: operations one by one would each be compiled, too."""
    return nnx.jit(lambda layer, x: layer(x, **options))(layer, x)


def by_the_op(layer, x, **window):
    """The layer in few words: projections in NumPy around the op."""
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    qkv = x @ params["qkv"]["kernel"] + params["qkv"].get("bias", 0)
    query, key, value = (y.reshape(*x.shape[:-1], HEADS, DIM // HEADS) for y in np.split(qkv, 3, axis=-1))
    rpb = params.get("rpb")
    y = natjax.neighborhood_attention(query, key, value, rpb=rpb, implementation="reference", **window)
    return np.asarray(y).reshape(x.shape) @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("name", WINDOWS)
def test_the_layer_is_the_op_between_two_projections(name):
    spatial, options = WINDOWS[name]
    layer, x = make(**options), tokens(*spatial)
    window = {key: value for key, value in options.items() if key not in ("num_spatial_dims", "rpb", "qkv_bias")}
    desired = by_the_op(layer, x, **window)
    np.testing.assert_allclose(run(layer, x), desired, rtol=0, atol=1e-5)
    y, weights = run(layer, x, output_attentions=True)
    np.testing.assert_allclose(y, desired, rtol=0, atol=1e-5)
    assert weights.shape == (2, HEADS, *spatial, np.prod(layer.kernel_size))
    np.testing.assert_allclose(np.asarray(weights).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("spatial", [(2, 7), (1, 1)])
def test_maps_smaller_than_the_window_are_padded_at_their_end_and_cropped(spatial):
    layer, x = make(kernel_size=3, dilation=2), tokens(*spatial)
    padded = np.pad(x, ((0, 0), *((0, max(0, 6 - n)) for n in spatial), (0, 0)))
    desired = by_the_op(layer, padded, kernel_size=3, dilation=2)[:, : spatial[0], : spatial[1]]
    np.testing.assert_allclose(layer(x), desired, rtol=0, atol=1e-5)
    _, weights = run(layer, x, output_attentions=True)
    assert weights.shape == (2, HEADS, 6, max(6, spatial[1]), 9)


def test_under_jit_and_grad_every_parameter_learns():
    layer, x = make(kernel_size=(3,)), tokens(7)

    @nnx.jit
    def gradient(layer, x):
        return nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer)

    grads = nnx.to_pure_dict(nnx.state(gradient(layer, x)))  # a state, or in tree mode a layer of gradients
    assert jax.tree.map(jnp.shape, grads) == {
        "qkv": {"kernel": (DIM, 3 * DIM), "bias": (3 * DIM,)},
        "rpb": (HEADS, 5),
        "output": {"kernel": (DIM, DIM), "bias": (DIM,)},
    }
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(grads))
    step = 1e-3
    up, down = (layer.rpb[...] + sign * step * grads["rpb"] for sign in (1, -1))
    values = []
    for moved in (up, down):
        layer.rpb[...] = moved
        values.append(float((layer(x) ** 2).sum()))
    slope = float((grads["rpb"] ** 2).sum())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_queries_and_keys_are_normalised_head_by_head(kind):
    plain, layer, x = make(kernel_size=(3,)), make(kernel_size=(3,), qk_norm=kind), tokens(7)
    params = nnx.to_pure_dict(nnx.state(layer))
    norm = {"scale": (DIM // HEADS,)} if kind == "rms_norm" else {"scale": (DIM // HEADS,), "bias": (DIM // HEADS,)}
    assert jax.tree.map(jnp.shape, (params.pop("q_norm"), params.pop("k_norm"))) == (norm, norm)
    jax.tree.map(np.testing.assert_array_equal, params, nnx.to_pure_dict(nnx.state(plain)))  # all else is as without
    layer.q_norm.scale[...], layer.k_norm.scale[...] = jnp.linspace(1, 2, 4), jnp.linspace(3, 1, 4)

    query, key, value = (y.reshape(2, 7, HEADS, 4) for y in np.split(np.asarray(layer.qkv(x)), 3, axis=-1))
    normed = []
    for y, scale in ((query, np.linspace(1, 2, 4)), (key, np.linspace(3, 1, 4))):
        y = y - y.mean(-1, keepdims=True) if kind == "layer_norm" else y
        normed.append(np.float32(y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * scale))
    desired = natjax.neighborhood_attention(*normed, value, kernel_size=3, rpb=layer.rpb, implementation="reference")
    desired = layer.output(desired.reshape(2, 7, DIM))
    np.testing.assert_allclose(run(layer, x), desired, rtol=0, atol=1e-5)
    grads = nnx.to_pure_dict(nnx.state(nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer)))
    assert np.abs(grads["q_norm"]["scale"]).min() > 1e-3
    assert np.abs(grads["k_norm"]["scale"]).min() > 1e-3
    with jax.numpy_dtype_promotion("standard"):  # Flax's own norms promote half precision to float32
        half = make(kernel_size=(3,), qk_norm=kind, dtype=jnp.bfloat16)(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_training_view_drops_weights_and_outputs():
    layer, x = make(kernel_size=(3,), attention_dropout=0.5), tokens(9)
    train = nnx.view(layer, deterministic=False)
    key = jax.random.key(1)
    y, weights = train(x, rngs=key, output_attentions=True)
    assert 0.3 < np.mean(np.asarray(weights) == 0) < 0.7
    np.testing.assert_array_equal(y, train(x, rngs=nnx.Rngs(dropout=key)))
    assert np.abs(y - train(x, rngs=jax.random.key(2))).max() > 1e-3
    np.testing.assert_array_equal(layer(x), make(kernel_size=(3,))(x))  # the layer itself stays in evaluation mode
    with pytest.raises(ValueError, match="needs random numbers"):
        train(x)
    dropped = nnx.view(make(kernel_size=(3,), projection_dropout=0.5), deterministic=False)(x, rngs=key)
    assert 0.2 < np.mean(np.asarray(dropped) == 0) < 0.8


def test_bfloat16_computes_with_float32_parameters():
    x = tokens(9)
    y = make(kernel_size=(3,), dtype=jnp.bfloat16)(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(make(dtype=jnp.bfloat16)))} == {jnp.dtype("float32")}
    desired = make(kernel_size=(3,))(x)
    np.testing.assert_allclose(y.astype(jnp.float32), desired, rtol=0, atol=0.03 * np.abs(desired).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 9}, "dim must be a multiple of num_heads; got dim=9 and num_heads=2"),
        ({"num_heads": 0}, "num_heads must be an integer of at least 1; got 0"),
        ({"kernel_size": 1}, "kernel_size must consist of integers of at least 2, or -1 for all of an axis; got 1"),
        ({"kernel_size": (3, 3, 3, 3)}, r"\(the length of kernel_size\) must be 1, 2 or 3; got 4"),
        ({"kernel_size": (3, 3), "num_spatial_dims": 1}, r"one per spatial axis \(1\); got \(3, 3\)"),
        ({"dilation": (1, 1, 1)}, r"dilation must be one integer or one per spatial axis \(2\); got \(1, 1, 1\)"),
        ({"dilation": 0}, "dilation must consist of integers of at least 1; got 0"),
        ({"stride": 4}, "stride must not exceed kernel_size; along spatial axis 0 got stride 4 > kernel_size 3"),
        ({"is_causal": 1}, r"is_causal must be one bool or one per spatial axis \(2\); got 1"),
        ({"qk_norm": True}, "qk_norm must be None or one of 'layer_norm', 'rms_norm'; got True"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\); got 1.0"),
        ({"projection_dropout": -0.1}, r"projection_dropout must be in \[0, 1\); got -0.1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        natjax.NeighborhoodAttention(
            **{"dim": DIM, "num_heads": HEADS, "kernel_size": 3, "rngs": nnx.Rngs(0), **arguments}
        )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (tokens(5), r"\[batch, 2 spatial axes, 8\]; got float32 of shape \(2, 5, 8\)"),
        (tokens(5, 5)[..., :6], r"got float32 of shape \(2, 5, 5, 6\)"),
        (np.zeros((1, 5, 5, DIM), np.int32), "must be floating point.*got int32"),
    ],
)
def test_inputs_that_do_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        make()(x)


def test_a_named_implementation_is_not_replaced():
    layer = make(implementation="triton")
    with pytest.raises(NotImplementedError, match="neither returns attention weights nor drops them"):
        layer(tokens(5, 5), output_attentions=True)
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        make(implementation="cuda")(tokens(5, 5))


def test_numbers_of_numpy_and_variables():
    """Wherever Python numbers and arrays go; what is no array is refused."""
    options = {"kernel_size": (3, 5), "dilation": (2, 1), "scale": 0.5, "attention_dropout": 0.25}
    plain = make(**options)
    numpy = {k: np.float32(x) if isinstance(x, float) else np.array(x) for k, x in options.items()}
    layer = natjax.NeighborhoodAttention(np.int64(DIM), np.uint8(HEADS), **numpy, rngs=nnx.Rngs(0))
    for name in ("dim", "num_heads", "kernel_size", "dilation", "scale", "attention_dropout"):
        got, expected = getattr(layer, name), getattr(plain, name)
        assert (type(got), got) == (type(expected), expected)
    x = jnp.asarray(tokens(6, 7))
    np.testing.assert_array_equal(run(plain, nnx.Param(x)), run(plain, x))
    with pytest.raises(TypeError, match=r"x must be an array of JAX or NumPy; got list\. Pass jnp.asarray\(x\)"):
        plain(x.tolist())


def test_the_layer_as_a_module_of_linen():
    layer, x = make(kernel_size=(3,), dilation=2), tokens(7)
    module = natjax.to_linen(natjax.NeighborhoodAttention, DIM, HEADS, kernel_size=(3,), dilation=2)
    variables = {"params": nnx.to_pure_dict(nnx.state(layer, nnx.Param))}
    assert jax.tree.map(jnp.shape, module.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(module.apply(variables, x), layer(x), rtol=0, atol=1e-6)


def test_symbolic_maps_are_refused():
    x = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, h, 7, {DIM}"), jnp.float32)
    with pytest.raises(ValueError, match="x must have a known size along every axis but the batch"):
        jax.export.export(jax.jit(make()))(x)
