"""What the tests of the op share: the implementations under test and 64-bit arithmetic."""

import jax
import pytest


@pytest.fixture(params=["reference", "xla"])
def implementation(request):
    """Every implementation that runs here: a new one is one more name, and inherits the whole suite."""
    return request.param


@pytest.fixture
def x64():
    """64-bit arithmetic for the length of one test."""
    with jax.enable_x64(True):
        yield
