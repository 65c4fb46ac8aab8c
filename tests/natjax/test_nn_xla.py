"""What XLA is told: options that save memory on a CPU, products of two matrices for linear layers, and activations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import natjax
from natjax.nn.xla import conv3x3_s2, gelu


def test_less_memory_on_a_cpu():
    """At a published size: of tiny maps most temporaries are attention's own, whatever the order."""
    model = nnx.eval_shape(lambda: natjax.create_model("nat_mini", rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    pixels = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

    def temporary_bytes(options):
        forward = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x).logits, compiler_options=options)
        return forward.lower(params, pixels).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(natjax.compiler_options()) < 0.8 * temporary_bytes({})


def test_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert natjax.compiler_options() == {}


def test_gradient_of_a_kernel_sums_over_one_axis():
    """Not over batch, height and width, which XLA's CPU compiler would first transpose."""
    model = nnx.eval_shape(lambda: natjax.create_model("nat_mini", rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model.nat.encoder.levels[0].layers[0].intermediate)
    tokens = jax.ShapeDtypeStruct((2, 56, 56, 64), jnp.float32)

    def loss(params, tokens):
        return nnx.merge(graphdef, params)(tokens).sum()

    equations = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, tokens).eqns
    products = [e.params["dimension_numbers"][0] for e in equations if e.primitive is jax.lax.dot_general_p]
    assert len(products) == 3  # forward, gradients of the tokens and of the kernel
    assert all(len(axes) == 1 for contracted in products for axes in contracted)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 5), (7, 3), (8, 6)])
def test_convolutions_that_halve_a_map_and_their_gradients(size):
    """Against XLA's own, in float64."""
    window = (2, 2), [(1, 1)] * 2
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 5))
        layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        want, pull = jax.vjp(lambda *both: jax.lax.conv_general_dilated(*both, *window, **layout), x, kernel)
        got, pull_ours = jax.vjp(lambda *both: conv3x3_s2(*both, *window, **layout), x, kernel)
        assert got.shape == want.shape == (2, *((side + 1) // 2 for side in size), 5)
        gradient = rng.standard_normal(got.shape)
        for a, b in zip((got, *pull_ours(gradient)), (want, *pull(gradient)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch", [1, 2])
def test_explicit_meshes_take_any_batch(batch):
    """JAX's own rule for reshapes takes the axis of a batch of 1 to the next one."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Explicit,))
    conv = natjax.create_model("nat_mini", depths=(1,), num_heads=(2,)).nat.embeddings
    graphdef, params = nnx.split(conv)

    def loss(params, x):
        y = nnx.merge(graphdef, params)(x)
        assert jax.typeof(y).sharding.spec == P("data", None, None, None)
        return jnp.sum(y * jnp.arange(y.shape[-1], dtype=y.dtype))

    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((batch, 9, 8, 3)), P("data"))
        found = jax.jit(jax.grad(loss))(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(("backend", "convolutions"), [("cpu", 0), ("gpu", 4)])
def test_models_convolve_by_products_on_a_cpu_alone(monkeypatch, backend, convolutions):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = nnx.eval_shape(
        lambda: natjax.create_model("nat_mini", depths=(1, 1, 1), num_heads=(2, 4, 8), rngs=nnx.Rngs(0))
    )
    graphdef, params = nnx.split(model)
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = str(jax.make_jaxpr(lambda p, x: nnx.merge(graphdef, p)(x).logits)(params, pixels))
    assert program.count("conv_general") == convolutions


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_gelu_and_its_gradient(dtype):
    """Against the formula in float64, to two digits of the argument or of 1: on the left no more is left of 1 + erf."""
    with jax.enable_x64(dtype == "float64"):
        x = jnp.linspace(-12, 12, 4801, dtype=dtype)
        got = jax.jit(gelu)(x), jax.jit(jax.vmap(jax.grad(gelu)))(x)
        assert all(y.dtype == x.dtype for y in got)
        digit = float(jnp.finfo(dtype).eps)
    x = np.asarray(x, np.float64)
    cumulative = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])
    want = x * cumulative, cumulative + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    for a, b in zip(got, want, strict=True):
        assert (np.abs(np.asarray(a, np.float64) - b) <= 2 * digit * np.maximum(1, np.abs(x))).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gelu_of_few_bits_keeps_digits_of_small_results(dtype):
    x = np.arange(-3.0, -1.0, 0.125)
    want = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x]
    np.testing.assert_allclose(jnp.float32(gelu(jnp.asarray(x, dtype))), want, rtol=4 * float(jnp.finfo(dtype).eps))


def test_gelu_keeps_its_argument_alone_on_a_cpu(monkeypatch):
    def kept():
        return [x.shape for x in jax.tree.leaves(jax.vjp(gelu, jnp.ones((3, 5)))[1]) if x.ndim]

    assert kept() == [(3, 5)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert len(kept()) > 1


def test_layers_take_this_gelu():
    layer = nnx.eval_shape(lambda: natjax.create_model("nat_mini", rngs=nnx.Rngs(0))).nat.encoder.levels[0].layers[0]
    graphdef, params = nnx.split(layer)
    tokens = jax.ShapeDtypeStruct((1, 7, 7, 64), jnp.float32)
    used = str(jax.make_jaxpr(lambda p, x: nnx.merge(graphdef, p)(x)[0])(params, tokens))
    assert "erf " in used
    assert "erfc" not in used
