"""What the tests of models share: no implicit promotion of dtypes."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """A float32 that slips into a bfloat16 model is an error here instead of a slower model."""
    with jax.numpy_dtype_promotion("strict"):
        yield
