"""Options of compilation: on a CPU they save memory, elsewhere there are none."""

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
