"""The cost model on paper: FLOPs are those of the library, and bytes what follows by hand."""

import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.scaling import __main__ as report
from benchmarks.scaling import costs, machines, work
from natjax.flops import count_parts
from natjax.presets import get_config
from natjax_kernels.window import AxisWindow

pytestmark = pytest.mark.once


@pytest.mark.parametrize("preset", ["nat_tiny", "dinat_base"])
def test_work_is_what_the_library_counts(preset):
    config, found = get_config(preset), {}
    for layer in work.nat(config, (1024, 512)):
        found[layer.name] = found.get(layer.name, 0) + layer.macs
    assert found == {p.name: p.macs for p in count_parts(config, (1024, 512)) if p.name != "head"}


def test_bytes_of_halos():
    layer = work.layer("level", (64, 32), (AxisWindow(7),) * 2, channels=8, heads=2, ratio=3)
    token = 2 * 8 * 2  # k and v in bfloat16
    assert work.exchange(layer, (1, 1)) == (0, 0, 0)
    assert work.exchange(layer, (4, 1)) == (6 * 32 * token, 3 * 32 * token, 1)
    # Columns of 16 + 6 rows after the exchange of rows.
    assert work.exchange(layer, (4, 2)) == ((6 * 16 + 6 * 22) * token, (3 * 16 + 3 * 22) * token, 2)
    # Parts of 2 rows: the first rows see 5 more after them, which three neighbours have.
    assert work.exchange(layer, (32, 1)) == (2 * 5 * 32 * token, 5 * 32 * token, 3)
    # Padded to 66 rows, whose own borders are known at run time.
    assert work.exchange(layer, (3, 1)) == (2 * 6 * 32 * token, 6 * 32 * token, 1)


def test_windows_as_long_as_the_map_pass_parts_around_a_ring():
    layer = work.layer("level", (64, 32), (AxisWindow(64), AxisWindow(7)), channels=8, heads=2, ratio=3)
    assert work.exchange(layer, (8, 1)) == (56 * 32 * 32, 56 * 32 * 32, 7)


def test_maps_with_fewer_rows_than_devices_are_gathered():
    layers = [layer for layer in work.nat(get_config("nat_tiny"), (256, 256)) if layer.name == "level4"]
    split, gathered = (costs.cost(layers, (parts, 1), machines.MACHINES[0]) for parts in (8, 16))
    assert gathered.flops == 8 * split.flops
    assert gathered.received == 8 * 8 * 512 * 2 * 15 / 16


PROGRAM = r"""
import math, re
import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from benchmarks.scaling import work
import natjax

config = natjax.NatConfig(embed_dim=16, depths=(2, 1), num_heads=(1, 2), kernel_size=5)
graphdef, state = nnx.split(natjax.NatModel(config, rngs=nnx.Rngs(0)))
for parts in ((8, 1), (4, 2)):
    mesh = jax.make_mesh(parts, ("rows", "columns"))
    pixels = jax.ShapeDtypeStruct((1, 256, 64, 3), "float32", sharding=NamedSharding(mesh, P(None, "rows", "columns")))
    forward = jax.jit(lambda state, pixels: nnx.merge(graphdef, state)(pixels).pooler_output)
    text = forward.lower(jax.device_put(state, NamedSharding(mesh, P())), pixels).compile().as_text()
    shapes = re.findall(r"= \(?f32\[([\d,]+)\]\S* collective-permute(?:-start)?\(", text)
    received = sum(4 * math.prod(map(int, shape.split(","))) for shape in shapes)
    expected = sum(work.exchange(each, parts)[0] for each in work.nat(config, (256, 64)))
    assert received == 4 / work.BYTES * expected, (parts, received, expected)
"""


def test_bytes_are_those_of_the_compiled_program():
    more = {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ | more, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_page_has_the_tables():
    page = (pathlib.Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
    for name, rows in report.results().items():
        assert report.markdown(rows) in page, (
            f"{name}: python -m benchmarks.scaling prints another table than docs/scaling.md has"
        )
