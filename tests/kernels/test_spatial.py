"""Maps that are split over devices along their spatial axes give the results of one device, with nothing but halos on the way.

See spatial_oracle.py, which runs in a process of eight CPU devices.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from natjax_kernels import neighborhood_attention

ORACLE = pathlib.Path(__file__).with_name("spatial_oracle.py")

HALOS = """
import collections
from spatial_oracle import check, collectives
found = collections.Counter(collectives(check("several hops", "xla", "Explicit")))
# Windows of 7, 2 apart, shift inward at the borders, where they reach 10 tokens beyond a part of 4: keys and values of two parts
# and a half from either side, and their gradients back. The sum of the bias's gradient is over all devices.
halos = {("collective-permute", (1, 4, 2, 4)): 16, ("collective-permute", (1, 2, 2, 4)): 8}
assert found == halos | {("all-reduce", (2, 13)): 1}, found
"""


# Along Auto axes an array may come from one that was split differently: into parts of different sizes, or along a part of an axis
# of the mesh, or along axes of another one.
UNNAMED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from natjax_kernels import neighborhood_attention
mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
other = jax.make_mesh((8,), ("c",), axis_types=(AxisType.Auto,))
def split(x, *spec, mesh=mesh):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))
def attend(*arrays):
    return neighborhood_attention(*arrays, kernel_size=3, implementation="xla")
def rows_of_more(x):
    return attend(*(split(x, None, "b")[:, :10],) * 3)
def heads_of_columns(names, mesh=mesh):
    def function(x):
        kernels = split(jax.random.normal(jax.random.key(1), (3, 16, 16)), None, None, names, mesh=mesh)
        return attend(*((x.reshape(2, 24, 16) @ kernel).reshape(2, 24, 2, 8) for kernel in kernels))
    return function
def rows_of_all_entries(x):
    return attend(*(split(x.reshape(48, 2, 8), "b").reshape(x.shape),) * 3)
def finer_queries(x):
    x = split(x, None, "b")
    return attend(x, x[:, :6], x[:, :6])
x = jax.random.normal(jax.random.key(0), (2, 24, 2, 8))
functions = rows_of_more, heads_of_columns("b"), heads_of_columns(("a", "b")), rows_of_all_entries, finer_queries
elsewhere = heads_of_columns("c", other)
for function, of_x in (*((function, mesh) for function in functions), (elsewhere, mesh), (elsewhere, other)):
    whole = jax.device_put(x, NamedSharding(of_x, P()))
    np.testing.assert_allclose(jax.jit(function)(whole), jax.jit(function)(x), atol=1e-12, err_msg=str((function, of_x)))
"""

VMAP = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from natjax_kernels import neighborhood_attention
mesh = jax.make_mesh((2, 4), ("a", "b"))
x = jax.random.normal(jax.random.key(0), (2, 1, 24, 2, 8))
attend = jax.jit(jax.vmap(lambda x: neighborhood_attention(x, x, x, kernel_size=3, implementation="xla")))
np.testing.assert_allclose(attend(jax.device_put(x, NamedSharding(mesh, P("a", None, "b")))), attend(x), atol=1e-12)
"""


@pytest.mark.parametrize("axis_type", ["Explicit", "Auto"])
def test_results_are_those_of_one_device(axis_type):
    run_apart([str(ORACLE), "xla", axis_type], JAX_ENABLE_X64="1")


INTERPRETED = {"TRITON_INTERPRET": "1", "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=300"}
# Threads for devices that wait for each other, beside those that interpret.
INTERPRETED["NPROC"] = "64"


@pytest.mark.once
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton's interpreter")
def test_fused_kernels_give_results_of_one_device():
    run_apart([str(ORACLE), "triton", "Explicit", "heads too", "a causal ring, dilated"], **INTERPRETED)


@pytest.mark.once
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton's interpreter")
def test_the_backward_pass_gets_what_the_forward_pass_kept():
    run_apart([str(ORACLE.with_name("spatial_kept.py")), "heads too", "several hops", "a ring"])


def test_results_in_float32():
    run_apart([str(ORACLE), "xla", "Explicit", "one axis", "a ring"])


@pytest.mark.parametrize("script", [UNNAMED, VMAP], ids=["parts without a name", "vmap"])
def test_what_jax_gives_by_itself(script):
    run_apart(["-c", script], JAX_ENABLE_X64="1", JAX_NUM_CPU_DEVICES="8")


def test_halos_are_all_that_travels():
    run_apart(
        ["-c", HALOS], JAX_ENABLE_X64="1", PYTHONPATH=f"{ORACLE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )


def test_an_axis_of_one_device_splits_nothing():
    mesh = jax.make_mesh((1,), ("space",), devices=jax.devices()[:1])
    x, rpb = jnp.arange(72, dtype="float32").reshape(1, 6, 6, 1, 2) / 72, jnp.ones((1, 5, 5))

    def total(x, rpb):
        return jnp.sum(neighborhood_attention(x, x + 1, x, kernel_size=3, rpb=rpb) ** 2)

    gradients = jax.jit(jax.grad(total, (0, 1)))

    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "space")))
    got, expected = gradients(split, jax.device_put(rpb, NamedSharding(mesh, PartitionSpec()))), gradients(x, rpb)
    assert got[0].sharding.spec[1] == "space"
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def run_apart(arguments, **environment):
    result = subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-3000:]
