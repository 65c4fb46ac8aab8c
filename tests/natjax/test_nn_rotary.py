"""Rotary positions: against complex numbers in float64, and by what they are for: products that depend on distances alone."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax
from natjax.nn.rotary import rotate

pytestmark = pytest.mark.nnx

MAPS = {1: (9,), 2: (4, 5), 3: (3, 4, 5)}


def by_complex_numbers(x, positions, frequencies):
    """The definition: pair p of axis a, as a complex number, times exp(i * position * frequency)."""
    rank, pairs = len(positions), len(frequencies[0])
    half = rank * pairs
    out = np.array(x, np.float64)
    for axis, p in itertools.product(range(rank), range(pairs)):
        at = axis * pairs + p
        turn = np.exp(1j * np.asarray(positions[axis]) * frequencies[axis][p])
        turn = turn.reshape([-1 if a == axis + 1 else 1 for a in range(x.ndim - 1)])
        z = (x[..., at] + 1j * x[..., half + at]) * turn
        out[..., at], out[..., half + at] = z.real, z.imag
    return out


def everywhere(vector, spatial):
    """One head's channels, the same at every position: [1, *spatial, 1, D]."""
    return jnp.broadcast_to(jnp.asarray(vector, jnp.float32), (1, *spatial, 1, len(vector)))


@pytest.mark.parametrize("rank", MAPS)
def test_rotations_are_products_with_complex_numbers(rank):
    spatial, theta = MAPS[rank], 100.0
    x = np.random.default_rng(0).standard_normal((2, *spatial, 3, 14), np.float32)
    pairs = 14 // (2 * rank)  # 7, 3 and 2: of 14, 12 and 12 channels
    frequencies = [theta ** (-np.arange(pairs) / pairs)] * rank
    desired = by_complex_numbers(x, [np.arange(n) for n in spatial], frequencies)
    y = rotate(jnp.asarray(x), spatial, theta, (False,) * rank)
    np.testing.assert_allclose(y, desired, rtol=0, atol=1e-5)
    rotated = 2 * rank * pairs
    np.testing.assert_array_equal(y[..., rotated:], x[..., rotated:])
    half = rotate(jnp.asarray(x, jnp.bfloat16), spatial, theta, (False,) * rank)
    assert half.dtype == jnp.bfloat16
    exact = by_complex_numbers(
        np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), list(map(np.arange, spatial)), frequencies
    )
    np.testing.assert_array_equal(half, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))  # rounded once


@pytest.mark.parametrize("rank", MAPS)
@pytest.mark.parametrize("periodic", [False, True])
def test_products_depend_on_distances_alone(rank, periodic):
    """Also around a ring, with frequencies of whole turns."""
    spatial = MAPS[rank]
    query, key = np.random.default_rng(1).standard_normal((2, 24))
    q, k = (np.asarray(rotate(everywhere(v, spatial), spatial, 50.0, (periodic,) * rank)) for v in (query, key))
    products = np.einsum("qd,kd->qk", q.reshape(-1, 24), k.reshape(-1, 24))
    places = np.stack(np.unravel_index(np.arange(len(products)), spatial), -1)
    distances = places[None] - places[:, None]
    if periodic:
        distances %= np.array(spatial)
    by_distance = {}
    for distance, product in zip(distances.reshape(-1, rank), products.reshape(-1), strict=True):
        by_distance.setdefault(tuple(distance.tolist()), []).append(product)
    assert max(np.ptp(values) for values in by_distance.values()) < 2e-5
    assert np.std([values[0] for values in by_distance.values()]) > 0.5


@pytest.mark.parametrize(("queries", "keys"), [(12, 4), (4, 12), (12, 12)])
@pytest.mark.parametrize("periodic", [False, True])
def test_positions_of_other_grids_are_counted_in_tokens_of_the_keys(queries, keys, periodic):
    """The centre of a token of one map lies in the middle of the tokens of a finer map that it covers."""
    x = np.random.default_rng(2).standard_normal((1, queries, 1, 8), np.float32)
    position = (np.arange(queries) + 0.5) * keys / queries - 0.5
    assert position.mean() == np.arange(keys).mean()
    frequencies = 10 ** (-np.arange(4) / 4)
    if periodic:
        turn = 2 * np.pi / keys
        frequencies = np.array([max(1, round(f / turn)) for f in frequencies]) * turn
    y = rotate(jnp.asarray(x), (keys,), 10.0, (periodic,))
    np.testing.assert_allclose(y, by_complex_numbers(x, [position], [frequencies]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", MAPS)
def test_in_the_layer(rank):
    """The op on rotated queries and keys; away from borders its output moves with its input."""
    options = {"kernel_size": (3,) * rank, "rpb": False, "kernel_init": nnx.initializers.normal(0.3)}
    plain = natjax.NeighborhoodAttention(24, 2, **options, rngs=nnx.Rngs(0))
    layer = natjax.NeighborhoodAttention(24, 2, **options, rope=True, rope_theta=20.0, rngs=nnx.Rngs(0))
    assert (
        nnx.to_pure_dict(nnx.state(layer)).keys() == nnx.to_pure_dict(nnx.state(plain)).keys()
    )  # rotations learn nothing
    spatial = MAPS[rank]
    x = np.random.default_rng(3).standard_normal((2, *spatial, 24), np.float32)
    q, k, v = (y.reshape(*x.shape[:-1], 2, 12) for y in np.split(x @ np.asarray(layer.qkv.kernel[...]), 3, axis=-1))
    frequencies = [20.0 ** (-np.arange(6 // rank) / (6 // rank))] * rank
    q, k = (np.float32(by_complex_numbers(y, [np.arange(n) for n in spatial], frequencies)) for y in (q, k))
    desired = natjax.neighborhood_attention(q, k, v, kernel_size=3, implementation="reference")
    desired = np.asarray(desired).reshape(x.shape) @ np.asarray(layer.output.kernel[...])
    y = np.asarray(nnx.jit(layer)(x))
    np.testing.assert_allclose(y, desired, rtol=0, atol=1e-5)
    assert np.abs(y - plain(x)).max() > 1e-2
    wide = np.pad(x, ((0, 0), *((4, 4),) * rank, (0, 0)), mode="wrap")
    inner = tuple(slice(2, 2 + n) for n in spatial)
    moved = np.roll(wide, 1, axis=tuple(range(1, rank + 1)))
    at = tuple(slice(3, 3 + n) for n in spatial)
    np.testing.assert_allclose(
        np.asarray(nnx.jit(layer)(wide))[:, *inner], np.asarray(nnx.jit(layer)(moved))[:, *at], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dim": 8, "kernel_size": (3, 3, 3)},
            r"rope needs heads of at least 2 channels per spatial axis, here 6; got heads of 4 \(dim",
        ),
        ({"rope_theta": 1}, "rope_theta must be a number above 1; got 1"),
        ({"rope_theta": "10000"}, "rope_theta must be a number above 1; got '10000'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        natjax.NeighborhoodAttention(
            **{"dim": 24, "num_heads": 2, "kernel_size": 3, "rope": True, "rngs": nnx.Rngs(0), **options}
        )
