"""Configurations of the fused kernels: those that are estimated, those that were measured, and which of them is taken."""

import dataclasses
import json

import pytest

from natjax_kernels.fused import band
from natjax_kernels.fused.configurations import KERNELS, Case, Config, override
from natjax_kernels.triton import choice
from natjax_kernels.triton.choice import candidates, choose, estimate
from natjax_kernels.window import Window

pytestmark = pytest.mark.once  # all of it is static


def case(kernel="fwd", spatial=(56, 56), size=7, dilation=1, channels=32, dtype="bfloat16", bias=True, capability=90):
    rank = len(spatial)
    window = Window((size,) * rank, (dilation,) * rank, (1,) * rank, (False,) * rank)
    return Case(kernel, spatial, window, channels, dtype, bias, capability)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("spatial", [(7,), (4096,), (56, 56), (7, 7), (112, 96), (8, 9, 10)], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_configurations_are_legal(kernel, spatial, capability):
    for dtype, bias, channels in (("bfloat16", True, 32), ("float32", True, 64), ("float16", False, 128)):
        this = case(kernel, spatial, channels=channels, dtype=dtype, bias=bias, capability=capability)
        for config in [estimate(this), *candidates(this)]:
            assert config.slots in (16, 32, 64)
            assert config.chunk in (16, 32, 64, 128, 256)
            assert config.num_warps in (1, 2, 4, 8, 16)
            assert not (config.resident and config.block)


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("kernel", KERNELS)
def test_tiles_of_wide_floats_are_small(kernel, capability):
    """Larger ones need more shared memory than a block of sm_89 may have: tests/deviceless/test_resources.py compiles some."""
    for channels, most in ((32, 64), (64, 16 if kernel == "bwd_dq" else 32), (65, 16), (128, 16)):
        this = case(kernel, channels=channels, dtype="float32", capability=capability)
        assert max(config.slots for config in candidates(this)) == most


@pytest.mark.parametrize("kernel", KERNELS)
def test_consumer_blackwell_is_short_of_registers_too(kernel):
    """It lacks the matrix units of sm_90 and sm_100, which read their operands from shared memory."""
    of = {
        capability: [estimate(case(kernel, dilation=d, capability=capability)) for d in (1, 8)]
        for capability in (89, 100, 120, 121)
    }
    assert of[120] == of[121] == of[89]
    assert kernel == "fwd" or of[100] != of[89]


def test_measured_configurations_come_first(monkeypatch):
    this = case()
    measured = Config((4, 4), None, 128, True, 2, 3)
    table = json.loads(json.dumps({"NVIDIA H200": {this.key: dataclasses.asdict(measured)}}))
    monkeypatch.setattr(choice, "_measured", lambda: table)
    assert choose(this, "NVIDIA H200") == measured
    assert choose(case(capability=80), "NVIDIA A100") == estimate(case(capability=80))
    assert choose(case(bias=False), "NVIDIA H200") == estimate(case(bias=False))


def test_measured_configurations_serve_other_devices_of_the_architecture(monkeypatch):
    """But come after those of the device itself."""
    this, both = case(), case("bwd_dq")
    other, own = Config((4, 4), None, 128, True, 2, 3), Config((8, 8), None, 64, False, 4, 2)
    table = {
        "NVIDIA H100 80GB HBM3": {c.key: dataclasses.asdict(other) for c in (this, both)},
        "NVIDIA H200": {both.key: dataclasses.asdict(own)},
    }
    monkeypatch.setattr(choice, "_measured", lambda: table)
    assert choose(this, "NVIDIA H200") == choose(this, "NVIDIA GH200 480GB") == other
    assert choose(both, "NVIDIA H200") == own
    assert choose(both, "NVIDIA H100 80GB HBM3") == other
    for capability in (89, 100):
        elsewhere = case(capability=capability)
        assert choose(elsewhere, "NVIDIA L4") == estimate(elsewhere)


def test_measured_configurations_of_a_design_that_changed_are_passed_over(monkeypatch):
    """Where they were named, they are refused."""
    this = case()
    stale = dataclasses.replace(band.configurations(this)[0], num_warps=8)
    table = {"NVIDIA H200": {this.key: dataclasses.asdict(stale)}}
    monkeypatch.setattr(choice, "_measured", lambda: table)
    assert choose(this, "NVIDIA H200") == estimate(this)
    with override(this, stale), pytest.raises(NotImplementedError, match="the band design cannot compute"):
        choose(this, "NVIDIA H200")


def test_measured_configurations_can_be_read(monkeypatch):
    """As they come back from the file: those that are there, and one as `benchmarks.tune` would write it."""
    this, measured = case(), Config((4, 4), (8, 8), 64, False, 2, 3)
    written = json.loads(json.dumps({"NVIDIA H200": {this.key: dataclasses.asdict(measured)}}))
    monkeypatch.setattr(choice, "_measured", lambda: written)
    assert choose(this, "NVIDIA H200") == measured
    monkeypatch.undo()
    for cases in choice._measured().values():
        for found in cases.values():
            Config(**found)


def test_keys_of_cases_tell_them_apart():
    cases = [
        case(), case("bwd_dkv"), case(size=5), case(dilation=2), case(channels=64), case(dtype="float32"),
        case(bias=False), case(spatial=(56, 57)), case(spatial=(56,)), case(capability=100),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (2, 1), (False, False))),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (1, 1), (True, False))),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (1, 1), (False, False), (True, False))),
        dataclasses.replace(case(), window=Window((7, 7), (1, 1), (1, 1), (False, False), (), (1, 2))),
        dataclasses.replace(case(), value_dim=16), dataclasses.replace(case(), group=2), dataclasses.replace(case(), masked=True),
    ]  # fmt: skip
    assert len({c.key for c in cases}) == len(cases)
    assert case().key == "fwd 56:7x1 56:7x1 D32 bfloat16 rpb sm_90"  # as files of measured ones have it
