"""Conversion on the goldens: bit-exact round trips, both dialects and containers, inferred configurations, strictness."""

import json
import math
import shutil

import ml_dtypes
import numpy as np
import pytest
from golden_checkpoints import (
    BACKBONES,
    CLASSIFIERS,
    GOLDENS,
    SHI_LABS,
    arguments,
    assert_same,
    dilations,
    golden,
    options,
    read,
    source,
    write,
)

import natjax
import natjax_convert
from natjax import configuration
from natjax.presets import PRESETS
from natjax_convert.names import NAMES, detect, dialect_of
from natjax_convert.safetensors_file import write_safetensors
from natjax_convert.torch_zip import write_torch


@pytest.mark.parametrize("name", CLASSIFIERS + SHI_LABS)
def test_round_trip_through_both_dialects(tmp_path, name):
    original = read(source(name))
    report = natjax_convert.convert(source(name), tmp_path / "hf", **options(name))
    assert report.source == ("shilabs" if name in SHI_LABS else "hf")
    assert report.kind == "classifier"
    natjax_convert.convert(tmp_path / "hf", tmp_path / "original.pth", to="shilabs")
    natjax_convert.convert(tmp_path / "original.pth", tmp_path / "again", config=report.config)
    assert_same(read(tmp_path / "hf"), read(tmp_path / "again"))
    assert_same(original, read(tmp_path / ("original.pth" if name in SHI_LABS else "again")))
    assert report.parameters == sum(values.size for values in original.values() if values.dtype == np.float32)
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_round_trip(tmp_path, name):
    report = natjax_convert.convert(source(name), tmp_path / "out")
    assert report.kind == "backbone"
    assert_same(read(source(name)), read(tmp_path / "out"))
    with pytest.raises(natjax.CheckpointError, match="image classifiers; this is a backbone"):
        natjax_convert.convert(source(name), tmp_path / "out.pth", to="shilabs")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_torch_and_safetensors_hold_the_same(name):
    assert_same(read(GOLDENS / name / "pytorch_model.bin"), read(GOLDENS / name / "model.safetensors"))


def test_file_names_do_not_matter(tmp_path):
    shutil.copy(GOLDENS / "hf_nat" / "pytorch_model.bin", tmp_path / "model.safetensors")
    shutil.copy(GOLDENS / "hf_nat" / "model.safetensors", tmp_path / "checkpoint.pth")
    assert_same(read(tmp_path / "model.safetensors"), read(tmp_path / "checkpoint.pth"))


