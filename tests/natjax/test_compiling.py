"""What XLA is told: options that save memory on a CPU and are none elsewhere, and products of two matrices for linear layers."""

import jax
import jax.numpy as jnp
from flax import nnx

import natjax


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
