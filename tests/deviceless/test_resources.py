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
SHARED = {80: 164 << 10, 89: 100 << 10, 90: 228 << 10, 100: 228 << 10, 120: 100 << 10}  # bytes of a multiprocessor
RESERVED = 1 << 10  # of them, for each block

BAND_INSTRUCTIONS = 1024  # of which some 650 are for an entry of the batch: 10 per score

LARGE_WINDOWS = [case.name for case in resources.cases.LARGE]
ATTENTION_OF_MODELS = [*resources.LEVELS, *resources.LARGE, "level 1 float16", "kernel 11", "kernel 13"]
# Compiling takes a second per kernel: all shapes for Hopper, but levels at 384 px for the leanest architecture, few for the
# others. benchmarks/results/resources.json has all of them.
FEW = [*resources.LEVELS, "level 1 float32", "256 channels", "one key head, masked", "2-D kernel 80"]
SHAPES = {90: list(resources.SHAPES), 120: [*resources.LEVELS, *resources.OTHERS]}


def spilled(architecture, shape, table):
    """Bytes of a thread's registers that may be spilled, and instructions in innermost loops that may do so."""
    if shape.startswith("128 channels float32"):  # a tile's queries and output gradients are operands in 256 registers
        return (776, 341) if table else (272, 0)
    if "masked" in shape or shape == "capped":
        return 96, 0
    if shape == "256 channels":
        return (560, 11) if architecture == 100 else (80, 0)
    if "float32" in shape:
        return (72, 10) if table else (48, 0)
    if shape == "64 channels level 4":
        return 88, 2
    if shape in LARGE_WINDOWS and architecture == 100:
        return 128, 10
    return {90: 16, 100: 8}.get(architecture, 56), 0


def test_spills_are_found_in_the_loops_that_compute_weights():
    code = """
        /*0000*/ STL [R1], R2;
        /*0010*/ LDL R2, [R1];
        /*0020*/ MUFU.EX2 R3, R2;
        /*0030*/ STL [R1+0x4], R3;
        /*0040*/ @P0 BRA 0x10;
        /*0050*/ LDL R4, [R1+0x4];
        /*0060*/ @P1 BRA 0x0;
        /*0070*/ SYNCS.PHASECHK R5;
        /*0080*/ LDL R5, [R1];
        /*0090*/ @!P2 BRA 0x70;
    """
    assert resources.spills_in_loops(code) == 2
    assert [depth for depth, _ in resources.loops(code)] == [1, 2, 1]


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_every_shape(architecture):
    rows = resources.report_apart(architecture, SHAPES.get(architecture, FEW))
    bands = [row for row in rows if row["kernel"] == "band"]
    rows = [row for row in rows if row["kernel"] != "band"]
    assert {row["kernel"] for row in rows} == {"fwd", "bwd_dq", "bwd_dkv"}
    for row in rows:
        what = (row["architecture"], row["shape"], row["kernel"])
        published = row["shape"] in ATTENTION_OF_MODELS
        stack_bytes, in_loops = spilled(architecture, row["shape"], row.get("D_TABLE") and not row.get("D_QUERY"))
        assert row["stack_bytes"] <= stack_bytes, what
        assert row["spills_in_loops"] <= in_loops, what
        warps = REGISTERS // (
            32 * (row["registers"] + 7 & ~7)
        )  # that a multiprocessor can hold; it gives out eight at a time
        assert warps >= max(8, row["programs"] * row["num_warps"]), what
        blocks = SHARED[architecture] // (row["shared_bytes"] + RESERVED)
        assert blocks >= max(2 if published else 1, row["programs"]), what
        assert row["matrix_instructions"], what
        if row["architecture"] in (90, 100) and row["slots"] == 64:
            assert row["matrix_instructions"] != ["HMMA"], what  # but those of the architecture's own
    assert {row["num_stages"] for row in bands} == {1, 2}
    for row in bands:
        what = (row["architecture"], row["shape"], row["num_stages"])
        spills = row["num_stages"] == 1 and architecture not in (90, 100)
        assert row["stack_bytes"] <= (16 if spills else 0), what
        assert REGISTERS // (32 * (row["registers"] + 7 & ~7)) >= row["programs"] * row["num_warps"], what
        assert SHARED[architecture] // (row["shared_bytes"] + RESERVED) >= row["programs"], what
        assert row["matrix_instructions"] == ["HMMA"], what
        assert row["instructions"] <= BAND_INSTRUCTIONS, what
