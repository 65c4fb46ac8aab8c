"""Resizing and pooling of maps against PyTorch's (tests/goldens/mm_ops), and against the definition at random sizes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.nn.resizing import adaptive_average_pool, conv3x3_of_pyramid, resize_bilinear

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "mm_ops" / "expected.npz")
SIZES = [tuple(map(int, name.rsplit("_")[-1].split("x"))) for name in GOLDEN.files if "resize/bilinear" in name]


def nhwc(name):
    return GOLDEN[f"resize/{name}"].transpose(0, 2, 3, 1)


def assert_close(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bilinear_is_pytorchs(size):
    assert_close(resize_bilinear(nhwc("input"), size), nhwc("bilinear_{}x{}".format(*size)))


@pytest.mark.parametrize("scale", [1, 2, 3, 6])
def test_pooling_and_back_is_pytorchs_with_its_gradient(scale):
    x = nhwc("input")

    def there_and_back(x):
        return resize_bilinear(adaptive_average_pool(x, scale), x.shape[1:3])

    assert_close(adaptive_average_pool(x, scale), nhwc(f"pool_{scale}"))
    up, pull = jax.vjp(there_and_back, x)
    assert_close(up, nhwc(f"pool_{scale}_up"))
    assert_close(pull(0.5 * x + 1)[0], nhwc(f"pool_{scale}_grad"))


def test_the_same_size_is_the_same_map():
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 3), np.float32)
    np.testing.assert_array_equal(resize_bilinear(x, (5, 7)), x)


def test_both_orders_of_the_axes_agree():
    x = np.random.default_rng(0).standard_normal((1, 3, 50, 2), np.float32)
    wide = resize_bilinear(x, (40, 51))
    np.testing.assert_allclose(resize_bilinear(x.swapaxes(1, 2), (51, 40)).swapaxes(1, 2), wide, rtol=0, atol=1e-6)


def test_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 9, 2)), jnp.bfloat16)
    for resized in (lambda x: resize_bilinear(x, (13, 11)), lambda x: adaptive_average_pool(x, 3)):
        assert resized(x).dtype == jnp.bfloat16
        np.testing.assert_array_equal(resized(x), resized(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (40, 3)], ids=str)
def test_convolution_of_a_pyramid_and_its_gradients(size):
    """Against the definition, resize, join and convolve, in float64; some maps are multiplied first, some resized first."""
    rng = np.random.default_rng(0)
    channels, dim = 16, 3
    sizes = [size, *(tuple(-(-n // k) for n in size) for k in (2, 3, 8))]

    def definition(maps, kernel):
        x = jnp.concatenate([resize_bilinear(x, size) for x in maps], axis=-1)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    with jax.enable_x64(True):
        maps = [jnp.asarray(rng.standard_normal((2, *size, channels))) for size in sizes]
        kernel = jnp.asarray(rng.standard_normal((3, 3, len(maps) * channels, dim)))
        want, pull = jax.vjp(definition, maps, kernel)
        got, pull_ours = jax.vjp(conv3x3_of_pyramid, maps, kernel)
        cotangent = jnp.asarray(rng.standard_normal(want.shape))
        for ours, theirs in zip(
            jax.tree.leaves((got, pull_ours(cotangent))), jax.tree.leaves((want, pull(cotangent))), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_convolution_of_a_pyramid_takes_fewer_products():
    """At UPerNet's sizes: of 154 billion multiplications without."""
    maps = [jax.ShapeDtypeStruct((1, n, n, 512), jnp.float32) for n in (128, 64, 32, 16)]
    kernel = jax.ShapeDtypeStruct((3, 3, 2048, 512), jnp.float32)
    cost = jax.jit(conv3x3_of_pyramid).lower(maps, kernel).compile().cost_analysis()
    assert cost["flops"] < 0.45 * 2 * 9 * 128**2 * 2048 * 512
