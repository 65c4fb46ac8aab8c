"""What the fused kernels take of a GPU, compiled without one: registers, stack, shared memory, and tensor cores in use.

By the Triton that natjax[gpu] installs: others give other numbers. `make test-deviceless` has it; skipped elsewhere.
"""

import importlib.metadata

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")
import resources

from natjax_kernels.triton import support

pytestmark = pytest.mark.skipif(
    not importlib.metadata.version("triton").startswith(f"{support._TRITON}."),
    reason=f"this is not Triton {support._TRITON}: make test-deviceless",
)

# Per multiprocessor or block, of the leanest of the architectures.
REGISTERS = 65536
SHARED = 99 * 1024

BAND_INSTRUCTIONS = 1024  # of which some 650 are for an entry of the batch: 10 per score

# Bytes that are spilled on B200, where nothing else is in 16 bits.
_BLACKWELL = {
    ("kernel 11", "bwd_dkv"): 32,
    ("kernel 13", "bwd_dkv"): 32,
    ("64 channels level 4", "bwd_dkv"): 16,
    ("no bias", "bwd_dkv"): 16,
    ("3-D kernel 18 x 24 x 24", "bwd_dq"): 40,
}

ATTENTION_OF_MODELS = [*resources.LEVELS, *resources.LARGE, "level 1 float16", "kernel 11", "kernel 13"]


def spilled(architecture, shape, kernel, table):
    """Bytes of a thread's registers that may be spilled."""
    if shape.startswith("128 channels float32"):  # a tile's queries and output gradients are operands in 256 registers
        return 776 if table else 128
    if shape == "64 channels float32":
        return 72 if table else 48
    if shape in resources.LARGE and architecture == 120:
        return 8 if kernel == "fwd" else 0
    if architecture == 100 and (shape, kernel) in _BLACKWELL:
        return _BLACKWELL[shape, kernel]
    if shape in ATTENTION_OF_MODELS or architecture in (90, 100):
        return 0
    return {"64 channels level 4": 64, "1-D of 32768": 40}.get(shape, 24)


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_every_shape(architecture):
    # Levels at 384 px on Hopper and the leanest only, as compiling takes minutes; results/resources.json has all of them.
    left_out = () if architecture in (90, 120) else resources.LARGE
    rows = resources.report_apart(architecture, [shape for shape in resources.SHAPES if shape not in left_out])
    bands = [row for row in rows if row["kernel"] == "band"]
    rows = [row for row in rows if row["kernel"] != "band"]
    assert {row["kernel"] for row in rows} == {"fwd", "bwd_dq", "bwd_dkv"}
    for row in rows:
        what = (row["architecture"], row["shape"], row["kernel"])
        published = row["shape"] in ATTENTION_OF_MODELS
        assert row["stack_bytes"] <= spilled(*what, row.get("D_TABLE") and not row.get("D_QUERY")), what
        assert REGISTERS // (32 * row["registers"]) >= 8, what  # warps that a multiprocessor can hold
        assert row["shared_bytes"] <= (SHARED // 2 if published else SHARED), what
        assert row["matrix_instructions"], what
        if row["architecture"] in (90, 100) and row["slots"] == 64:
            assert row["matrix_instructions"] != ["HMMA"], what  # but those of the architecture's own
    assert {row["num_stages"] for row in bands} == {1, 2}
    for row in bands:
        what = (row["architecture"], row["shape"], row["num_stages"])
        spills = row["num_stages"] == 1 and architecture not in (90, 100)
        assert row["stack_bytes"] <= (16 if spills else 0), what
        assert REGISTERS // (32 * row["registers"]) >= 8, what
        assert row["shared_bytes"] <= (SHARED if row["num_stages"] == 2 else SHARED // 2), what
        assert row["matrix_instructions"] == ["HMMA"], what
        assert row["instructions"] <= BAND_INSTRUCTIONS, what
