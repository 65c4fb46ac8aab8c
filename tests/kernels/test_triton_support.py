"""Where the fused kernels run, and why they do not elsewhere: calls they refuse, devices, what is installed, exports."""

import dataclasses
import functools
import importlib.util
import os
import re
import sys

import jax
import jax.export
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from natjax_kernels import default_implementation, explain, neighborhood_attention
from natjax_kernels.fused.configurations import KERNELS, Case, override
from natjax_kernels.problem import make_problem
from natjax_kernels.triton import launch as launching
from natjax_kernels.triton import support
from natjax_kernels.triton.choice import choose, estimate
from natjax_kernels.window import Window

pytestmark = pytest.mark.once  # all of it is static


def test_a_refusal_is_that_of_the_configurations_of_now():
    """Of tiles of one query, whose tables do not fit, while somebody names them."""
    x = jax.ShapeDtypeStruct((1, 96, 96, 4, 16), "bfloat16")
    rpb = jax.ShapeDtypeStruct((4, 121, 121), "bfloat16")
    window = Window((61, 61), (1, 1), (1, 1), (False, False))
    this = Case("bwd_dq", (96, 96), window, 16, "bfloat16", True, 90)
    ask = functools.partial(explain, x, x, x, rpb=rpb, kernel_size=61, implementation="triton")
    assert ask().startswith("triton")
    with (
        override(this, dataclasses.replace(estimate(this), tile=(1, 1))),
        pytest.raises(NotImplementedError, match="would take arrays of"),
    ):
        ask()
    assert ask().startswith("triton")


