"""Halos between devices: each gets exactly the tokens around its own, over as many hops as it takes, and gradients go back."""

import os
import subprocess
import sys

SCRIPT = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from natjax_kernels.halo import exchange

mesh = jax.make_mesh((2, 4), ("a", "b"))
def put(x, names):
    return jax.device_put(x, jax.NamedSharding(mesh, P(None, names)))
x = np.arange(2 * 24, dtype="float32").reshape(2, 24) + 1
for names, count in (("b", 4), (("a", "b"), 8)):
    length = 24 // count
    for before, after in ((0, 0), (1, 0), (2, 3), (length, 1), (2 * length + 1, 3 * length)):
        for periodic in (False, True):
            run = jax.shard_map(lambda x: exchange(x, 1, before, after, names, periodic=periodic), mesh=mesh,
                                in_specs=P(None, names), out_specs=P(None, names), check_vma=False)
            padded = np.pad(x, ((0, 0), (before, after)), mode="wrap" if periodic else "constant")
            wanted = [padded[:, p * length : (p + 1) * length + before + after] for p in range(count)]
            placed = put(x, names)
            got = jax.jit(run)(placed)
            np.testing.assert_array_equal(got, np.concatenate(wanted, axis=1))
            weights = np.random.default_rng(0).integers(1, 9, got.shape).astype("float32")
            gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x) * put(weights, names))))(placed)
            spread = np.zeros_like(padded)
            for p, of_device in enumerate(np.split(weights, count, axis=1)):
                spread[:, p * length : (p + 1) * length + before + after] += of_device
            if periodic:
                for i in range(before):
                    spread[:, before + (i - before) % 24] += spread[:, i]
                for i in range(after):
                    spread[:, before + i % 24] += spread[:, before + 24 + i]
            np.testing.assert_array_equal(gradient, spread[:, before : before + 24])

run = jax.shard_map(lambda x: exchange(x, 1, 2, 1, ("a", "b")), mesh=mesh, in_specs=P(None, ("a", "b")),
                    out_specs=P(None, ("a", "b")), check_vma=False)
text = jax.jit(run).lower(put(x, ("a", "b"))).compile().as_text()
sent = sorted(re.findall(r"= f32\\[([\\d,]+)\\]\\S* collective-permute\\(", text))
assert sent == ["2,1", "2,2"], text  # the halos, and no more
assert "all-" not in text
"""


def test_exchange():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)
