"""The band kernel, compiled without a GPU and executed without one: what the interpreter of its source leaves out."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

from natjax_kernels.triton import support

pytestmark = pytest.mark.skipif(
    not importlib.metadata.version("triton").startswith(f"{support._TRITON}."),
    reason=f"this is not Triton {support._TRITON}: make test-deviceless",
)


def test_what_was_compiled_is_what_the_source_says():
    """Layouts, addresses, products, copies; and no warp reads what is not there yet, or overwrites what another one reads."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    environment |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(pathlib.Path(__file__).with_name("band_on_cpu.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 20
    for name, result in found.items():
        assert result["lse"] < 2e-6, name
        assert result["out"] < 4e-3, name  # a step of bfloat16 at 1 is 8e-3
        assert result.get("barriers", 2) == 2, name  # before a stage is read, and before it is written again
