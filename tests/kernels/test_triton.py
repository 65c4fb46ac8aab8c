"""What is the fused kernels' own: any configuration, channels, products, batches. test_op.py says that they compute the op."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from op_oracle import TOLERANCE, assert_all_close, assert_close, both, draw, draw_case, exact, gradients

from natjax_kernels import neighborhood_attention
from natjax_kernels.bias import sum_by_segment
from natjax_kernels.cases import Case as OpCase
from natjax_kernels.fused.configurations import Config
from natjax_kernels.fused.layout import layout
from natjax_kernels.fused.schedule import Schedule
from natjax_kernels.logits import Logits
from natjax_kernels.triton import launch as launching
from natjax_kernels.window import Window

pytestmark = pytest.mark.once  # all of it is static, or in Triton's interpreter

# What there is besides the choices that test_op.py meets: a call, and a configuration for every kernel.
CONFIGURED = [
    (OpCase("blocks of keys", 1, (13, 14), 1, 8, (9, 10), bias=False), Config((4, 4), (4, 8), 16, False, 1)),
    (OpCase("blocks of keys, bias", 1, (11, 12), 2, 8, 7), Config((4, 4), (8, 8), 32, False, 1)),
    (OpCase("1-D blocks", 2, (50,), 1, 16, 21, is_causal=True, bias=False), Config((16,), (16,), 16, False, 1)),
    (OpCase("3-D blocks", 1, (6, 7, 8), 1, 8, (3, 5, 6), bias=False), Config((2, 3, 4), (4, 4, 4), 32, False, 1)),
    (OpCase("table on chip", 3, (9, 9), 2, 8, 5), Config((4, 5), None, 32, True, 1)),
    (OpCase("table on chip, one chunk", 3, (9, 9), 2, 8, 3), Config((3, 3), None, 32, True, 1)),
    (OpCase("table off chip", 3, (9, 9), 2, 8, 5), Config((4, 5), None, 32, False, 1)),
    (OpCase("dilated", 1, (26, 24), 1, 8, (9, 7), (2, 3)), Config((5, 4), (8, 4), 32, False, 1)),
]
# Programs work through many tiles and entries of the batch, or through one: as `test_op.py` has it, of chunks on and off chip.
MANY_PROGRAMS = ("blocks of keys, bias", "table on chip", "table off chip")


@pytest.mark.parametrize(
    ("case", "config", "programs"),
    [
        pytest.param(case, config, programs, id=f"{case.name}, {programs} programs")
        for case, config in CONFIGURED
        for programs in (1, 1024)
        if programs == 1 or case.name in MANY_PROGRAMS
    ],
)
def test_any_configuration_computes_the_op(monkeypatch, case, config, programs):
    config = dataclasses.replace(config, programs=1)
    monkeypatch.setattr("natjax_kernels.triton.op.choose", lambda case, device: config)
    monkeypatch.setattr("natjax_kernels.triton.op.multiprocessors", lambda: programs)
    assert_right(case)


def assert_right(case):
    """Compares outputs and gradients of the kernels with the reference's."""
    arrays, d_out, _ = draw_case(case, "float32")
    assert_all_close(
        gradients(case, arrays, d_out, implementation="triton"), exact(case, "float32"), TOLERANCE["float32"]
    )


@pytest.mark.parametrize("channels", [8, 16, 24, 64, 128])
def test_channels_of_a_head(channels):
    assert_right(OpCase("channels", 1, (7, 8), 2, channels, 3))


