"""What the tests of the op share: the implementations under test and 64-bit arithmetic."""

import importlib.util
import os
import pathlib
import sys

import jax
import pytest

# The fused kernels run in Triton's interpreter here, which has to be said before Triton is imported.
os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for op_oracle
HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(
    params=[
        "reference",
        "xla",
        pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux")),
    ]
)
def implementation(request):
    """Every implementation that runs here: a new one is one more name, and inherits the whole suite."""
    return request.param


@pytest.fixture
def precise(implementation):
    """The most precise dtype of an implementation."""
    return "float32" if implementation == "triton" else "float64"


@pytest.fixture
def x64():
    """64-bit arithmetic for the length of one test."""
    with jax.enable_x64(True):
        yield
