"""The way of XLA's implementation on TPUs, run on a CPU: tiles by slices, and heads that share lanes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_oracle import TOLERANCE, assert_all_close, draw, draw_case, exact, gradients

import natjax_kernels.xla.runs
import natjax_kernels.xla.tiles
from natjax_kernels import neighborhood_attention
from natjax_kernels.cases import FEATURES
from natjax_kernels.window import Window
from natjax_kernels.xla.lanes import heads_together
from natjax_kernels.xla.steps import lay_out
from natjax_kernels.xla.tiling import tile_shape

pytestmark = pytest.mark.once
CASES = {case.name: case for case in FEATURES}
LOOPS = "2-D dilated", "1-D ring", "2-D of mixed sizes"


@pytest.fixture(autouse=True)
def tpu(monkeypatch):
    """What asks for the platform, which is little but the tiles of the op, is told of a TPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def check(case):
    arrays, d_out, _ = draw_case(case, "float32")
    assert_all_close(gradients(case, arrays, d_out, implementation="xla"), exact(case, "float32"), TOLERANCE["float32"])


@pytest.mark.parametrize("name", [*LOOPS, "2-D", "2-D wide values", "2-D with additional keys", "3-D of many features"])
def test_results_are_the_reference_s(name):
    check(CASES[name])


@pytest.mark.parametrize("name", LOOPS)
def test_loops_change_nothing(name, monkeypatch):
    """One row of tiles of one entry at a time, whose places are known at run time only, and many tiles along the others."""
    monkeypatch.setattr(natjax_kernels.xla.tiles, "tile_shape", lambda spatial, *_: (2,) * len(spatial))
    monkeypatch.setattr(natjax_kernels.xla.tiles, "scores_per_step", lambda: 1)
    monkeypatch.setattr(natjax_kernels.xla.tiles, "entries_per_step", lambda scores, **_: 1)
    monkeypatch.setattr(natjax_kernels.xla.runs, "_FEW", 1)
    check(CASES[name])


SPLIT_BATCH = """
import jax, jax.numpy as jnp, numpy as np, natjax_kernels.xla.tiles
from jax.sharding import NamedSharding, PartitionSpec as P
from natjax_kernels import neighborhood_attention
natjax_kernels.xla.tiles.scores_per_step = natjax_kernels.xla.tiling.scores_per_step = lambda: 3000  # an entry or two
jax.default_backend = lambda: "tpu"
x = jax.random.normal(jax.random.key(0), (12, 10, 2, 4))
@jax.jit
def run(x):
    out, pull = jax.vjp(lambda x: neighborhood_attention(x, x + 1, x, kernel_size=3, implementation="xla"), x)
    return out, *pull(2 * out)
expected = run(x)
placed = jax.device_put(x, NamedSharding(jax.make_mesh((2, 1), ("data", "other")), P("data")))
program = run.lower(placed)
assert program.as_text().count("stablehlo.while") == 2
text = program.compile().as_text()
assert not [name for name in ("all-", "collective", "reduce-scatter") if name in text]
for got, of_one in zip(run(placed), expected, strict=True):
    assert got.sharding.is_equivalent_to(placed.sharding, got.ndim)
    np.testing.assert_allclose(got, of_one, rtol=5e-5, atol=5e-5)
"""


def test_devices_take_their_entries_of_a_split_batch_in_steps():
    """They send nothing."""
    more = {"JAX_NUM_CPU_DEVICES": "2", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    done = subprocess.run(
        [sys.executable, "-c", SPLIT_BATCH], env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_nothing_gathers_tokens():
    """Only tables of float32 are looked up by class."""
    (query, key, value, rpb), d_out = draw((2, 20, 17, 2, 32), (3, 5), True, "bfloat16")

    def run(query, key, value, rpb, d_out):
        def attend(query, key, value, rpb):
            return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=(3, 5), dilation=(2, 1))

        out, pull = jax.vjp(attend, query, key, value, rpb)
        return out, pull(d_out)

    text = jax.jit(run).lower(query, key, value, rpb, d_out).as_text()
    gathers = [line for line in text.splitlines() if "stablehlo.gather" in line or "stablehlo.scatter" in line]
    assert gathers
    assert not [line for line in gathers if "bf16" in line]


def test_heads_fill_lanes():
    def together(heads, channels, key_heads=None, value_channels=None):
        key = jnp.zeros((1, 8, key_heads or heads, channels))
        value = jnp.zeros((1, 8, key_heads or heads, value_channels or channels))
        return heads_together(jnp.zeros((1, 8, heads, channels)), key, value)

    assert [together(heads, 32) for heads in (1, 2, 3, 4, 6, 8)] == [1, 2, 3, 4, 3, 4]
    assert [together(4, channels) for channels in (16, 64, 128, 256)] == [4, 2, 1, 1]
    assert together(4, 32, key_heads=2) == 1
    assert together(4, 32, value_channels=64) == 2


def test_tiles_are_those_of_the_heads_that_share_lanes():
    """Two heads of queries that share a key head share no lanes."""
    window, few, many = (
        Window((7, 7), (1, 1), (1, 1), (False, False)),
        jnp.zeros((1, 28, 28, 4, 16)),
        jnp.zeros((1, 28, 28, 8, 16)),
    )
    sides = {}
    for query in (few, many):
        axes, together, _ = lay_out(query, few, few, window, False, None)
        sides[together] = tuple(axis.queries.shape[1] for axis in axes)
    assert sides == {n: tile_shape((28, 28), window, n) for n in (4, 1)}
    assert sides[1] != sides[4]


def test_what_is_not_finite_stays_within_windows():
    """It is so of all heads that share lanes, of the token's own entry."""
    (query, key, value, rpb), d_out = draw((2, 30, 2, 8), 5, True)
    for name in ("query", "key", "value"):
        arrays = {"query": query, "key": key, "value": value}
        arrays[name] = arrays[name].at[1, 20, 0, 3].set(jnp.nan)
        out, pull = jax.vjp(
            lambda query, key, value: neighborhood_attention(query, key, value, rpb=rpb, kernel_size=5),
            *arrays.values(),
        )
        for got, reach in zip([out, *pull(d_out)], (2, 2, 4, 4), strict=True):
            lost = np.zeros((2, 30), bool)
            lost[1, 20 - reach : 21 + reach] = True
            assert not (~np.isfinite(got).all((-1, -2)) & ~lost).any(), name
        assert np.isnan(out[1, 20, 0]).all()
