"""Work on the valid entries of padded lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natjax.detection.lists import of_valid


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_only_valid_entries_are_worked_on(share):
    rng = np.random.default_rng(0)
    valid = rng.random((2, 33)) < share
    x = np.where(valid[..., None], rng.standard_normal((2, 33, 3)), np.nan).astype(np.float32)
    label = rng.integers(0, 5, valid.shape)
    blocks = []

    def function(x, label):
        jax.debug.callback(blocks.append, jnp.isnan(x).all(-1).sum())
        return jnp.stack([x.sum(-1), label.astype(jnp.float32)], axis=-1)

    out = jax.jit(lambda *arrays: of_valid(function, *arrays))(valid, x, label)
    jax.effects_barrier()
    want = np.stack([x.sum(-1), label], axis=-1)
    np.testing.assert_allclose(out, np.where(valid[..., None], want, 0), rtol=1e-6, atol=1e-6)
    assert len(blocks) == -(-valid.sum() // 20)  # what a CPU takes at a time
