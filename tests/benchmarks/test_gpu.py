"""The GPU benchmark, without a GPU: what is measured, what is left out and why, and that peers compute what the op does."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest

from benchmarks import calls
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import tuner
from benchmarks.harness import Options
from benchmarks.sections import GRACE
from natjax.presets import PRESETS
from natjax_kernels.cases import Case, levels, published
from natjax_kernels.fused.configurations import Config

pytestmark = pytest.mark.once


def test_sections_need_a_gpu_and_its_packages_but_in_rehearsals():
    full, rehearsal = gpu.sections(rehearse=False), gpu.sections(rehearse=True)
    assert all(section.gpu for section in full.values())
    assert not any(section.gpu or "jax_triton" in section.needs for section in rehearsal.values())
    assert {name for name, section in full.items() if "jax_triton" in section.needs} == set(full) - {"peers"}


def test_all_sections_end_within_eight_minutes():
    others = sum(section.seconds + GRACE for name, section in gpu.sections(False).items() if name != "peers")
    assert others + 60 + GRACE <= gpu.ALL < 480  # a minute and more is left for the peers


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("op", {"status": "out of time", "rows": [{"microseconds": 1.0}, {"skipped": "no time"}]}, 0),
        ("op", {"status": "with errors", "rows": [{"error": "no"}]}, 1),
        ("op", {"status": "failed", "rows": [{"microseconds": 1.0}]}, 1),
        ("numerics", {"status": "complete", "rows": [{"passed": False}], "passed": False}, 1),
        ("op", {"status": "skipped", "reason": "no triton", "rows": []}, 1),
        ("op", {"status": "not asked for", "rows": []}, 0),
        ("peers", {"status": "skipped", "reason": "no torch", "rows": []}, 0),
        ("peers", {"status": "timed out", "rows": []}, 1),
    ],
)
def test_success_is_right_figures_of_all_sections(tmp_path, monkeypatch, name, content, code):
    monkeypatch.setattr(gpu, "run", lambda *_: [(name, content)])
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--sections", name, "--out", str(tmp_path)])
    assert gpu.main() == code
    assert json.loads((tmp_path / f"gpu_{name}.json").read_text()) == content


def test_floors_are_bytes_and_products_of_the_window():
    case, ceilings = levels(128, 2, "tiny")[0], {"copy_gigabytes_per_second": 4000.0, "matmul_teraflops": 800.0}
    found = calls.floors(case, "bfloat16", ceilings)
    tensor, scores = 128 * 56 * 56 * 2 * 32 * 2, 128 * 56 * 56 * 2 * 49
    assert found["forward"]["memory"] == pytest.approx(4 * tensor / 4e12 * 1e6)
    assert found["both"]["matrix"] == pytest.approx(7 * 2 * 32 * scores / 800e12 * 1e6)
    assert found["both"]["floor"] == found["both"]["memory"]


def test_cases_are_chosen_by_parts_of_their_names():
    chosen = calls.groups(Options(cases=["tiny level 1", "1-D"]))
    names = {group: [case.name for case in found] for group, found in chosen.items()}
    assert names == {
        "tiny": ["tiny level 1"],
        "dilated": ["tiny level 1 dilation 8"],
        "large": ["1-D of 32768"],
        "base": [],
    }


def test_tuning_knows_every_attention_of_every_published_model():
    known = {(case.spatial, case.kernel_size, case.dilation) for case in published()}
    wanted = set()
    for preset in PRESETS.values():
        for level in range(preset.config.num_levels):
            side = preset.image_size // 4 >> level
            for dilation in preset.config.layer_dilations(level):
                wanted.add(((side, side), preset.config.kernel_size, dilation))
    assert known == wanted
    assert len({case.name for case in published()}) == len(known)


def test_configurations_are_merged_and_sorted(tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps({"Z": {"kept": {"tile": [1]}}}))
    one = Config((4, 4), None, 64, True, 4)
    tuner.merge(path, "A", "b", one)
    tuner.merge(path, "A", "a", dataclasses.replace(one, num_warps=2))
    content = json.loads(path.read_text())
    assert list(content) == ["A", "Z"]
    assert list(content["A"]) == ["a", "b"]
    assert content["Z"] == {"kept": {"tile": [1]}}
    assert content["A"]["a"]["num_warps"] == 2


CASES = [
    Case("even kernel, full blocks", 1, (1000,), 1, 16, 600, bias=False),
    Case("dilated, whole blocks", 1, (1024,), 2, 16, 5, 8),
    Case("uneven sides", 2, (20, 33), 2, 16, (9, 5), 2),
    Case("3-D", 1, (9, 6, 7), 2, 16, (3, 3, 5)),
    Case("3-D even", 1, (9, 6, 7), 1, 16, (8, 4, 6), bias=False),
]
FIELDS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # slow, and as exact
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flex_attention_computes_what_the_op_does(case, monkeypatch):
    """From the blocks that PyTorch would make."""
    torch = pytest.importorskip("torch")
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")
    import jax.numpy as jnp

    from benchmarks.gpu import peers

    def both(mask, tokens, place):
        ours = block_mask(mask, tokens, place, rows=2)
        theirs = flex_attention.create_block_mask(mask, None, None, tokens, tokens, device=place)
        assert ours.seq_lengths == theirs.seq_lengths
        assert [name for name in FIELDS if not torch.equal(getattr(ours, name), getattr(theirs, name))] == []
        return ours

    block_mask = peers.block_mask
    monkeypatch.setattr(peers, "block_mask", both)
    torch.manual_seed(0)
    inputs = [torch.randn((case.batch, case.heads, math.prod(case.spatial), case.channels)) for _ in range(3)]
    rpb = torch.randn(case.rpb_shape) if case.bias else None
    out = peers.flex(case, rpb, "cpu", compiled=False)(*inputs)
    query, key, value = (jnp.asarray(x.transpose(1, 2).reshape(case.shape).numpy()) for x in inputs)
    bias = None if rpb is None else jnp.asarray(rpb.numpy())
    want = calls.op(case, "forward", "reference")(query, key, value, bias)
    np.testing.assert_allclose(out.transpose(1, 2).reshape(case.shape).numpy(), want, atol=1e-5)
