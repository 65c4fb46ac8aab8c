"""Derivatives of every mode and order by "xla_autodiff", and what "xla" gives of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax_kernels import neighborhood_attention

ARGUMENTS = (0, 1, 2, 3)


@pytest.fixture
def drawn(x64):
    """Query, key, value and rpb, and a direction for each."""
    rng = np.random.default_rng(0)
    shapes = [(2, 6, 7, 2, 4)] * 3 + [(2, 5, 5)]
    return [tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes) for _ in range(2)]


def loss(implementation, query, key, value, rpb):
    out, lse = neighborhood_attention(
        query, key, value, rpb=rpb, kernel_size=3, return_lse=True, implementation=implementation
    )
    return (out**3).sum() + (lse**2).sum()


forward = functools.partial(loss, "xla_autodiff")
backward = functools.partial(loss, "xla")


def along(gradients, direction):
    return sum(jnp.vdot(a, b) for a, b in zip(gradients, direction, strict=True))


def assert_alike(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), list(a), list(b))


def test_jvp_and_linearize_are_the_gradient_along_a_direction(drawn):
    arrays, direction = drawn
    expected = along(jax.grad(backward, ARGUMENTS)(*arrays), direction)
    np.testing.assert_allclose(jax.jvp(forward, arrays, direction)[1], expected, rtol=1e-12)
    np.testing.assert_allclose(jax.linearize(forward, *arrays)[1](*direction), expected, rtol=1e-12)


def test_second_derivatives_in_all_modes(drawn):
    arrays, direction = drawn
    gradient = jax.grad(forward, ARGUMENTS)
    forward_over_reverse = jax.jvp(gradient, arrays, direction)[1]
    reverse_over_forward = jax.grad(lambda *x: jax.jvp(forward, x, direction)[1], ARGUMENTS)(*arrays)
    reverse_over_reverse = jax.grad(lambda *x: along(jax.grad(backward, ARGUMENTS)(*x), direction), ARGUMENTS)(*arrays)
    assert_alike(forward_over_reverse, reverse_over_forward)
    assert_alike(forward_over_reverse, reverse_over_reverse)
    hessian = jax.hessian(lambda rpb: forward(*arrays[:3], rpb))(arrays[3])
    of_bias = jax.jvp(lambda rpb: jax.grad(forward, 3)(*arrays[:3], rpb), arrays[3:], direction[3:])[1]
    np.testing.assert_allclose(jnp.tensordot(hessian, direction[3], 3), of_bias, atol=1e-10)


def test_vmap_of_all_modes(drawn):
    (query, *rest), direction = drawn
    queries = jnp.stack([query, query + 1, -query])
    for of_one in (
        lambda q: jax.jvp(forward, (q, *rest), direction)[1],
        lambda q: jax.grad(lambda *x: jax.jvp(forward, x, direction)[1])(q, *rest),
        lambda q: jax.jvp(jax.grad(forward), (q, *rest), direction)[1],
    ):
        np.testing.assert_allclose(
            jax.jit(jax.vmap(of_one))(queries), jnp.stack([of_one(q) for q in queries]), atol=1e-10
        )


def test_a_map_of_several_steps(drawn, monkeypatch):
    """Whose tiles are worked on one row after the other."""
    from natjax_kernels.xla import tiles

    arrays, direction = drawn
    whole = jax.jvp(forward, arrays, direction)[1], jax.grad(forward, ARGUMENTS)(*arrays)
    monkeypatch.setattr(tiles, "scores_per_step", lambda: 1)
    assert_alike([whole[0]], [jax.jvp(forward, arrays, direction)[1]])
    assert_alike(whole[1], jax.grad(forward, ARGUMENTS)(*arrays))


def test_a_model_within_default_implementation():
    config = natjax.NatConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 4], kernel_size=3, num_labels=3)
    graph, params = nnx.split(natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)))
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)

    def logits(pixels):
        return nnx.merge(graph, params)(pixels).logits.sum()

    with natjax.default_implementation("xla_autodiff"):
        tangent = jax.jvp(logits, (pixels,), (pixels,))[1]
    np.testing.assert_allclose(tangent, jnp.vdot(jax.grad(logits)(pixels), pixels), rtol=1e-4)
