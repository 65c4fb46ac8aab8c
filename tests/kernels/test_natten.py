"""The op against NATTEN 0.21.7's own outputs: stride, causality, grouped heads, additional keys, merging.

tests/goldens/natten_021.npz has what NATTEN computed, so that the comparison runs everywhere. Where NATTEN is installed
(`pip install --no-deps natten==0.21.7`, which compiles nothing without CUDA), its outputs are computed anew, and its windows
compared with the definition's. To make the file again, `python tests/kernels/test_natten.py` in such an environment.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import pytest
from definition import Axis, Call
from op_oracle import TOLERANCE

from natjax_kernels import explain, merge_attentions, neighborhood_attention

pytestmark = pytest.mark.once

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "natten_021.npz"
VERSION = "0.21.7"

CASES = {
    "1-D strided": Call((Axis(23, 6, stride=4),), 2, 2, 8, 8, batch=2),
    "2-D strided, dilated, causal": Call((Axis(11, 3, 2, 2), Axis(9, 4, stride=3, is_causal=True)), 2, 2, 8, 8),
    "2-D causal, dilated": Call((Axis(9, 3, 3, is_causal=True), Axis(8, 4, 2, is_causal=True)), 1, 1, 8, 8),
    "3-D": Call((Axis(5, 3, stride=2, is_causal=True), Axis(4, 2, 2), Axis(6, 5, stride=3)), 1, 1, 8, 8),
    "grouped heads": Call((Axis(7, 3), Axis(6, 4, stride=2)), 6, 2, 8, 8, scale=0.5),
    "additional keys": Call((Axis(9, 3, 2, 2), Axis(7, 5)), 2, 2, 8, 8, batch=2, additional=3),
    "additional keys, grouped heads, causal": Call((Axis(17, 4, 2, is_causal=True),), 4, 1, 8, 8, additional=5),
    "additional keys beside everything": Call((Axis(5, 5), Axis(4, 4)), 2, 2, 8, 8, additional=2),
}
# Queries that attend to three maps, each with a window of its own.
MERGED = [Call((Axis(8, k, d), Axis(7, k)), 2, 2, 8, 8) for k, d in ((3, 1), (4, 2), (7, 1))]


@pytest.fixture(scope="module")
def goldens():
    with np.load(GOLDENS) as archive:
        return {name: archive[name] for name in archive.files}


def arrays_of(goldens, name):
    """Returns the inputs, and out and lse."""
    arrays = {key.rpartition("/")[2]: x for key, x in goldens.items() if key.startswith(f"{name}/")}
    return arrays, (arrays.pop("out"), arrays.pop("lse"))


def attend(implementation, call, arrays):
    options = call.options() | {"implementation": implementation}
    try:
        explain(**arrays, **options)
    except NotImplementedError as error:
        pytest.skip(str(error))
    return neighborhood_attention(**arrays, **options, return_lse=True)


def assert_close(got, expected):
    for x, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, right, rtol=0, atol=TOLERANCE["float32"])


@pytest.mark.parametrize("name", CASES)
def test_equals_natten(implementation, name, goldens):
    arrays, expected = arrays_of(goldens, name)
    assert_close(attend(implementation, CASES[name], arrays), expected)


def test_merges_as_natten_does(implementation, goldens):
    parts = []
    for number, call in enumerate(MERGED):
        arrays, expected = arrays_of(goldens, f"merged {number}")
        parts.append(attend(implementation, call, arrays | {"query": goldens["merged 0/query"]}))
        assert_close(parts[-1], expected)
    assert_close(merge_attentions(*zip(*parts, strict=True)), (goldens["merged/out"], goldens["merged/lse"]))


@pytest.fixture
def natten():
    """NATTEN, where it is; its CPU path warns of being slow."""
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("natten")
        assert module.__version__ == VERSION
        yield module


def test_goldens_are_what_natten_computes(natten, goldens):
    made = make(natten, goldens)
    assert made.keys() | {"meta"} == goldens.keys()
    for name, x in made.items():
        np.testing.assert_allclose(x, goldens[name], rtol=0, atol=1e-6, err_msg=name)


def test_windows_are_those_of_natten(natten):
    """Of every axis up to 8: queries of 0 weigh their neighbours alike, and values tell them apart."""
    import torch

    channels = 8
    for length in range(2, channels + 1):
        for dilation in range(1, length // 2 + 1):
            for kernel in range(2, length // dilation + 1):
                for stride in range(1, kernel + 1):
                    # A causal window of the whole axis is not among what NATTEN has on a CPU.
                    for causal in (False, True)[: 1 + (kernel < length)]:
                        axis = Axis(length, kernel, dilation, stride, causal)
                        tokens = torch.zeros(1, length, 1, channels)
                        tokens[0, range(length), 0, range(length)] = 1
                        out = _call(natten, Call((axis,)), torch.zeros_like(tokens), tokens, tokens)[0][0, :, 0]
                        seen = [row.nonzero().flatten().tolist() for row in out]
                        assert seen == [[key for key, _ in window] for window in axis.neighbours()], axis


def make(natten, inputs=None):
    """Returns all arrays of the file: inputs (new ones, or those of `inputs`) and what NATTEN makes of them."""
    import torch

    made = {}

    def compute(name, call, seed, **shared):
        drawn, _, _ = call.draw("float32", seed)
        drawn = {key: np.round(np.asarray(x) * 16) / 16 for key, x in drawn.items() if key not in shared}
        if inputs:
            drawn = {key: inputs[f"{name}/{key}"] for key in drawn}
        out, lse = _call(natten, call, **{key: torch.tensor(x) for key, x in (drawn | shared).items()})
        made.update({f"{name}/{key}": x for key, x in drawn.items()})
        made.update({f"{name}/out": out.numpy(), f"{name}/lse": lse.numpy()})
        return out, lse

    for seed, (name, call) in enumerate(CASES.items()):
        compute(name, call, seed)
    parts = []
    for number, call in enumerate(MERGED):
        shared = {"query": made["merged 0/query"]} if number else {}
        parts.append(compute(f"merged {number}", call, 100 + number, **shared))
    outputs, lses = ([x.flatten(1, 2) for x in part] for part in zip(*parts, strict=True))
    merged = natten.merge_attentions(outputs, lses, torch_compile=False, use_autograd_fix=False)
    for key, x, like in zip(("out", "lse"), merged, parts[0], strict=True):
        made[f"merged/{key}"] = x.reshape(like.shape).numpy()
    return made


def _call(natten, call, query, key, value, additional_keys=None, additional_values=None):
    """Returns out and lse of NATTEN's own function of 1-D, 2-D or 3-D."""
    options = call.options()
    assert not any(options.pop("periodic"))
    function = getattr(natten, f"na{len(call.axes)}d")
    more = {"additional_keys": additional_keys, "additional_values": additional_values}
    return function(query, key, value, **options, **more, return_lse=True)


if __name__ == "__main__":
    import natten
    import torch

    warnings.simplefilter("ignore")
    meta = {
        "made_by": "python tests/kernels/test_natten.py",
        "versions": {"natten": natten.__version__, "torch": torch.__version__, "python": sys.version.split()[0]},
        "backend": "flex-fna, not compiled, float32 on a CPU",
        "arrays": "<case>/<argument>, <case>/out, <case>/lse; heads last. Inputs are standard normal, in 16ths.",
        "cases": {
            name: repr(call) for name, call in (CASES | {f"merged {i}": c for i, c in enumerate(MERGED)}).items()
        },
        "merged": "merge_attentions of what the query of `merged 0` has from `merged 0`, `merged 1` and `merged 2`",
    }
    np.savez_compressed(GOLDENS, meta=json.dumps(meta), **make(natten))
    print(f"{GOLDENS}: {GOLDENS.stat().st_size} bytes")
