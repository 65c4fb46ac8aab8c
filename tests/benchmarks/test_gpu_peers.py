"""flex_attention as the GPU benchmark sets it up: it computes what the op does, from the blocks that PyTorch would make."""

import math
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

torch = pytest.importorskip("torch")
flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")
from benchmarks.gpu import peers  # noqa: E402
from benchmarks.gpu.cases import Case  # noqa: E402

CASES = [
    Case("even kernel, full blocks", 1, (1000,), 1, 16, (600,), bias=False),
    Case("dilated, whole blocks", 1, (1024,), 2, 16, (5,), 8),
    Case("uneven sides", 2, (20, 33), 2, 16, (9, 5), 2),
    Case("3-D", 1, (9, 6, 7), 2, 16, (3, 3, 5)),
    Case("3-D even", 1, (9, 6, 7), 1, 16, (8, 4, 6), bias=False),
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # slow, and as exact
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flex_attention_computes_what_the_op_does(case, monkeypatch):
    def both(mask, tokens, place):
        ours = block_mask(mask, tokens, place, rows=2)
        theirs = flex_attention.create_block_mask(mask, None, None, tokens, tokens, device=place)
        assert ours.seq_lengths == theirs.seq_lengths
        for name in (
            "kv_num_blocks",
            "kv_indices",
            "full_kv_num_blocks",
            "full_kv_indices",
            "q_num_blocks",
            "q_indices",
        ):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        return ours

    block_mask = peers.block_mask
    monkeypatch.setattr(peers, "block_mask", both)
    torch.manual_seed(0)
    shape = (case.batch, case.heads, math.prod(case.spatial), case.channels)
    inputs = [torch.randn(shape) for _ in range(3)]
    rpb = torch.randn((case.heads, *(2 * k - 1 for k in case.kernel_size))) if case.bias else None
    out = peers.flex(case, rpb, "cpu", compiled=False)(*inputs)
    assert (out - peers.window_reference(case, inputs, rpb)).abs().max() < 1e-5
