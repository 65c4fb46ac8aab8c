"""Tables of bias: every entry where it belongs, whether a program holds their places or computes them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax_kernels import axis, bias
from natjax_kernels.plan import plan
from natjax_kernels.window import Window

SIDES, WINDOW, TILE = (9, 7), Window((5, 3), (1, 2), (1, 1), (False, False)), (4, 2)


@pytest.mark.parametrize("largest_constant", [0, 2**16])
@pytest.mark.parametrize(
    "rpb", [None, np.random.default_rng(0).standard_normal((2, 9, 5), np.float32)], ids=["mask", "bias"]
)
def test_padded_slots_are_masked(monkeypatch, largest_constant, rpb):
    monkeypatch.setattr(axis, "_LARGEST_CONSTANT", largest_constant)
    pairs = [made.pairs for made in plan(SIDES, WINDOW, TILE)]
    table, padded = (
        np.asarray(jax.jit(lambda x, p=p: bias.bias_table(pairs, x, jnp.float32, masked=-7.0, padded=p))(rpb))
        for p in (None, (16, 64))
    )
    _, _, slots, keys = table.shape
    assert padded.shape == (*table.shape[:2], 16, 64)
    np.testing.assert_array_equal(padded[:, :, :slots, :keys], table)
    assert (padded[:, :, slots:] == -7).all()
    assert (padded[..., keys:] == -7).all()


@pytest.mark.parametrize("largest_constant", [0, 2**16])
def test_tables_hold_the_bias_of_every_pair(monkeypatch, largest_constant):
    monkeypatch.setattr(axis, "_LARGEST_CONSTANT", largest_constant)
    pairs = [made.pairs for made in plan(SIDES, WINDOW, TILE)]
    rows, columns = (of_axis.relative() for of_axis in pairs)  # [classes, T, S]
    values = np.random.default_rng(0).standard_normal((2, 9, 5), np.float32)
    values[:, 0, 0] = np.inf  # stays with the pairs whose bias it is
    table = np.asarray(jax.jit(lambda x: bias.bias_table(pairs, x, jnp.float32, masked=-7.0))(values))
    mask = np.asarray(jax.jit(lambda: bias.bias_table(pairs, None, jnp.float32, masked=-7.0))())
    classes = list(itertools.product(rows, columns))
    assert len(table) == len(mask) == len(classes)
    for n, (row, column) in enumerate(classes):
        for t, s in itertools.product(range(table.shape[2]), range(table.shape[3])):
            y = row[t // column.shape[0], s // column.shape[1]]
            x = column[t % column.shape[0], s % column.shape[1]]
            neighbours = min(y, x) >= 0
            np.testing.assert_array_equal(table[n, :, t, s], values[:, y, x] if neighbours else -7.0)
            assert mask[n, 0, t, s] == (0.0 if neighbours else -7.0)
