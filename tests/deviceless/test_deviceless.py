"""What XLA's compiler for GPUs makes of natjax, without a GPU: kernels called, memory, collectives.

Needs an environment of its own, which `make test-deviceless` makes; skipped elsewhere.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
from deviceless import check_apart

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason="JAX's CUDA plugin is not here: make test-deviceless"
)

LAYERS = 3 + 4 + 18 + 5  # of NAT-Tiny and DiNAT-Tiny
TOKENS = 2 * 128 * 56 * 56 * 2 * 32  # bytes of a query at level 1: batch 128, bfloat16


def test_the_op_and_its_gradients_are_three_kernels():
    found = check_apart("op")
    assert found["fused_kernels"] == 3
    assert found["other_calls"] == found["collectives"] == {}
    # Statistics, which are a quarter of the tokens, and tables; XLA's own way takes several times the tokens.
    assert found["temporary_bytes"] < TOKENS * 0.4


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_on_a_mesh_the_bias_is_reduced_and_nothing_else_travels(axes):
    found = check_apart(f"op on 4 x 2, {axes}")
    assert found["fused_kernels"] == 3
    # Where types say that the bias is replicated and heads are not, its gradient (1.4 kB) is gathered, too.
    assert found["collectives"] == ({"all-reduce": 1} if axes == "Auto" else {"all-reduce": 1, "all-gather": 1})


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_of_a_split_map_halos_travel_and_the_bias_is_reduced(axes):
    found = check_apart(f"op on a map split by 4 x 2, {axes}")
    assert found["kernels"] == {"fwd": 1, "bwd_dq": 1, "bwd_dkv": 1}
    assert found["collectives"].keys() == {"collective-permute", "all-reduce"}
    assert found["collectives"]["all-reduce"] == 1
    assert any("transpose" in name for name in found["during_exchanges"])  # the table of the bias


def test_keys_and_values_of_a_layer_are_not_copied_to_have_halos_beside_them():
    """XLA joins them where it takes them out of the product that has queries, too; what is more are the halos."""
    whole, split = (check_apart(check)["written_bytes"] for check in ("layer", "layer on 8, rows"))
    halos = 2 * 6 * 256 * 128 * 2  # rows of keys and of values, bfloat16
    assert split - whole < 4 * halos < 0.2 * whole


def test_a_training_step_whose_images_are_split_by_rows_gathers_nothing():
    found = check_apart("step of 4 layers on 2 x 2, rows")
    assert (found["kernels"]["fwd"], found["kernels"]["bwd_dkv"]) == (4, 4)
    assert found["collectives"].keys() == {"collective-permute", "all-reduce"}
    assert any("triton" in name for name in found["during_exchanges"])  # gradients of halos travel while kernels run


@pytest.mark.parametrize("kind", ["h200", "a100"])
def test_the_band_kernel_takes_the_place_of_the_forward_one(kind):
    found = check_apart("band", kind)
    assert found["kernels"] == {"band": 1, "bwd_dq": 1, "bwd_dkv": 1}
    assert found["other_calls"] == found["collectives"] == {}
    assert check_apart("band, forward", kind)["kernels"] == {"band": 1}


def test_the_band_kernel_on_a_mesh():
    for axes, collectives in (("Auto", {"all-reduce": 1}), ("Explicit", {"all-reduce": 1, "all-gather": 1})):
        found = check_apart(f"band on 4 x 2, {axes}")
        assert found["kernels"] == {"band": 1, "bwd_dq": 1, "bwd_dkv": 1}
        assert found["collectives"] == collectives  # those of the other kernels
    forward = check_apart("band, forward, on 4 x 2, Auto")
    assert forward["kernels"] == {"band": 1}
    assert forward["collectives"] == {}


@pytest.mark.parametrize("check", ["forward", "forward of dinat_tiny"])
def test_every_layer_of_a_model_is_one_kernel(check):
    found = check_apart(check)
    assert found["fused_kernels"] == LAYERS
    assert all(call.startswith("__cudnn$conv") for call in found["other_calls"])  # the convolutions'


def test_a_training_step_takes_the_kernels():
    found = check_apart("step of 5 layers")  # that of all 30 takes minutes to compile
    assert found["fused_kernels"] == 3 * 5


def test_memory_is_linear_in_pixels():
    """Of a batch, beside bias tables, which do not grow with the map: at one image, XLA makes many layers' ahead."""
    sides = (224, 448, 896)
    small, medium, large = (
        check_apart(f"forward of 5 layers, batch 8, {side} pixels")["temporary_bytes"] for side in sides
    )
    assert large - medium <= 1.01 * 4 * (medium - small)


def test_memory_of_gradients_is_linear_in_pixels():
    """Of the op, beside what does not grow with the map: tables, and the parts of the bias's gradient."""
    sides = (112, 224, 448)
    small, medium, large = (check_apart(f"op, batch 8, side {side}")["temporary_bytes"] for side in sides)
    assert large - medium <= 1.1 * 4 * (medium - small)


def test_another_gpu():
    assert check_apart("op", "a100")["fused_kernels"] == 3


def test_the_interpreter_of_the_triton_that_is_installed_with_natjax():
    """And with the newest NumPy; tests/kernels runs in it with a newer Triton."""
    program = """
import jax.numpy as jnp, numpy as np
from natjax import neighborhood_attention
x = jnp.sin(jnp.arange(2 * 9 * 10 * 2 * 8.0)).reshape(2, 9, 10, 2, 8)
expected, got = (neighborhood_attention(x, x, x, kernel_size=3, implementation=name) for name in ("reference", "triton"))
np.testing.assert_allclose(got, expected, atol=1e-5)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
