"""What to do where a device's memory is not enough, in place of what the compiler and its runtime say."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")  # as GPUs and CPUs say it


@contextlib.contextmanager
def explain_out_of_memory(message: str) -> Generator[None]:
    """Makes the message of an error that says a device's memory is not enough.

    Raises:
        ValueError: it is not enough.
    """
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:  # the former is Python's and NumPy's
        if not (isinstance(error, MemoryError) or any(said in str(error) for said in _OUT_OF_MEMORY)):
            raise
        raise ValueError(message) from error
