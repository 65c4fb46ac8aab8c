"""What to do where JAX has no device to run on, in place of what its start-up says."""

from __future__ import annotations

import os
import sys

from natjax.errors import install_line


def explain_no_device(error: BaseException) -> str | None:
    """Returns a message where an error stands for JAX's failure to start, or None where it stands for something else.

    JAX fails with an empty AssertionError where JAX_PLATFORMS names a platform that it finds no device of.
    """
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, AssertionError | RuntimeError):
        return None
    try:
        jax.devices()
    except Exception as why:
        return no_device_message(why)
    return None


def no_device_message(why: BaseException) -> str:
    """Returns the message for what JAX raises where it has no device."""
    asked = os.environ.get("JAX_PLATFORMS")
    found = f": {why}" if str(why) else ""
    if not asked:
        return f"JAX finds no device to run on{found}"
    return (
        f"JAX finds no device of the kind that the environment asks for, JAX_PLATFORMS={asked}{found}. Unset JAX_PLATFORMS "
        f"to run on what there is, or set it to cpu. For NVIDIA GPUs JAX needs its CUDA packages: {install_line('gpu')}."
    )
