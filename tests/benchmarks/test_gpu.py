"""The GPU benchmark, without a GPU: what is measured, what is left out and why, and that peers compute what the op does."""

import dataclasses
import json
import math

import pytest

from benchmarks import harness
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cases, summary, tuner
from natjax.presets import PRESETS
from natjax_kernels.cases import Case, levels, published
from natjax_kernels.fused.configurations import Config

pytestmark = pytest.mark.once


def test_missing_packages_skip_what_needs_them(monkeypatch):
    missing = {"jax_triton", "optax", "transformers"}
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name in missing else name)
    assert gpu.lacking(gpu.SECTIONS, rehearse=False) == {
        **dict.fromkeys(("numerics", "op", "scaling"), "skipped: no jax_triton"),
        "models": "skipped: no jax_triton, optax",
        "peers": "without Swin and ConvNeXt: no transformers",
    }
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "PIL" else name)
    assert gpu.lacking(gpu.SECTIONS, rehearse=False) == {"models": "without training steps: no PIL"}


def test_all_sections_end_within_eight_minutes():
    others = sum(seconds + harness.GRACE for section, seconds in gpu.SECTIONS.items() if section != "peers")
    assert others + 60 + harness.GRACE <= gpu.ALL < 480  # a minute and more is left for the peers


def test_floors_are_bytes_and_products_of_the_window():
    case, ceilings = levels(128, 2, "tiny")[0], {"copy_gigabytes_per_second": 4000.0, "matmul_teraflops": 800.0}
    found = cases.floors(case, "bfloat16", ceilings)
    tensor, scores = 128 * 56 * 56 * 2 * 32 * 2, 128 * 56 * 56 * 2 * 49
    assert found["forward"]["memory"] == pytest.approx(4 * tensor / 4e12 * 1e6)
    assert found["both"]["matrix"] == pytest.approx(7 * 2 * 32 * scores / 800e12 * 1e6)
    assert found["both"]["floor"] == found["both"]["memory"]


def test_cases_are_chosen_by_parts_of_their_names():
    chosen = cases.groups(cases.Options(False, 1, ["tiny level 1", "1-D"]))
    names = {group: [case.name for case in found] for group, found in chosen.items()}
    assert names == {
        "tiny": ["tiny level 1"],
        "dilated": ["tiny level 1 dilation 8"],
        "large": ["1-D of 32768"],
        "base": [],
    }


def test_only_results_of_one_kind_of_device_are_compared():
    labels = {"case": "tiny level 1", "dtype": "bfloat16", "what": "forward"}
    op = [
        labels | {"implementation": "triton", "microseconds": 100.0, "times_the_floor": 2.5},
        labels | {"implementation": "xla", "microseconds": 700.0},
    ]
    peers = [labels | {"peer": "flex_attention", "microseconds": 400.0}]
    sections = {name: {} for name in gpu.SECTIONS}
    sections["op"] = {"provenance": {"device": "H200"}, "rows": op}
    sections["peers"] = {"provenance": {"device": "H200"}, "rows": peers}
    found, _ = summary.summarise(sections)
    assert found["attention"][0]["faster_than"] == {"flex_attention": 4.0, "xla": 7.0}
    sections["peers"]["provenance"] = {"device": "A100"}
    found, text = summary.summarise(sections)
    assert found["attention"][0]["faster_than"] == {"xla": 7.0}
    assert "peers is of A100, not of H200: it is not compared." in text


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
    assert (out - peers.window_reference(case, inputs, rpb)).abs().max() < 1e-5
