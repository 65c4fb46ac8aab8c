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

REGISTERS = 65536  # of a multiprocessor
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # bytes, of one or of a block

BAND_INSTRUCTIONS = 1024  # of which some 650 are for an entry of the batch: 10 per score

ATTENTION_OF_MODELS = [*resources.LEVELS, *resources.LARGE, "level 1 float16", "kernel 11", "kernel 13"]


def spilled(shape, table):
    """Bytes of a thread's registers that may be spilled, and instructions in innermost loops that may do so."""
    if shape.startswith("128 channels float32"):  # a tile's queries and output gradients are operands in 256 registers
        return (776, 341) if table else (272, 0)
    if "float32" in shape and table:
        return 72, 10
    return {"64 channels level 4": (88, 2), "2-D kernel 80": (128, 0)}.get(shape, (56, 0))


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
        stack_bytes, in_loops = spilled(row["shape"], row.get("D_TABLE") and not row.get("D_QUERY"))
        assert row["stack_bytes"] <= stack_bytes, what
        assert row["spills_in_loops"] <= in_loops, what
        warps = REGISTERS // (32 * row["registers"])  # that a multiprocessor can hold
        assert warps >= max(8, row["programs"] * row["num_warps"]), what
        assert row["shared_bytes"] <= SHARED[architecture] // (2 if published else 1), what
        assert row["matrix_instructions"], what
        if row["architecture"] in (90, 100) and row["slots"] == 64:
            assert row["matrix_instructions"] != ["HMMA"], what  # but those of the architecture's own
    assert {row["num_stages"] for row in bands} == {1, 2}
    for row in bands:
        what = (row["architecture"], row["shape"], row["num_stages"])
        spills = row["num_stages"] == 1 and architecture not in (90, 100)
        assert row["stack_bytes"] <= (16 if spills else 0), what
        assert REGISTERS // (32 * row["registers"]) >= 8, what
        assert row["shared_bytes"] <= (99 << 10) // (1 if row["num_stages"] == 2 else 2), what
        assert row["matrix_instructions"] == ["HMMA"], what
        assert row["instructions"] <= BAND_INSTRUCTIONS, what