@pytest.mark.parametrize(("channels", "values"), [(8, 40), (24, 3), (256, 200)])
def test_values_of_other_channels(channels, values):
    dtype = "bfloat16" if channels > 128 else "float32"
    case = OpCase("values", 1, (7, 8), 2, channels, 3)
    arguments, d_out = draw(case.shape, 3, True, dtype, values)
    got = both(arguments, d_out, kernel_size=3, implementation="triton")
    expected = both(
        *jax.tree.map(lambda x: x.astype("float32"), (arguments, d_out)), kernel_size=3, implementation="xla"
    )
    assert_close(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("entries", [1, 8, 9, 1000])
def test_sums_by_segment(entries):
    """Of segments from one entry to nearly all, not in order."""
    rng = np.random.default_rng(entries)
    segments = rng.permutation(np.minimum(np.arange(entries), 5))
    x = rng.integers(-9, 9, (entries, 2, 3)).astype(np.float32)
    expected = np.zeros((segments.max() + 1, 2, 3))
    np.add.at(expected, segments, x)
    assert (sum_by_segment(jnp.asarray(x), segments) == expected).all()


def test_vmap_of_vmap():
    """Over different arguments, of which none is the bias."""
    (_, _, _, rpb), _ = draw((2, 9, 2, 8), 3, True)
    (query, key, value, _), _ = draw((2, 3, 2, 9, 2, 8), 3, False)  # two mapped axes in front

    def each(implementation):
        def op(query, key, value):
            return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=3, implementation=implementation)

        inner = jax.vmap(op, in_axes=(0, None, 0))
        return jax.jit(jax.vmap(inner, in_axes=(0, 0, None)))(query, key[:, 0], value[0])

    np.testing.assert_allclose(each("triton"), each("reference"), atol=1e-5)


@pytest.mark.parametrize("transform", [jax.hessian, lambda f: jax.grad(lambda x: jax.grad(f)(x).sum())])
def test_second_derivatives_are_refused(transform):
    (query, *_), _ = draw((1, 9, 1, 8), 3, False)

    def loss(x):
        return neighborhood_attention(x, x, x, kernel_size=3, implementation="triton").sum()

    with pytest.raises(NotImplementedError, match='no second derivative; use implementation="xla"'):
        transform(loss)(query)


LEGACY_PRECISIONS = ["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"]
PRESETS = [preset.name for preset in jax.lax.DotAlgorithmPreset if preset.name != "DEFAULT"]


@pytest.mark.parametrize("asked", [None, *LEGACY_PRECISIONS, *PRESETS])
def test_float32_products_are_no_less_precise_than_asked(asked):
    with jax.default_matmul_precision(asked):
        one = asked in ("bfloat16", "tensorfloat32", "BF16_BF16_F32", "TF32_TF32_F32")
        assert launching.float32_products() == ("tf32" if one else "tf32x3")


@pytest.mark.parametrize("batch", [1, 5, 7])
def test_shares_of_a_batch_that_are_not_alike(monkeypatch, batch):
    monkeypatch.setattr(Schedule, "shares", lambda *_: (1, min(batch, 3)))
    assert_right(OpCase("shares", batch, (9, 9), 2, 8, 3))


def test_offsets_are_of_64_bits_where_an_image_needs_them(monkeypatch):
    window = Window((3,), (1,), (1,), (False,))
    plan = layout((64,), window, (64,), None)
    launch = launching.Launch((64,), window, Logits(1.0), Config((64,), None, 64, False, 4), 132, "ieee")

    def wide(length, heads):
        monkeypatch.setattr(
            launching, "layout", lambda *_: dataclasses.replace(plan, tokens=length, halo_tokens=length)
        )
        return launch.static(heads, 1, 128)["WIDE"]

    assert not wide(2**23, 1)
    assert wide(2**24, 1)
    assert wide(2**22, 4)


@pytest.mark.parametrize("scale", [-0.5, 0.0, -0.0, 1e-9])
def test_any_scale(scale):
    (query, key, value, rpb), d_out = draw((2, 7, 8, 2, 8), 3, True)

    def run(implementation):
        def op(*primals):
            query, key, value, rpb = primals
            return neighborhood_attention(
                query, key, value, rpb=rpb, kernel_size=3, scale=scale, implementation=implementation
            )

        out, pull = jax.vjp(op, query, key, value, rpb)
        return [out, *pull(d_out)]

    for got, right in zip(run("triton"), run("reference"), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-5)


def test_wide_offsets_compute_the_op(monkeypatch):
    static = launching.Launch.static
    monkeypatch.setattr(launching.Launch, "static", lambda *arguments: {**static(*arguments), "WIDE": True})
    assert_right(OpCase("wide", 2, (5, 6), 2, 8, 3))
