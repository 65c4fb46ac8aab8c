"""What the tiled XLA implementation promises of its programs: no scatter, few constants, bounded steps."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import natjax_kernels.xla.tiles
from natjax_kernels import neighborhood_attention, neighborhood_attention_with_weights

CALLS = {
    "1-D": ((1, 40, 2, 4), 5, 3),
    "2-D": ((2, 20, 17, 2, 4), (3, 5), (2, 1)),
    "3-D": ((1, 6, 8, 9, 1, 4), 3, (2, 1, 1)),
}
PARTED = ((6, 9, 8, 2, 4), 3, 1)


def program(call):
    """Returns a function that computes the output and all gradients, and arguments for it."""
    shape, kernel, dilation = call
    rank = len(shape) - 3
    sides = (kernel,) * rank if isinstance(kernel, int) else kernel
    keys = jax.random.split(jax.random.key(0), 5)
    arrays = [jax.random.normal(k, shape) for k in keys[:3]]
    rpb, d_out = jax.random.normal(keys[3], (shape[-2], *(2 * k - 1 for k in sides))), jax.random.normal(keys[4], shape)

    def run(query, key, value, rpb, d_out):
        op = functools.partial(neighborhood_attention, kernel_size=kernel, dilation=dilation, implementation="xla")
        out, pull = jax.vjp(lambda q, k, v, r: op(q, k, v, rpb=r), query, key, value, rpb)
        return out, *pull(d_out)

    return run, (*arrays, rpb, d_out)


@functools.cache
def compiled(call):
    """Returns the program as it is compiled, unless a test interferes, and its results."""
    run, arguments = program(call)
    executable = jax.jit(run).lower(*arguments).compile()
    return executable, executable(*arguments)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_scatters(call):
    assert "scatter(" not in compiled(call)[0].as_text()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("rows_per_step", [1, 2])
def test_steps_change_nothing(call, rows_per_step, monkeypatch):
    """Rows of tiles in bounded steps, the last one padded, compute what all of them at once do."""
    run, arguments = program(call)
    _, expected = compiled(call)
    monkeypatch.setattr(natjax_kernels.xla.tiles, "tile_shape", lambda spatial, *_: (2,) * len(spatial))  # many rows
    monkeypatch.setattr(natjax_kernels.xla.tiles, "_scores_per_row", lambda query, axes, together: 10)
    monkeypatch.setattr(natjax_kernels.xla.tiles, "scores_per_step", lambda: 10 * rows_per_step)
    lowered = jax.jit(lambda *args: run(*args)).lower(*arguments)
    assert "while" in lowered.as_text()
    for a, b in zip(lowered.compile()(*arguments), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entries", [1, 4])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_parts_of_a_batch_change_nothing(entries, kind, monkeypatch):
    """Also where the batch is laid along an axis of a mesh of one device, as training does."""
    run, arguments = program(PARTED)
    _, expected = compiled(PARTED)
    monkeypatch.setattr(natjax_kernels.xla.tiles, "entries_per_step", lambda scores, **_: entries)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType[kind],), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        specs = [PartitionSpec("data")] * 3 + [PartitionSpec(), PartitionSpec("data")]
        placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arguments, specs, strict=True)]
        lowered = jax.jit(lambda *args: run(*args)).lower(*placed)
        assert "while" in lowered.as_text()
        got = lowered.compile()(*placed)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", [neighborhood_attention, neighborhood_attention_with_weights])
def test_constants_grow_with_the_sides_of_a_map(op):
    def run(query, rpb):
        out, pull = jax.vjp(lambda q, r: op(q, q, q, kernel_size=(3, 5), dilation=(2, 1), rpb=r), query, rpb)
        return pull(jax.tree.map(jax.numpy.ones_like, out))

    tokens = jax.ShapeDtypeStruct((1, 223, 221, 2, 32), "float32")  # the last tiles are padded
    rpb = jax.ShapeDtypeStruct((2, 5, 9), "float32")
    lines = jax.jit(run).lower(tokens, rpb).as_text().splitlines()
    constants = sum(len(line) for line in lines if "stablehlo.constant" in line)
    assert constants < 200_000  # one index per token alone would be 8 * 224 * 224 = 400,000 characters
