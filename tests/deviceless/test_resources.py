"""What the fused kernels take of a GPU, compiled without one: registers, stack, shared memory, and tensor cores in use.

By the Triton that natjax[gpu] installs: others give other numbers. `make test-deviceless` has it; skipped elsewhere.
"""

import importlib.metadata

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")
from benchmarks import resources
from natjax_kernels.triton import support

pytestmark = pytest.mark.skipif(
    not importlib.metadata.version("triton").startswith(f"{support._TRITON}."),
    reason=f"this is not Triton {support._TRITON}: make test-deviceless",
)

# Per multiprocessor or block, of the leanest of the architectures.
REGISTERS = 65536
SHARED = 99 * 1024

ATTENTION_OF_MODELS = [*resources.LEVELS, "level 1 float16", "kernel 11", "kernel 13"]


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_every_shape(architecture):
    rows = resources.report_apart(architecture, list(resources.SHAPES))
    assert {row["kernel"] for row in rows} == {"attend", "attend_backward", "attend_mirrored"}
    for row in rows:
        what = (row["architecture"], row["shape"], row["kernel"])
        published = row["shape"] in ATTENTION_OF_MODELS
        assert row["stack_bytes"] <= (0 if published or row["architecture"] in (90, 100) else 32), what
        assert REGISTERS // (32 * row["registers"]) >= 8, what  # warps that a multiprocessor can hold
        assert row["shared_bytes"] <= (SHARED // 2 if published else SHARED), what
        assert row["matrix_instructions"], what
        if row["architecture"] in (90, 100) and row["slots"] == 64:
            assert row["matrix_instructions"] != ["HMMA"], what  # but those of the architecture's own
