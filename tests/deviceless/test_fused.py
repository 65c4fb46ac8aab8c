"""The fused kernels, compiled without a GPU and executed without one: what the interpreter of their source leaves out."""

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

LARGEST_ERROR = {"float32": 5e-7, "float16": 1e-3, "bfloat16": 6e-3}  # a step of bfloat16 at 1 is 8e-3

# For each case its dtype and what must be among its launches, so that it stays the proof of that.
CASES = {
    "level 1": ("bfloat16", ["fwd: 64 queries, 1 blocks of 3 x 64 on chip", "bwd_dq D_QUERY D_TABLE: 16 queries"]),
    "dilated": ("float16", ["bwd_dq D_QUERY D_TABLE WIDE: 64 queries, 1 blocks of 1 x 64 on chip"]),
    "level 4": ("bfloat16", ["fwd: 64 queries, 1 blocks of 1 x 64 on chip, grid (1, 2, 3)"]),  # entries: 2, 2 and 1
    "no bias": ("bfloat16", ["bwd_dq D_QUERY: "]),
    "kernel 11": ("bfloat16", ["bwd_dq D_QUERY D_TABLE: 16 queries, 1 blocks of 1 x 256 on chip"]),
    "1-D, 24 channels": ("float16", ["bwd_dq D_QUERY D_TABLE D_LSE: "]),
    "3-D, several blocks": ("bfloat16", ["bwd_dq D_TABLE: ", "bwd_dkv: 64 queries, 12 blocks of 2 x 32, "]),
    "64 channels": ("bfloat16", ["fwd: 64 queries, 1 blocks of 3 x 64, "]),
    "128 channels": ("bfloat16", []),
    "grouped and masked": (
        "bfloat16",
        [
            "fwd MASKED: ",
            "bwd_dq D_QUERY D_TABLE MASKED: ",
            "bwd_dkv MASKED: 32 queries, 1 blocks of 6 x 32, grid (6, 2, 1)",
        ],
    ),
    "coarser queries on a ring": ("float16", ["fwd MASKED: ", "bwd_dq D_QUERY", "bwd_dkv MASKED: "]),
    "capped": ("float16", ["fwd: ", "bwd_dq D_QUERY D_TABLE: ", "bwd_dkv: "]),
    "256 channels": ("bfloat16", ["bwd_dq D_QUERY: "]),
    "float32": ("float32", ["fwd: 32 queries, 1 blocks of 4 x 32, ", "bwd_dq D_TABLE: "]),
}


def executed(name, *options):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "XLA_FLAGS")}
    environment |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}
    script = pathlib.Path(__file__).with_name("fused_on_cpu.py")
    command = [sys.executable, str(script), "--cases", name, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_what_was_compiled_is_right(name):
    """Layouts, addresses, products, copies; and no warp reads what is not there yet, or overwrites what another one reads."""
    dtype, launches = CASES[name]
    found = executed(name)
    assert len(found) == 2
    for architecture, result in found.items():
        assert result["errors"].pop("lse") < 2e-7, architecture  # of any dtype: a wrong mask shows
        for output, error in result["errors"].items():
            assert error < LARGEST_ERROR[dtype], (architecture, output)
        for expected in launches:
            assert any(made.startswith(expected) for made in result["launches"]), (architecture, expected)


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_faults_show(architecture):
    """A barrier, wait or mask that is left out is an error, but for barriers that one program does not need."""
    (kernels,) = executed("faults", "--architectures", architecture).values()
    assert kernels.keys() == {"fwd", "bwd_dq", "bwd_dkv"}
    for name, kinds in kernels.items():
        assert kinds["masks"] == [1, 1], name
        assert kinds.get("stores", [1, 1]) == [1, 1], name
        found, several = kinds["bar.sync"]
        assert found >= several - 2, name
        assert kinds["cp.async.wait_group"][0] >= 1, name
        assert kinds.get("fence.proxy.async", [1])[0] >= 1, name  # the next chunk's copies came with the first's
        for kind in {"wgmma.fence", "wgmma.wait_group"} & kinds.keys():  # others: operands in memory, sums that go on
            found, several = kinds[kind]
            assert found >= several / 3, (name, kind)
