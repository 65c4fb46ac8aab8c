"""What the op can do, one small function per capability. docs/op.md shows and explains each of them.

python examples/op.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import natjax

close = functools.partial(np.allclose, rtol=1e-4, atol=1e-5)


def op(**settings):
    """Returns the op with these settings, compiled: without jit every call is many times slower."""
    return jax.jit(functools.partial(natjax.neighborhood_attention, **settings))


def tokens(seed, *shape):
    """Returns random numbers in place of a model's queries, keys, values and biases."""
    return jax.random.normal(jax.random.key(seed), shape)


def weather() -> None:
    """Windows that wrap around a ring of longitudes."""
    q, k, v = (tokens(i, 1, 12, 24, 2, 8) for i in range(3))  # [batch, latitude, longitude, heads, channels]
    rpb = tokens(3, 2, 9, 9)
    attend = op(kernel_size=5, periodic=(False, True))
    turned = attend(*(jnp.roll(x, 7, axis=2) for x in (q, k, v)), rpb=rpb)
    print("turning the globe turns the output:", close(turned, jnp.roll(attend(q, k, v, rpb=rpb), 7, axis=2)))


def video() -> None:
    """A video whose tokens also see a text."""
    q, k, v = (tokens(i, 1, 4, 8, 8, 2, 8) for i in range(3))  # [batch, time, height, width, heads, channels]
    text_k, text_v = (tokens(i, 1, 6, 2, 8) for i in (3, 4))  # [batch, tokens of text, heads, channels]
    # All frames but later ones, and 5 x 5 tokens of each.
    attend = op(kernel_size=(-1, 5, 5), is_causal=(True, False, False))
    out = attend(q, k, v, additional_keys=text_k, additional_values=text_v)
    other = attend(q, k, v, additional_keys=text_k, additional_values=text_v + 1)
    moved = jnp.any(out != other, axis=(-2, -1))
    print("tokens that see the text:", int(moved.sum()), "of", moved.size)


def upsample() -> None:
    """Fine queries that attend to a coarse map."""
    fine, coarse = tokens(0, 1, 32, 32, 2, 8), tokens(1, 1, 8, 8, 2, 8)
    out = op(kernel_size=3)(fine, coarse, coarse)
    print("from", coarse.shape[1:3], "to", out.shape[1:3])


def downsample() -> None:
    """Coarse queries that attend to a fine map."""
    x = tokens(0, 1, 16, 16, 2, 8)
    centers = x[:, 1::2, 1::2]  # or pooled tokens, or learned ones
    attend = op(kernel_size=5)
    coarse, every = attend(centers, x, x), attend(x, x, x)
    print("as attention of every token, at the centers:", close(coarse, every[:, 1::2, 1::2]))


def padded_batch() -> None:
    """Images of mixed sizes in one batch."""
    q, k, v = (tokens(i, 2, 16, 16, 2, 8) for i in range(3))
    sizes = jnp.array([[16, 16], [12, 10]])  # height and width of each image, which starts at [0, 0]
    attend = op(kernel_size=5)
    out = attend(q, k, v, sizes=sizes)
    alone = attend(*(x[1:, :12, :10] for x in (q, k, v)))
    print("the smaller image gives what it gives alone:", close(out[1:, :12, :10], alone))


def missing_pixels() -> None:
    """Keys that no query may see."""
    q, k, v = (tokens(i, 1, 16, 16, 2, 8) for i in range(3))
    mask = jnp.ones((1, 16, 16), bool).at[:, 4:9, 4:9].set(False)  # a cloud
    k, v = (jnp.where(mask[..., None, None], x, jnp.nan) for x in (k, v))
    out, lse = op(kernel_size=3, return_lse=True)(q, k, v, key_mask=mask)
    print(
        "no NaN gets out:",
        bool(jnp.isfinite(out).all()),
        "- queries that see nothing:",
        int((lse[..., 0] == -jnp.inf).sum()),
    )


