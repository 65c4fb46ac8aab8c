"""What the layer takes beside a map: another map, tokens that all see, masks; and shared heads of keys, rings, whole axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import natjax

pytestmark = pytest.mark.nnx

DIM, HEADS = 24, 4
EVERYTHING = {
    "kernel_size": (2, 3),
    "dilation": (1, 2),
    "is_causal": (True, False),
    "periodic": (False, True),
    "num_kv_heads": 2,
    "rope": True,
    "qk_norm": "rms_norm",
}


def make(kernel_size, **options):
    layer = natjax.NeighborhoodAttention(
        DIM,
        HEADS,
        kernel_size=kernel_size,
        **{"kernel_init": nnx.initializers.normal(0.3), "rngs": nnx.Rngs(0), **options},
    )
    layer.qkv.bias[...] = jnp.linspace(-1, 1, layer.qkv.bias.shape[0])
    layer.output.bias[...] = jnp.linspace(-1, 1, DIM)
    return layer


def tokens(*sides, seed=0):
    return np.random.default_rng(seed).standard_normal((2, *sides, DIM), np.float32)


def run(layer, *arrays, **options):
    names = [name for name, x in options.items() if isinstance(x, np.ndarray)]
    named = {name: options.pop(name) for name in names}
    return nnx.jit(lambda layer, arrays, named: layer(*arrays, **named, **options))(layer, arrays, named)


def project(layer, x, columns):
    """A part of the fused projection in NumPy, as heads."""
    y = x @ np.asarray(layer.qkv.kernel[...])[:, columns] + np.asarray(layer.qkv.bias[...])[columns]
    return y.reshape(*x.shape[:-1], -1, DIM // HEADS)


def parts(layer):
    width = layer.num_kv_heads * DIM // HEADS
    return slice(0, DIM), slice(DIM, DIM + width), slice(DIM + width, None)


def finish(layer, y):
    y = np.asarray(y)
    return y.reshape(*y.shape[:-2], DIM) @ np.asarray(layer.output.kernel[...]) + np.asarray(layer.output.bias[...])


def dense(query, keys, values):
    """Attention of all to all: [B, tokens, N, D]."""
    return jax.nn.dot_product_attention(
        *(jnp.asarray(y.reshape(y.shape[0], -1, *y.shape[-2:])) for y in (query, keys, values))
    )


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_fewer_heads_of_keys_are_shared_by_heads_in_a_row(num_kv_heads):
    layer, plain = make(3, num_kv_heads=num_kv_heads), make(3)
    shapes = {"kernel": (DIM, DIM + 2 * num_kv_heads * 6), "bias": (DIM + 2 * num_kv_heads * 6,)}
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer.qkv))) == shapes
    for name in ("kernel", "bias"):  # the same, with every head of keys and values written out
        own = np.asarray(getattr(layer.qkv, name)[...])
        written = [own[..., part].reshape(*own.shape[:-1], -1, 6) for part in parts(layer)]
        written[1:] = (np.repeat(y, HEADS // num_kv_heads, axis=-2) for y in written[1:])
        getattr(plain.qkv, name)[...] = jnp.concatenate([y.reshape(*own.shape[:-1], DIM) for y in written], axis=-1)
    plain.rpb[...], plain.output.kernel[...] = layer.rpb[...], layer.output.kernel[...]
    x = tokens(4, 5)
    np.testing.assert_allclose(run(layer, x), run(plain, x), rtol=0, atol=1e-5)
    weights, desired = (run(y, x, output_attentions=True)[1] for y in (layer, plain))
    np.testing.assert_allclose(weights, desired, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rope", [False, True])
def test_on_a_ring_outputs_turn_with_the_inputs(rope):
    layer, x = make((4, 3), periodic=(True, False), stride=(2, 1), rope=rope), tokens(8, 5)
    y = np.asarray(run(layer, x))
    np.testing.assert_allclose(run(layer, np.roll(x, 2, 1)), np.roll(y, 2, 1), rtol=0, atol=1e-5)
    assert np.abs(run(layer, np.roll(x, 2, 2)) - np.roll(y, 2, 2)).max() > 0.1  # the other axis has ends
    plain = make((4, 3), stride=(2, 1), rope=rope)
    assert np.abs(run(plain, x) - y).max() > 0.1


def test_all_of_an_axis_whatever_its_length():
    layer = make((-1, -1), rpb=False)
    for sides in ((3, 4), (5, 2)):
        x = tokens(*sides)
        y = dense(*(project(layer, x, part) for part in parts(layer)))
        np.testing.assert_allclose(run(layer, x), finish(layer, y).reshape(x.shape), rtol=0, atol=1e-5)
    mixed, x = make((-1, 3), rpb=False), tokens(5, 4)
    np.testing.assert_allclose(run(mixed, x), run(make((5, 3), rpb=False), x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [None, "layer_norm"])
def test_additional_tokens_are_keys_like_others(qk_norm):
    """With windows of the whole map: attention to map and tokens together."""
    layer, x, more = make((4, 5), rpb=False, qk_norm=qk_norm), tokens(4, 5), tokens(3, seed=1)
    query, key, value = (project(layer, x, part) for part in parts(layer))
    more_keys, more_values = (project(layer, more, part) for part in parts(layer)[1:])
    keys = np.concatenate([key.reshape(2, 20, HEADS, 6), more_keys], axis=1)
    values = np.concatenate([value.reshape(2, 20, HEADS, 6), more_values], axis=1)
    if qk_norm:
        query, keys = np.asarray(layer.q_norm(query)), np.asarray(layer.k_norm(keys))
    desired = finish(layer, dense(query, keys, values)).reshape(x.shape)
    np.testing.assert_allclose(run(layer, x, additional_tokens=more), desired, rtol=0, atol=2e-5)
    y, weights = run(layer, x, additional_tokens=more, output_attentions=True)
    np.testing.assert_allclose(y, desired, rtol=0, atol=2e-5)
    assert weights.shape == (2, HEADS, 4, 5, 23)
    np.testing.assert_array_equal(run(layer, x, additional_tokens=more[:, :0]), run(layer, x))


def test_additional_tokens_have_no_position():
    layer, x, more = make((2,), rope=True, rpb=False), tokens(1), tokens(3, seed=1)
    # A map of one token at position 0, which the layer pads: rotated by nothing, as are additional tokens.
    mask = np.ones((2, 1), bool)
    plain = make((2,), rpb=False)
    y = run(layer, x, additional_tokens=more, key_mask=mask)
    np.testing.assert_allclose(y, run(plain, x, additional_tokens=more, key_mask=mask), rtol=0, atol=1e-5)


def test_what_the_mask_hides_is_seen_by_none():
    layer, x = make(3, num_kv_heads=2), tokens(4, 6)
    mask = np.ones((2, 4, 6), bool)
    np.testing.assert_allclose(run(layer, x, key_mask=mask), run(layer, x), rtol=0, atol=1e-5)
    mask[0, 1:3, 2:] = False
    mask[1] = False
    other = np.where(mask[..., None], x, tokens(4, 6, seed=1))
    y, z = (np.asarray(run(layer, y, key_mask=mask)) for y in (x, other))
    np.testing.assert_allclose(y[mask], z[mask], rtol=0, atol=1e-5)
    assert np.abs(np.asarray(run(layer, x))[mask] - y[mask]).max() > 0.1
    np.testing.assert_array_equal(y[1], np.broadcast_to(layer.output.bias[...], y[1].shape))  # none is left to see
    np.testing.assert_allclose(run(layer, x, np.where(mask[..., None], x, np.nan), key_mask=mask), y, rtol=0, atol=1e-5)

    def loss(x, kv):
        return (layer(x, kv, key_mask=mask) ** 2).sum()

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(x), jnp.asarray(other))
    assert np.isfinite(grads[0]).all()
    assert (np.asarray(grads[1])[~mask] == 0).all()
    assert np.abs(np.asarray(grads[1])[mask]).max() > 0.1


def test_with_a_mask_padding_is_hidden():
    """The map is smaller than its windows: every token sees all that there are, and without a mask the padding, too."""
    layer, whole, x = make((3, 4), rpb=False), make((-1, -1), rpb=False), tokens(2, 3)
    desired = run(whole, x)
    np.testing.assert_allclose(run(layer, x, key_mask=np.ones((2, 2, 3), bool)), desired, rtol=0, atol=1e-5)
    assert np.abs(run(layer, x) - desired).max() > 0.1


GRIDS = {
    "as many": ((5, 6), (5, 6)),
    "twice as many": ((10, 12), (5, 6)),
    "a third": ((2, 3), (6, 9)),
    "more and fewer": ((15, 3), (5, 6)),
}


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_queries_of_another_map(grid, rope):
    queries, keys = GRIDS[grid]
    layer = make((3, 4), rope=rope, num_kv_heads=2)
    x, y = tokens(*queries), tokens(*keys, seed=1)
    query, key, value = project(layer, x, parts(layer)[0]), *(project(layer, y, part) for part in parts(layer)[1:])
    if rope:
        query, key = (natjax.nn.rotary.rotate(jnp.asarray(z), keys, 100.0, (False, False)) for z in (query, key))
    desired = natjax.neighborhood_attention(
        query, key, value, kernel_size=(3, 4), rpb=layer.rpb, implementation="reference"
    )
    z, weights = run(layer, x, y, output_attentions=True)
    for got in (run(layer, x, y), z):
        np.testing.assert_allclose(got, finish(layer, desired), rtol=0, atol=2e-5)
    assert weights.shape == (2, HEADS, *queries, 12)
    if queries == keys:
        np.testing.assert_allclose(run(layer, x, x), run(layer, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "keys", "padded_queries", "padded_keys"),
    [
        ((4, 8), (2, 2), (6, 24), (3, 6)),
        ((1, 2), (2, 8), (2, 2), (4, 8)),  # as many keys per query as before, so more than the window of 3
        ((2, 1), (1, 2), (6, 3), (3, 6)),
    ],
)
def test_small_maps_of_keys_are_padded_and_so_are_their_queries(queries, keys, padded_queries, padded_keys):
    layer, x, y = make(3, dilation=(1, 2), rope=True), tokens(*queries), tokens(*keys, seed=1)
    padded = np.zeros((2, *padded_queries, DIM), np.float32), np.zeros((2, *padded_keys, DIM), np.float32)
    for small, large in zip((x, y), padded, strict=True):
        large[:, : small.shape[1], : small.shape[2]] = small
    desired = np.asarray(run(layer, *padded))[:, : queries[0], : queries[1]]
    np.testing.assert_allclose(run(layer, x, y), desired, rtol=0, atol=1e-5)
    mask = np.zeros((2, *padded_keys), bool)
    mask[:, : keys[0], : keys[1]] = True
    desired = np.asarray(run(layer, *padded, key_mask=mask))[:, : queries[0], : queries[1]]
    np.testing.assert_allclose(run(layer, x, y, key_mask=np.ones((2, *keys), bool)), desired, rtol=0, atol=1e-5)


def test_everything_at_once_learns_and_is_a_module_of_linen():
    layer, x, y, more = make(**EVERYTHING), tokens(6, 6), tokens(3, 12, seed=1), tokens(2, seed=2)
    options = {"key_mask": np.random.default_rng(3).random((2, 3, 12)) < 0.7, "additional_tokens": more}
    z = run(layer, x, y, **options)

    @nnx.jit
    def gradient(layer, x, y, options):
        return nnx.grad(lambda layer: (layer(x, y, **options) ** 2).sum())(layer)

    grads = nnx.to_pure_dict(nnx.state(gradient(layer, x, y, options)))
    assert set(grads) == {"qkv", "rpb", "output", "q_norm", "k_norm"}
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(grads))

    module = natjax.to_linen(natjax.NeighborhoodAttention, DIM, HEADS, **EVERYTHING)
    variables = {"params": nnx.to_pure_dict(nnx.state(layer, nnx.Param))}
    shapes = jax.tree.map(jnp.shape, module.init(jax.random.key(0), x))
    assert shapes == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(module.apply(variables, x, y, **options), z, rtol=0, atol=1e-5)


def test_forward_mode_is_the_transpose_of_reverse_mode():
    layer, x, more = make(**EVERYTHING, implementation="xla_autodiff"), tokens(4, 6), tokens(2, seed=1)
    tangent, cotangent = tokens(4, 6, seed=2), tokens(4, 6, seed=3)

    @jax.jit
    def both(x, tangent, cotangent):
        y, forward = jax.jvp(lambda x: layer(x, additional_tokens=more), (x,), (tangent,))
        (backward,) = jax.vjp(lambda x: layer(x, additional_tokens=more), x)[1](cotangent)
        return y, (forward * cotangent).sum(), (backward * tangent).sum()

    y, forward, backward = both(x, tangent, cotangent)
    assert abs(forward) > 1
    assert float(forward) == pytest.approx(float(backward), rel=1e-4)
    np.testing.assert_allclose(y, run(make(**EVERYTHING), x, additional_tokens=more), rtol=0, atol=1e-5)


def test_in_half_precision_nothing_is_promoted():
    options = {**EVERYTHING, "qk_norm": None}  # Flax's norms promote within
    x, y, more = tokens(6, 6), tokens(3, 12, seed=1), tokens(2, seed=2)
    desired = run(make(**options), x, y, additional_tokens=more)
    half = make(**options, dtype=jnp.bfloat16)
    got = half(*(jnp.asarray(z, jnp.bfloat16) for z in (x, y)), additional_tokens=jnp.asarray(more, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), desired, rtol=0, atol=0.04 * np.abs(desired).max())


def test_training_drops_additional_tokens_like_others():
    layer, x, more = make(**EVERYTHING, attention_dropout=0.5), tokens(4, 6), tokens(50, seed=1)
    train, mask = nnx.view(layer, deterministic=False), np.ones((2, 4, 6), bool)
    mask[0, :2] = False
    _, weights = train(x, additional_tokens=more, key_mask=mask, rngs=jax.random.key(1), output_attentions=True)
    assert weights.shape == (2, HEADS, 4, 6, 6 + 50)
    assert 0.4 < np.mean(np.asarray(weights)[..., 6:] == 0) < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads; got 3 and 4"),
        ({"num_kv_heads": 0}, "num_kv_heads must be an integer of at least 1; got 0"),
        (
            {"kernel_size": (-1, 3)},
            r"rpb needs a known kernel_size along every axis; got \(-1, 3\). Pass rpb=False",
        ),
        ({"periodic": 1}, r"periodic must be one bool or one per spatial axis \(2\); got 1"),
        ({"periodic": True, "is_causal": (False, True)}, "causal and periodic.*spatial axis 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"kernel_size": 3, **options})


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        (
            {},
            {"kv": tokens(5)},
            r"kv must be floating point \[2, 2 spatial axes, 24\]; got float32 of shape \(2, 5, 24\)",
        ),
        ({}, {"kv": tokens(6, 6)[:1]}, r"kv must be.*\[2, .*got float32 of shape \(1, 6, 6, 24\)"),
        ({}, {"kv": tokens(6, 4)}, "spatial axis 1 got 6 queries and 4 keys"),
        ({}, {"kv": tokens(6, 0)}, r"kv must have tokens; got shapes .*\(2, 6, 0, 24\)"),
        (
            {},
            {"key_mask": np.ones((2, 6, 5), bool)},
            r"key_mask must be bool.*\(2, 6, 6\); got bool of shape \(2, 6, 5\)",
        ),
        ({}, {"key_mask": np.ones((2, 6, 6), np.int32)}, "key_mask must be bool.*got int32"),
        (
            {},
            {"kv": tokens(3, 3), "key_mask": np.ones((2, 6, 6), bool)},
            r"here \(2, 3, 3\); got bool of shape \(2, 6, 6\)",
        ),
        ({}, {"additional_tokens": tokens(2, 2)}, r"additional_tokens must be floating point \[2, tokens, 24\]; got"),
        ({"periodic": (False, True), "kernel_size": 7}, {}, r"periodic axis cannot be padded.*axis 1, 7 \* 1 = 7 > 6"),
        (
            {"kernel_size": (3, -1), "dilation": 4, "rpb": False},
            {},
            "kernel_size -1 needs a dilation that divides the axis",
        ),
    ],
)
def test_inputs_that_do_not_fit(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        make(**{"kernel_size": 3, **options})(tokens(6, 6), **inputs)
