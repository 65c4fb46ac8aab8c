"""The cost model on paper: FLOPs are those of the library, halos those of the op's definition, bytes what follows by hand."""

import math
import pathlib

import numpy as np
import pytest

from benchmarks.scaling import __main__ as report
from benchmarks.scaling import costs, machines, work
from natjax import neighbors
from natjax.flops import count_parts
from natjax.presets import get_config
from natjax_kernels.plan import AxisWindow

pytestmark = pytest.mark.once


@pytest.mark.parametrize("preset", ["nat_tiny", "dinat_base"])
def test_work_is_what_the_library_counts(preset):
    config, found = get_config(preset), {}
    for layer in work.nat(config, (1024, 512)):
        found[layer.name] = found.get(layer.name, 0) + layer.macs
    assert found == {p.name: p.macs for p in count_parts(config, (1024, 512)) if p.name != "head"}


@pytest.mark.parametrize(
    ("length", "parts", "axis"),
    [
        (64, 4, AxisWindow(7)),
        (64, 16, AxisWindow(7)),
        (60, 4, AxisWindow(4, dilation=3)),
        (61, 8, AxisWindow(5, dilation=2, stride=2)),
        (48, 3, AxisWindow(6, causal=True)),
    ],
)
def test_halos_are_those_of_the_definition(length, parts, axis):
    seen = neighbors((length,), axis.kernel, dilation=axis.dilation, stride=axis.stride, is_causal=axis.causal)
    seen = np.where(seen < 0, seen.max(axis=1, keepdims=True), seen)  # what a causal window does not have
    part = math.ceil(length / parts)
    before = [start - seen[start : start + part].min() for start in range(0, length, part)]
    after = [seen[start : start + part].max() + 1 - min(start + part, length) for start in range(0, length, part)]
    assert work.reach(length, parts, axis) == (max(0, *before), max(0, *after))


def test_halos_of_a_ring_do_not_shift():
    assert work.reach(64, 4, AxisWindow(7, periodic=True)) == (3, 3)
    assert work.reach(64, 4, AxisWindow(4, dilation=2, periodic=True)) == (4, 2)


def test_bytes_of_halos():
    layer = work.layer("level", (64, 32), (AxisWindow(7),) * 2, channels=8, heads=2, ratio=3)
    token = 2 * 8 * 2  # k and v in bfloat16
    assert work.exchange(layer, (1, 1)) == (0, 0, 0)
    assert work.exchange(layer, (4, 1)) == (6 * 32 * token, 3 * 32 * token, 1)
    # Columns of 16 + 6 rows after the exchange of rows.
    assert work.exchange(layer, (4, 2)) == ((6 * 16 + 6 * 22) * token, (3 * 16 + 3 * 22) * token, 2)
    # Parts of 2 rows: the first rows see 6 more after them, which three neighbours have.
    assert work.exchange(layer, (32, 1)) == (2 * 5 * 32 * token, 5 * 32 * token, 3)


def test_maps_with_fewer_rows_than_devices_are_gathered():
    layers = [layer for layer in work.nat(get_config("nat_tiny"), (256, 256)) if layer.name == "level4"]
    split, gathered = (costs.cost(layers, (parts, 1), machines.MACHINES[0]) for parts in (8, 16))
    assert gathered.flops == 8 * split.flops
    assert gathered.received == 8 * 8 * 512 * 2 * 15 / 16


def test_the_page_has_the_tables():
    page = (pathlib.Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
    for name, rows in report.results().items():
        assert report.markdown(rows) in page, (
            f"{name}: python -m benchmarks.scaling prints another table than docs/scaling.md has"
        )