def merged_windows() -> None:
    """Two windows in one softmax."""
    q, k, v = (tokens(i, 1, 24, 24, 2, 8) for i in range(3))
    near, near_lse = op(kernel_size=3, return_lse=True)(q, k, v)
    far, far_lse = op(kernel_size=3, dilation=8, return_lse=True)(q, k, v)
    out, lse = natjax.merge_attentions([near, far], [near_lse, far_lse])
    share = jnp.exp(near_lse - lse)[..., None]  # of the near window in the weights
    print("each window has its share:", close(out, share * near + (1 - share) * far))


def grouped_heads() -> None:
    """Fewer heads of keys and values than of queries."""
    q, k, v = tokens(0, 1, 16, 16, 8, 16), tokens(1, 1, 16, 16, 2, 16), tokens(2, 1, 16, 16, 2, 32)
    attend = op(kernel_size=7)
    repeated = attend(q, *(jnp.repeat(x, 4, axis=-2) for x in (k, v)))  # what grouped heads spare
    print("as with repeated keys and values:", close(attend(q, k, v), repeated))


def many_devices() -> None:
    """A map whose rows are split over all devices."""
    q, k, v = (tokens(i, 1, 64, 32, 2, 8) for i in range(3))
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    rows = jax.NamedSharding(mesh, jax.P(None, "rows"))
    attend = op(kernel_size=7, dilation=2)
    print("as on one device:", close(attend(*jax.device_put((q, k, v), rows)), attend(q, k, v)))


def capped_logits() -> None:
    """Logits that stay small however large queries and keys get."""
    q, k, v = (100 * tokens(i, 1, 16, 16, 2, 8) for i in range(3))
    _, plain = op(kernel_size=3, return_lse=True)(q, k, v)
    _, capped = op(kernel_size=3, logits_soft_cap=20.0, return_lse=True)(q, k, v)
    print(f"largest log-sum-exp: {plain.max():.0f}, and capped {capped.max():.1f}")


def forward_mode() -> None:
    """Derivatives along a direction, and second ones."""
    q, k, v, rpb = *(tokens(i, 1, 12, 1, 4) for i in range(3)), tokens(3, 1, 5)
    attend = op(kernel_size=3, implementation="xla_autodiff")

    def loss(rpb):
        return jnp.sum(attend(q, k, v, rpb=rpb) ** 2)

    direction = jnp.arange(5.0)[None]
    _, slope = jax.jvp(loss, (rpb,), (direction,))
    _, linear = jax.linearize(loss, rpb)  # the same, for any number of directions
    gradient, hessian = jax.grad(loss)(rpb), jax.hessian(loss)(rpb).reshape(5, 5)
    agree = close(slope, jnp.vdot(gradient, direction)) and close(slope, linear(direction))
    print("both modes agree:", agree, "- the Hessian is symmetric:", close(hessian, hessian.T))


def neighbors() -> None:
    """Which keys a query sees."""
    print("row 2, column 0 of a map of 4 x 4:", natjax.neighbors((4, 4), 3)[2, 0].tolist())
    print("token 0 of a ring of 8:", natjax.neighbors((8,), 3, periodic=True)[0].tolist())


def attention_weights() -> None:
    """How much a query sees of each key."""
    q, k, v = (tokens(i, 1, 8, 8, 2, 8) for i in range(3))
    attend = jax.jit(functools.partial(natjax.neighborhood_attention_with_weights, kernel_size=3))
    out, weights = attend(q, k, v)  # weights: [batch, heads, 8, 8, 9]
    values = v.reshape(1, 64, 2, 8)[:, natjax.neighbors((8, 8), 3)]  # [batch, 8, 8, 9, heads, channels]
    print("the output by hand:", close(out, jnp.einsum("bnyxk,byxknd->byxnd", weights, values)))


def main() -> None:
    """Runs all of them."""
    weather()
    video()
    upsample()
    downsample()
    padded_batch()
    missing_pixels()
    merged_windows()
    grouped_heads()
    many_devices()
    capped_logits()
    forward_mode()
    neighbors()
    attention_weights()


if __name__ == "__main__":
    main()
