"""What the tests of the op share: the implementations under test, 64-bit arithmetic, no implicit promotion of dtypes."""

import dataclasses
import importlib.util
import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for op_oracle
HAS_TRITON = importlib.util.find_spec("triton") is not None
TRITON = [pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux"), pytest.mark.once]  # in the interpreter


@pytest.fixture(params=["reference", "xla", "xla_autodiff", pytest.param("triton", marks=TRITON)])
def implementation(request):
    """Every implementation that runs here: a new one is one more name, and inherits the whole suite."""
    return request.param


@pytest.fixture
def precise(implementation):
    """The most precise dtype of an implementation."""
    return "float32" if implementation == "triton" else "float64"


@pytest.fixture(autouse=True)
def strict_promotion():
    """Mixing dtypes without a cast is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="session")
def quicker_interpreter():
    """Without its integers' overflow checks, which take much of its time and, outside of debugging, cannot fail."""
    with pytest.MonkeyPatch.context() as patch:
        if HAS_TRITON:
            from triton.runtime.interpreter import interpreter_builder as builder

            patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        yield


@pytest.fixture
def x64():
    """64-bit arithmetic for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    """The two large goldens in 3-D take a minute each in the interpreter; a smaller one in 3-D stays."""
    for item in items:
        if item.name.startswith(("test_equals_natten[triton-12-", "test_equals_natten[triton-13-")):
            item.add_marker(pytest.mark.slow)
