"""The golden checkpoints, and how tests read, change and compare them."""

import json
import pathlib
import shutil

import numpy as np

import natjax_convert
from natjax_convert.safetensors_file import write_safetensors

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CLASSIFIERS = ("hf_nat", "hf_nat_layer_scale", "hf_dinat")
BACKBONES = tuple(f"{name}_backbone" for name in CLASSIFIERS)
SHI_LABS = (
    *("shilabs_nat", "shilabs_dinat_layer_scale", "shilabs_dinat_s"),
    *("shilabs_nat_isotropic", "shilabs_dinat_isotropic", "shilabs_vitrpb"),
)


def read(path):
    return {name: np.asarray(tensor) for name, tensor in natjax_convert.read_state_dict(path).items()}


def source(name):
    return GOLDENS / name / "checkpoint.pth" if name in SHI_LABS else GOLDENS / name


def options(name):
    """What converting a golden needs besides its weights."""
    if name not in SHI_LABS:
        return {}
    return {"dilations": dilations(name) or "none"}


def arguments(name):
    """What the authors' code was called with."""
    return json.loads((GOLDENS / name / "provenance.json").read_text())["args"]


def dilations(name):
    """One per layer by level, as natjax has them: isotropic models dilate every second layer."""
    args = arguments(name)
    dilation = args.get("dilation") or 1
    every_second = [[dilation if i % 2 else 1 for i in range(args.get("depth", 0))]]
    return args.get("dilations") or (every_second if dilation > 1 else None)


def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
        first, second = np.asarray(one[name]), np.asarray(other[name])
        assert first.dtype == second.dtype, name
        assert first.shape == second.shape, name
        assert first.tobytes() == second.tobytes(), name


def write(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors)
    return path


def golden(tmp_path, change, name="hf_nat"):
    """A directory with a golden whose tensors `change` has changed."""
    tensors = read(GOLDENS / name)
    tensors = change(tensors) or tensors
    shutil.copytree(GOLDENS / name, tmp_path / "changed", ignore=lambda *_: ["model.safetensors", "pytorch_model.bin"])
    write(tmp_path / "changed" / "model.safetensors", tensors)
    return tmp_path / "changed"
