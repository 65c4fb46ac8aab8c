"""Options of compilation: on a CPU they halve the memory of a training step, elsewhere there are none."""

import jax
import jax.numpy as jnp
from flax import nnx

import natjax


def test_less_memory_on_a_cpu():
    config = natjax.get_config("nat_mini", depths=(2, 2, 2, 2), num_labels=10)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: natjax.NatForImageClassification(config, rngs=nnx.Rngs(0))))
    pixels, labels = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)

    def gradients(params, pixels, labels):
        return jax.grad(lambda p: nnx.merge(graphdef, p)(pixels, labels=labels).loss)(params)

    def temporary_bytes(options):
        compiled = jax.jit(gradients, compiler_options=options).lower(params, pixels, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(natjax.compiler_options()) < 0.8 * temporary_bytes({})


def test_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert natjax.compiler_options() == {}