def shard(directory, tensors, count=3):
    names = sorted(tensors)
    weight_map = {name: f"model-{i % count}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        write(directory / file, {name: tensors[name] for name in names if weight_map[name] == file})
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards(tmp_path):
    index = shard(tmp_path, read(GOLDENS / "hf_nat"))
    assert_same(read(index), read(GOLDENS / "hf_nat"))
    assert_same(read(tmp_path), read(GOLDENS / "hf_nat"))
    one = {name: values.copy() for name, values in read(tmp_path / "model-1.safetensors").items()}
    write(tmp_path / "model-1.safetensors", one | {"ema.decay": np.ones(1, np.float32)})
    with pytest.warns(UserWarning, match=r"left out of its shards: 1 more entry \('ema\.decay'\)"):
        assert_same(read(index), read(GOLDENS / "hf_nat"))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(natjax.CheckpointError, match=r"model-1\.safetensors: cannot read"):
        read(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("container", ["safetensors", "torch"])
def test_other_precisions(tmp_path, dtype, container):
    tensors = {name: values.astype(dtype) for name, values in read(GOLDENS / "hf_nat").items()}
    (tmp_path / "in").mkdir()
    shutil.copy(GOLDENS / "hf_nat" / "config.json", tmp_path / "in")
    (write_safetensors if container == "safetensors" else write_torch)(tmp_path / "in/model.safetensors", tensors)
    natjax_convert.convert(tmp_path / "in", tmp_path / "out")
    assert_same(read(tmp_path / "out"), tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == np.dtype(dtype).name
    config = natjax.NatConfig.from_json_file(tmp_path / "in" / "config.json")
    params = natjax_convert.to_flax(natjax_convert.read_state_dict(tmp_path / "in"), config)
    assert params["classifier"]["kernel"].dtype == np.float32


@pytest.mark.parametrize("name", ["nat_mini", "nat_small", "dinat_mini", "dinat_s_tiny", "nat_isotropic_small"])
def test_presets_map_completely(name):
    """DiNAT-Mini's tensors are NAT-Mini's; NAT-Small has layer scale."""
    shapes = json.loads((GOLDENS / "shilabs_state_dict_shapes.json").read_text())
    shapes = shapes.get(name) or shapes[name.removeprefix("di")]
    found = natjax_convert.entries(PRESETS[name].config, dialect="shilabs")
    assert {tensor: list(entry.tensor_shape) for entry in found for tensor in entry.names} == shapes


def config_of(name):
    """The configuration of the arguments that the authors' code was called with."""
    args = arguments(name)
    fields = {"num_labels": args["num_classes"], "layer_scale_init_value": args.get("layer_scale", 0.0)}
    fields |= {
        key: args[key] for key in ("embed_dim", "num_heads", "kernel_size", "mlp_ratio", "depths") if key in args
    }
    if "dinat_s" in name:
        return configuration.DinatSConfig(**fields, dilations=dilations(name))
    if "depth" not in args:
        return natjax.NatConfig(**fields, dilations=dilations(name))
    fields |= {"depths": [args["depth"]], "num_heads": [args["num_heads"]], "patch_size": args["patch_size"]}
    if args["kernel_size"] is None:
        return configuration.VitRpbConfig(**fields, image_size=args["img_size"])
    return configuration.NatIsotropicConfig(**fields, dilations=dilations(name))


@pytest.mark.parametrize("name", CLASSIFIERS + SHI_LABS)
def test_inferred_configurations(tmp_path, name):
    state_dict = natjax_convert.read_state_dict(source(name))
    beside = GOLDENS / name / "config.json"
    expected = config_of(name) if name in SHI_LABS else natjax.NatConfig.from_json_file(beside)
    found = natjax_convert.infer_config(state_dict, dilations=expected.dilations)
    # The initial layer scale is not in the tensors; whether there is any is.
    scale = {"layer_scale_init_value": expected.layer_scale_init_value}
    assert (found.layer_scale_init_value > 0) == (expected.layer_scale_init_value > 0)
    assert found.replace(**scale, extra={}) == expected.replace(extra={})


def test_dilations_are_never_guessed(tmp_path):
    shutil.copy(GOLDENS / "hf_dinat" / "model.safetensors", tmp_path / "dinat.safetensors")
    shutil.copy(GOLDENS / "hf_nat" / "model.safetensors", tmp_path / "nat.safetensors")
    for path in (source("shilabs_nat"), tmp_path / "dinat.safetensors"):
        with pytest.raises(natjax.CheckpointError, match="do not tell NAT from DiNAT"):
            natjax_convert.convert(path, tmp_path / "out")
    natjax_convert.convert(tmp_path / "nat.safetensors", tmp_path / "out")  # Hugging Face's names say that it is NAT


def test_strict_errors_name_every_problem(tmp_path):
    def change(tensors):
        tensors["nat.layernorm.wieght"] = tensors.pop("nat.layernorm.weight")
        tensors["nat.layernorm.bias"] = tensors["nat.layernorm.bias"][:-1]
        tensors["classifier.bias"] = tensors["classifier.bias"].astype(np.int64)
        tensors["nat.extra"] = np.zeros(3, np.float32)

    with pytest.raises(natjax.CheckpointError) as caught:
        natjax_convert.convert(golden(tmp_path, change), tmp_path / "out")
    message = str(caught.value)
    assert "nat.layernorm.weight: missing (is it nat.layernorm.wieght?)" in message
    assert "nat.layernorm.bias: expected (64,), got (63,)" in message
    assert "classifier.bias: expected floating point, got int64" in message
    assert "nat.extra: not part of the model" in message
    assert "3 tensors missing or of another shape or dtype, 2 left over" in message
    assert not (tmp_path / "out").exists()


def test_not_finite_weights_warn(tmp_path):
    def change(tensors):
        tensors["nat.layernorm.weight"] = np.full_like(tensors["nat.layernorm.weight"], np.nan)
        tensors["nat.layernorm.bias"] = np.array([np.inf, -np.inf] * 32, np.float32)

    with pytest.warns(UserWarning, match="2 parameters hold NaN or infinity: nat/layernorm/scale, nat/layernorm/bias"):
        natjax_convert.convert(golden(tmp_path, change), tmp_path / "out")


@pytest.mark.parametrize("load", [natjax_convert.convert, natjax.NatModel.from_pretrained])
def test_errors_name_the_checkpoint_once(tmp_path, load):
    arguments = (tmp_path / "out",) if load is natjax_convert.convert else ()
    misfit = golden(tmp_path, lambda tensors: {"nat.layernorm.bias": tensors["nat.layernorm.bias"]})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"?" * 100)
    weights = bytearray((GOLDENS / "hf_nat" / "pytorch_model.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    shutil.copytree(GOLDENS / "hf_nat", tmp_path / "flipped", ignore=lambda *_: ["model.safetensors"])
    (tmp_path / "flipped" / "pytorch_model.bin").write_bytes(weights)
    (tmp_path / "foreign").mkdir()
    write(tmp_path / "foreign" / "model.safetensors", {"x": np.zeros(1, np.float32)})
    for path, said in {
        misfit: "too few for",
        tmp_path / "damaged": "neither a safetensors file",
        tmp_path / "flipped": "fails its checksum",
        tmp_path / "foreign": "of no NAT or DiNAT",
        source("shilabs_nat"): "no config.json beside it",
    }.items():
        with pytest.raises(natjax.CheckpointError, match=said) as caught:
            load(path, *arguments)
        assert str(caught.value).startswith(str(path))
        assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("name", ["nat_mini", "dinat_base", "dinat_s_tiny", "nat_isotropic_small"])
def test_dialects_have_every_parameter(dialect, name):
    """Each parameter has tensors of its own, of the shapes that splitting it gives, and joining undoes splitting."""
    config = PRESETS[name].config.replace(out_indices=(0, 1))
    config = config.replace(embed_dim=8, num_heads=(1, 2, 4, 8)[: config.num_levels])
    if dialect in ("mmseg", "mmdet") and config.num_levels == 1:
        with pytest.raises(natjax.CheckpointError, match="no names for a 'nat_isotropic' model"):
            dialect_of(dialect, config)
        return
    used: list = [(kind, config) for kind in ("classifier", "model", "backbone")]
    if config.num_levels > 1:
        trunk = config.replace(out_indices=None)
        used.append(("segmentation", natjax.UperNetConfig(backbone_config=trunk)))
        used.append(("detection", natjax.MaskRcnnConfig(backbone_config=trunk)))
        used.append(("detection", natjax.CascadeMaskRcnnConfig(backbone_config=trunk)))
    for kind, config in used:
        expected = dialect_of(dialect, config)
        if kind not in expected.kinds:
            continue
        found = natjax_convert.entries(config, kind, dialect=dialect)
        names = [name for entry in found for name in entry.names]
        assert len(set(names)) == len(names)
        assert detect(dict.fromkeys(names))[:2] == (expected, kind)
        for entry in found:
            parameter = np.arange(math.prod(entry.shape)).reshape(entry.shape)
            tensors = entry.split(parameter)
            assert [tensor.shape for tensor in tensors] == [entry.tensor_shape] * len(entry.names)
            np.testing.assert_array_equal(entry.join(tensors), parameter)


def preset_tensors(name):
    """A file's worth of a preset's tensors, which take no memory."""
    return {
        tensor: np.broadcast_to(np.float32(0), entry.tensor_shape)
        for entry in natjax_convert.entries(PRESETS[name].config, dialect="shilabs")
        for tensor in entry.names
    }


@pytest.mark.parametrize(
    ("wrong", "fit"), [("nat_tiny", "nat_mini, dinat_mini"), ("dinat_base", "nat_mini, dinat_mini")]
)
def test_the_presets_that_fit_are_named(wrong, fit):
    with pytest.raises(natjax.CheckpointError, match=rf"The tensors fit {fit}\."):
        natjax_convert.to_flax(preset_tensors("nat_mini"), PRESETS[wrong].config, lazy=True)
    with pytest.raises(natjax.CheckpointError) as caught:
        natjax_convert.to_flax(preset_tensors("nat_mini"), PRESETS["nat_mini"].config.replace(num_labels=3), lazy=True)
    assert "The tensors fit" not in str(caught.value)


def test_without_a_configuration_the_presets_that_fit_are_named():
    with pytest.raises(
        natjax.CheckpointError, match=r"they fit nat_base, dinat_base\b.*natjax convert FILE DIR --config nat_base"
    ):
        natjax_convert.find_config("x.pth", preset_tensors("dinat_base"))


def test_dilations_that_do_not_fit(tmp_path):
    with pytest.raises(
        natjax.CheckpointError, match="The dilations do not fit the model: dilations need one entry per layer"
    ):
        natjax_convert.convert(source("shilabs_nat"), tmp_path / "out", dilations=[[1]])


def test_a_configuration_is_no_checkpoint(tmp_path):
    with pytest.raises(
        natjax.CheckpointError, match=r"config\.json: a JSON file, .* no weight_map\. Give the weights, or the folder"
    ):
        natjax_convert.convert(GOLDENS / "hf_nat" / "config.json", tmp_path / "out")


def test_model_types_do_not_mix(tmp_path):
    config = natjax.NatConfig.from_json_file(GOLDENS / "hf_nat" / "config.json")
    with pytest.raises(natjax.CheckpointError, match="do not belong together"):
        natjax_convert.convert(GOLDENS / "hf_dinat", tmp_path / "out", config=config)
