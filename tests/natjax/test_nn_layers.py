"""Gradients of layers' weights in 16 bits: those of float32 but for rounding, as sums over many tokens are not of 16 bits.

On four devices, where they are summed later: `test_nn_layers.py`.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from natjax.models.detection.roi_heads import Upsample
from natjax.nn.initializers import truncated_normal
from natjax.nn.layers import conv, downsampling_conv, layer_norm, linear, multiply, rms_norm

pytestmark = [pytest.mark.once, pytest.mark.nnx]


class LayerScale(nnx.Module):
    """As blocks of NAT have it."""

    def __init__(self, features, *, dtype, param_dtype, rngs):
        self.scale = nnx.Param(jnp.ones(features, param_dtype))

    def __call__(self, x):
        return multiply(x, self.scale[...])


C = 8
KERNEL = {"kernel_init": truncated_normal(0.2)}
MAKE = {
    "linear": lambda **options: linear(C, C, **KERNEL, **options),
    "conv": lambda **options: conv(C, C, 3, **KERNEL, **options),
    "downsampling": lambda **options: downsampling_conv(C, C, **KERNEL, **options),
    "upsampling": lambda **options: Upsample(C, C, **options),
    "layer norm": lambda **options: layer_norm(C, **options),
    "rms norm": lambda **options: rms_norm(C, epsilon=1e-5, **options),
    "layer scale": lambda **options: LayerScale(C, **options),
}


def gradients(layer, dtype, mesh=None, spec=None):
    """Returns the gradients of a layer's weights; on a mesh they are summed over devices by themselves."""
    graph, params = nnx.split(MAKE[layer](dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
    params, rng = nnx.to_pure_dict(params), np.random.default_rng(0)
    x = rng.uniform(size=(8, 32, 32, C)).astype(np.float32)

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params)(x), dtype=jnp.float32)  # of biases, sums of ones

    def later(params, x):
        params = jax.sharding.reshard(params, P(reduced=set(mesh.axis_names)))
        return jax.sharding.reshard(jax.grad(loss)(params, x), P())

    x = jnp.asarray(x, dtype)
    if mesh is None:
        return jax.jit(jax.grad(loss))(params, x)
    with jax.set_mesh(mesh):
        return jax.jit(later)(jax.device_put(params, P()), jax.device_put(x, NamedSharding(mesh, spec)))


def check(layer, **placement):
    """Compares with float32 on one device; the kernel's gradient is rounded, as is that of each device's part."""
    found, expected = gradients(layer, jnp.bfloat16, **placement), gradients(layer, jnp.float32)
    for name in expected:
        of_weight = np.asarray(expected[name], np.float64)
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64),
            of_weight,
            rtol=0,
            atol=2**-7 * np.abs(of_weight).max(),
            err_msg=f"{layer}: {name}",
        )


@pytest.mark.parametrize("layer", MAKE)
def test_gradients_of_weights_in_bfloat16(layer):
    check(layer)


def test_gradients_of_weights_in_bfloat16_that_are_summed_over_devices_later():
    done = subprocess.run(
        [sys.executable, __file__], env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    for layer in MAKE:
        regions = layer == "upsampling"  # of a batch that is split, never of maps
        mesh = jax.make_mesh((2, 2), ("a", "b"), (AxisType.Explicit,) * 2)
        check(layer, mesh=mesh, spec=P(("a", "b")) if regions else P("a", "b"))
