"""What natjax writes, as PyTorch and transformers 4.40.2 read it, and interpolation against PyTorch's."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import natjax
import natjax_convert

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.once

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CLASSES = {
    "hf_nat": "NatForImageClassification",
    "hf_nat_layer_scale": "NatForImageClassification",
    "hf_dinat": "DinatForImageClassification",
    "hf_nat_backbone": "NatBackbone",
    "hf_dinat_backbone": "DinatBackbone",
}


@pytest.mark.parametrize("name", ["shilabs_nat", "shilabs_dinat_layer_scale"])
def test_torch_loads_what_was_written(tmp_path, name):
    original = torch.load(GOLDENS / name / "checkpoint.pth", weights_only=True)
    args = json.loads((GOLDENS / name / "provenance.json").read_text())["args"]
    path = tmp_path / "new.pth"
    natjax_convert.convert(
        GOLDENS / name / "checkpoint.pth", path, dilations=args.get("dilations") or "none", to="shilabs"
    )
    written = torch.load(path, weights_only=True)
    assert set(written) == set(original)
    for key, tensor in original.items():
        assert written[key].dtype == tensor.dtype
        assert torch.equal(written[key], tensor)


@pytest.mark.parametrize("expanded", ["small", "large"])
def test_expanded_tensors(tmp_path, expanded):
    """One that is not part of the model is no obstacle, and none unfolds to more than the file has."""
    tensors = torch.load(GOLDENS / "shilabs_nat" / "checkpoint.pth", weights_only=True)
    bias = tensors["head.bias"]
    tensors["head.bias"] = torch.tensor([0.5]).expand(bias.shape if expanded == "small" else (2**30,))
    torch.save({"model": tensors, "beside": torch.zeros(1).expand(2**40)}, tmp_path / "x.pth")
    read = natjax_convert.read_state_dict(tmp_path / "x.pth")
    if expanded == "small":
        np.testing.assert_array_equal(np.asarray(read["head.bias"]), np.full(bias.shape, 0.5))
    else:
        with pytest.raises(natjax.CheckpointError, match=r"shape \(1073741824,\) is larger than the whole file"):
            np.asarray(read["head.bias"])


def test_files_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(np.asarray(natjax_convert.read_state_dict(tmp_path / "x.pth")["a"]), np.arange(3))


def test_tensors_that_share_and_stride_a_storage(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"a": base.T, "b": base[1:, 2:4], "c": base[:, :1].expand(4, 3), "d": torch.nn.Parameter(base)}
    tensors |= {"e": torch.zeros(0, 5), "f": torch.tensor(2.5), "g": torch.arange(3)}
    torch.save(tensors, tmp_path / "x.pth")
    read = natjax_convert.read_state_dict(tmp_path / "x.pth")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.asarray(read[name]), tensor.detach().numpy())


@pytest.mark.parametrize("sizes", [(3, 5), (7, 11), (11, 7), (7, 3), (7, 7), (5, 13)])
def test_resize_rpb_is_bicubic_interpolation(sizes):
    old, new = sizes
    rpb = np.random.default_rng(0).normal(size=(4, 2 * old - 1, 2 * old - 1))
    expected = torch.nn.functional.interpolate(
        torch.tensor(rpb)[None], size=(2 * new - 1,) * 2, mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(natjax_convert.resize_rpb(rpb, new), expected[0].numpy(), atol=1e-12)
    single = natjax_convert.resize_rpb(rpb.astype(np.float32), new)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected[0].numpy(), atol=1e-6)


# In a process of its own, with a stand-in for NATTEN: transformers looks for it on import, loading weights needs none of it.
LOAD = """
import importlib.machinery, sys, types, numpy as np
def unused(*_): raise AssertionError
for name in ("natten", "natten.functional"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["natten"].functional = sys.modules["natten.functional"]
sys.modules["natten.functional"].natten2dqkrpb = sys.modules["natten.functional"].natten2dav = unused
import transformers, transformers.utils.import_utils as utils
utils._natten_available = True
import natjax_convert, natjax
for directory, original, class_name in zip(*[iter(sys.argv[1:])] * 3):
    model, info = getattr(transformers, class_name).from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    written = natjax_convert.read_state_dict(original)
    assert len(written) == len(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert tensor.numpy().tobytes() == np.asarray(written[key]).tobytes(), key
    ours, theirs = (natjax.NatConfig.from_json_file(original + "/config.json"), model.config.to_dict())
    assert natjax.NatConfig.from_dict(theirs).replace(extra={}) == ours.replace(extra={})
"""


def test_transformers_loads_what_was_written(tmp_path):
    pytest.importorskip("transformers")
    arguments = []
    for name, class_name in CLASSES.items():
        natjax_convert.convert(GOLDENS / name, tmp_path / name)
        arguments += [tmp_path / name, GOLDENS / name, class_name]
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_torch_is_imported(tmp_path):
    shutil.copy(GOLDENS / "hf_nat" / "pytorch_model.bin", tmp_path)
    code = "import sys, natjax_convert as c; c.read_state_dict(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