REFUSALS = {
    "float64": ((1, 8, 8, 2, 8), "float64", 8, "compute in float32, bfloat16, float16; query is float64"),
    "wide heads": ((1, 8, 8, 2, 129), "float32", 129, "at most 128 channels in float32; these have 129"),
    "wide values": ((1, 8, 8, 2, 8), "bfloat16", 257, "at most 256 channels in bfloat16; these have 257"),
    "empty batch": ((0, 8, 8, 2, 8), "float32", 8, "at least one batch entry"),
    "many heads": (
        (1, 8, 8, 65536, 8),
        "float32",
        8,
        "at most 65535 programs for all heads of a tile; these need 65536",
    ),
    "vast maps": ((1, 2**16, 2**15, 1, 8), "float32", 8, "fewer than 2\\*\\*31 tokens"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_why(refusal, x64):
    shape, dtype, channels, reason = refusal
    query, value = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((*shape[:-1], channels), dtype)
    with pytest.raises(NotImplementedError, match=f"implementation='triton' cannot run: .*{reason}"):
        explain(query, query, value, kernel_size=3, implementation="triton")


def test_maps_whose_halos_reach_past_32_bits_are_refused():
    """The blocks of a large halo may end behind it, past the end of the map, before they are held to it by a minimum."""
    query = jax.ShapeDtypeStruct((1, 1000, 1000, 2147, 1, 8), "bfloat16")  # 483648 tokens fewer than 2**31
    refusal = r"count fewer than 2\*\*31 tokens; those of \(1000, 1000, 2147\) and their halos are 21\d{8}"
    with pytest.raises(NotImplementedError, match=refusal):
        explain(query, query, query, kernel_size=10, implementation="triton")
    assert explain(query, query, query, kernel_size=3, implementation="triton").startswith("triton")


def test_tables_that_are_too_large_are_refused():
    x = jax.ShapeDtypeStruct((1, 256, 256, 4, 128), "bfloat16")
    rpb = jax.ShapeDtypeStruct((4, 189, 189), "bfloat16")
    with pytest.raises(
        NotImplementedError, match=r"the bias of this window would take arrays of 1\.\d GiB, more than 1"
    ):
        explain(x, x, x, rpb=rpb, kernel_size=95, implementation="triton")
    assert explain(x, x, x, kernel_size=80, implementation="triton") == "triton: named by the caller"


def test_the_interpreter_runs_only_when_named():
    x = jax.ShapeDtypeStruct((1, 8, 8, 2, 8), "float32")
    assert explain(x, x, x, kernel_size=3).startswith("xla: not triton, as Triton's interpreter is for tests")


@pytest.mark.parametrize("before", [None, "", "/somewhere"])
def test_importing_jax_triton_leaves_tritons_cache_alone(monkeypatch, tmp_path, before):
    """jax-triton 0.3 empties the variable, and Triton then has no cache for launches of its own."""
    (tmp_path / "jax_triton.py").write_text("import os\nos.environ['TRITON_CACHE_DIR'] = ''\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jax_triton", raising=False)
    if before is None:
        monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    else:
        monkeypatch.setenv("TRITON_CACHE_DIR", before)
    assert launching._jax_triton() is sys.modules.pop("jax_triton")
    assert os.environ.get("TRITON_CACHE_DIR") == before


@dataclasses.dataclass
class Gpu:
    """A device that is not here."""

    device_kind: str = "NVIDIA H200"
    platform: str = "gpu"
    compute_capability: str = "9.0"


@pytest.mark.parametrize(
    ("gpu", "missing", "version", "reason"),
    [
        (Gpu(), [], "3.6.0", None),
        (Gpu(), [], "3.9.0", r"for Triton 3.6 and 3.9.0 is installed: pip install .*'triton>=3.6,<3.7'"),
        (Gpu(), ["jax_triton"], "3.6.0", r"jax_triton cannot be imported: pip install 'jax-triton>="),
        (Gpu("Tesla V100-SXM2-16GB", "gpu", "7.0"), [], "3.6.0", "need compute capability 8.0 and .* has 7.0"),
        (Gpu("AMD Instinct MI300X", "gpu", "gfx942"), [], "3.6.0", "run on NVIDIA GPUs and this is AMD Instinct MI300X"),
        (Gpu("TPU v5e", "tpu", ""), [], "3.6.0", "run on NVIDIA GPUs and this is TPU v5e"),
    ],
)  # fmt: skip
def test_devices(monkeypatch, gpu, missing, version, reason):
    monkeypatch.setattr(support, "interpreted", lambda: False)
    monkeypatch.setattr(launching, "interpreted", lambda: False)
    monkeypatch.setattr(support, "device", lambda: gpu)
    monkeypatch.setattr(support, "_triton_version", lambda: version)
    monkeypatch.setattr(launching, "device", lambda: gpu)
    find = importlib.util.find_spec
    here = ("triton", "jax_triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name not in missing if name in here else find(name))
    x = jax.ShapeDtypeStruct((1, 56, 56, 2, 32), "bfloat16")
    why = support.why_not(make_problem(x, x, x, kernel_size=7), named=False)
    assert why is None if reason is None else re.search(reason, why)


def test_of_a_split_map_the_part_of_a_device_is_judged():
    mesh = AbstractMesh((8,), ("space",), axis_types=(AxisType.Explicit,))
    whole = jax.ShapeDtypeStruct((1, 2**16, 2**15, 1, 8), "bfloat16")
    split = whole.update(sharding=NamedSharding(mesh, PartitionSpec(None, "space")))
    assert support.why_not(make_problem(split, split, split, kernel_size=3), named=True) is None
    reason = support.why_not(make_problem(whole, whole, whole, kernel_size=3), named=True)
    assert "fewer than 2**31 tokens" in reason


def test_a_gpu_that_is_not_here():
    x, wide = (jax.ShapeDtypeStruct((1, 56, 56, 2, d), "bfloat16") for d in (32, 512))
    problem, gpu = make_problem(x, x, x, kernel_size=7), support.GPU(80, "NVIDIA A100-SXM4-80GB", 108)
    found = support.configured(problem, gpu)
    assert [case.kernel for case, _ in found] == list(KERNELS)
    assert {case.capability for case, _ in found} == {80}
    assert [config for _, config in found] == [choose(case, gpu.kind) for case, _ in found]
    assert support.why_not_on(problem, gpu) is None
    assert "these have 512" in support.why_not_on(make_problem(wide, wide, wide, kernel_size=7), gpu)


def test_exporting_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(support, "_why_not_here", lambda named: None)  # as if the default device were one
    x = jax.ShapeDtypeStruct((1, 8, 8, 2, 8), "float32")
    assert explain(x, x, x, kernel_size=3) == "triton: the fastest one"
    with default_implementation("xla"):
        exported = jax.export.export(jax.jit(lambda x: neighborhood_attention(x, x, x, kernel_size=3)))(x)
        with default_implementation(None):
            assert explain(x, x, x, kernel_size=3) == "triton: the fastest one"
    assert explain(x, x, x, kernel_size=3) == "triton: the fastest one"
    np.testing.assert_array_equal(exported.call(ones := np.ones(x.shape, x.dtype)), ones)
    with pytest.raises(ValueError, match="implementation must be None or one of"), default_implementation("cuda"):
        pass
