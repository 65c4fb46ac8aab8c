"""Conversion on the goldens: bit-exact round trips, both dialects and containers, strictness, and what the files look like."""

import argparse
import collections
import datetime
import errno
import json
import math
import pathlib
import random
import re
import shutil
import uuid

import ml_dtypes
import numpy as np
import pytest

import natjax
import natjax_convert
from natjax.presets import PRESETS
from natjax_convert.dialect import Entry
from natjax_convert.names import DIALECTS, detect
from natjax_convert.safetensors_file import write_safetensors
from natjax_convert.torch_zip import write_torch

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CLASSIFIERS = ("hf_nat", "hf_nat_layer_scale", "hf_dinat")
BACKBONES = tuple(f"{name}_backbone" for name in CLASSIFIERS)
SHI_LABS = ("shilabs_nat", "shilabs_dinat_layer_scale")


def read(path):
    return {name: np.asarray(tensor) for name, tensor in natjax_convert.read_state_dict(path).items()}


def source(name):
    return GOLDENS / name / "checkpoint.pth" if name in SHI_LABS else GOLDENS / name


def options(name):
    """What converting a golden needs besides its weights."""
    if name not in SHI_LABS:
        return {}
    dilations = json.loads((GOLDENS / name / "provenance.json").read_text())["args"].get("dilations")
    return {"dilations": dilations or "none"}


def assert_same(one, other):
    assert set(one) == set(other)
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        assert values.shape == other[name].shape, name
        assert values.tobytes() == other[name].tobytes(), name


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
    assert report.parameters == sum(values.size for values in original.values())
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


@pytest.mark.parametrize("name", ["nat_mini", "nat_small", "dinat_mini"])
def test_presets_map_completely(name):
    """DiNAT-Mini's tensors are NAT-Mini's; NAT-Small has layer scale."""
    shapes = json.loads((GOLDENS / "shilabs_state_dict_shapes.json").read_text())[name.removeprefix("di")]
    found = natjax_convert.entries(PRESETS[name].config, dialect="shilabs")
    assert {tensor: list(entry.tensor_shape) for entry in found for tensor in entry.names} == shapes


@pytest.mark.parametrize("name", CLASSIFIERS + SHI_LABS)
def test_inferred_configurations(tmp_path, name):
    state_dict = natjax_convert.read_state_dict(source(name))
    if name in SHI_LABS:
        args = json.loads((GOLDENS / name / "provenance.json").read_text())["args"]
        args |= {"num_labels": args.pop("num_classes"), "layer_scale_init_value": args.pop("layer_scale", 0.0)}
        expected = natjax.NatConfig(**args)
    else:
        expected = natjax.NatConfig.from_json_file(GOLDENS / name / "config.json")
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


PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "network.")
PREFIXES += (
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "backbone.",
    "encoder.",
    "student.",
    "ema_model.",
    "base_model.model.",
)
PREFIXES += ("state_dict.", "a.name.of.its.own.")
WRAPPERS = {
    "plain": lambda sd: sd,
    **{
        name: lambda sd, name=name: {"epoch": 3, name: sd}
        for name in ("state_dict", "model", "net", "network", "weights")
    },
    "model_state_dict": lambda sd: {
        "model_state_dict": sd,
        "optimizer_state_dict": {"state": {0: {"step": 1.5}}},
        "loss": 0.3,
    },
    "nested": lambda sd: {"checkpoint": 1, "state_dict": {"epoch": 1, "model": {"module": sd}}},
    "a name of its own": lambda sd: {"generator": sd, "args": {"lr": 0.1}, "optimizer": {"state": {}}},
    "an option of a wrapper's name": lambda sd: {"model": {"name": "nat_mini"}, "net": sd},
    "beside a scalar": lambda sd: {"ema": {"decay": next(iter(sd.values())).sum()}, "state_dict": sd},
    "beside tensors": lambda sd: {"loss": next(iter(sd.values())), "model_state_dict": sd},
    "beside tensors, a name of its own": lambda sd: {"loss": next(iter(sd.values())), "best": sd},
}


@pytest.mark.once
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(values) for name, values in read(source("shilabs_nat")).items()}
    torch.save(WRAPPERS[wrapper](tensors), tmp_path / "a.pth")
    assert_same(read(tmp_path / "a.pth"), read(source("shilabs_nat")))


AVERAGED = {
    "state_dict_ema": lambda raw, ema: {"state_dict": raw, "model": raw, "state_dict_ema": ema},
    "model_ema": lambda raw, ema: {"state_dict": raw, "model_ema": ema},
    "ema": lambda raw, ema: {"state_dict": raw, "ema": ema},
    "model_ema_state_dict": lambda raw, ema: {"model_state_dict": raw, "model_ema_state_dict": ema},
    "ema_model_state_dict": lambda raw, ema: {"model_state_dict": raw, "ema_model_state_dict": ema},
    "ema.shadow": lambda raw, ema: {"model": raw, "ema": {"shadow": ema, "num_updates": 5}},
    "ema_model.*": lambda raw, ema: {
        **{f"online_model.{name}": value for name, value in raw.items()},
        **{f"ema_model.{name}": value for name, value in ema.items()},
    },
    "state_dict.model_ema.module.*": lambda raw, ema: {
        "state_dict": {
            **{f"model.{name}": value for name, value in raw.items()},
            **{f"model_ema.module.{name}": value for name, value in ema.items()},
        }
    },
}


@pytest.mark.once
@pytest.mark.parametrize("averaged", AVERAGED)
def test_averaged_weights_win(tmp_path, averaged):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(values) for name, values in read(source("shilabs_nat")).items()}
    others = {name: values + 1 for name, values in tensors.items()}
    torch.save(AVERAGED[averaged](others, tensors), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=rf"took the averaged weights '{re.escape(averaged)}'; left out: weights '"):
        assert_same(read(tmp_path / "a.pth"), read(source("shilabs_nat")))


@pytest.mark.once
@pytest.mark.parametrize("part", ["no head", "no names"])
def test_averages_that_are_no_model_are_left_out_and_named(tmp_path, part):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(values) for name, values in read(source("shilabs_nat")).items()}
    others = {name: values + 1 for name, values in tensors.items() if not name.startswith("head")}
    ema = others if part == "no head" else {"decay": 0.9, "shadow_params": list(others.values())}
    torch.save({"state_dict": tensors, "ema": ema}, tmp_path / "a.pth")
    said = "took the weights 'state_dict'; left out: averaged weights" + (
        " without names" if part == "no names" else ""
    )
    with pytest.warns(UserWarning, match=f"{said} 'ema'"):
        assert_same(read(tmp_path / "a.pth"), read(source("shilabs_nat")))


BESIDE = {  # the model, what is beside it, what is said of that
    "model.": (["criterion.weight", "train_acc.total"], r"2 more entries \('criterion\.weight', 'train_acc\.total'\)"),
    "net.": (["loss_fn.pos_weight"], "1 more entry"),
    "model.module.": (["model.criterion.weight"], "1 more entry"),
    "backbone.": (["neck.weight"], "1 more entry"),
}


@pytest.mark.parametrize("prefix", BESIDE)
@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_what_is_beside_the_model_is_left_out_and_named(tmp_path, prefix, write):
    expected = read(source("shilabs_nat"))
    beside, said = BESIDE[prefix]
    tensors = {prefix + name: values for name, values in expected.items()}
    write(tmp_path / "x", tensors | dict.fromkeys(beside, np.zeros(3, np.float32)))
    with pytest.warns(UserWarning, match=rf"took the weights '{re.escape(prefix)}\*'; left out: {said}"):
        assert_same(read(tmp_path / "x"), expected)


def test_of_several_models_the_one_with_a_known_name_is_taken(tmp_path):
    expected = read(source("shilabs_nat"))
    other = {name: values + 1 for name, values in expected.items()}
    for student in ("model.", "net.", "student."):
        groups = {student: expected, "teacher.": other}
        write_torch(tmp_path / "x.pth", {prefix + n: v for prefix, group in groups.items() for n, v in group.items()})
        if student == "student.":
            with pytest.raises(natjax.CheckpointError, match=r"several state dicts, 'student\.\*', 'teacher\.\*'"):
                read(tmp_path / "x.pth")
        else:
            with pytest.warns(UserWarning, match=r"left out: weights 'teacher\.\*'"):
                assert_same(read(tmp_path / "x.pth"), expected)


def test_a_head_beside_its_trunk_belongs_to_the_model(tmp_path):
    expected = read(source("shilabs_nat"))
    write_torch(
        tmp_path / "x.pth", {n if n.startswith("head.") else f"backbone.{n}": values for n, values in expected.items()}
    )
    assert_same(read(tmp_path / "x.pth"), expected)


@pytest.mark.parametrize("extra", ["criterion.weight", "levels.9.extra"])
def test_without_a_prefix_nothing_is_left_out(tmp_path, extra):
    write_torch(tmp_path / "x.pth", read(source("shilabs_nat")) | {extra: np.zeros(3, np.float32)})
    with pytest.raises(natjax.CheckpointError, match=f"{extra}: not part of the model"):
        natjax_convert.convert(tmp_path / "x.pth", tmp_path / "out", **options("shilabs_nat"))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_prefixes(tmp_path, prefix, write):
    """Those of DDP, torch.compile and Lightning, in any order and both containers; compiled layers have theirs inside."""
    expected = read(source("shilabs_nat"))
    write(
        tmp_path / "x",
        {
            prefix + name.replace("blocks.0.", "blocks.0._orig_mod._checkpoint_wrapped_module."): v
            for name, v in expected.items()
        },
    )
    assert_same(read(tmp_path / "x"), expected)


def test_prefixes_that_make_tensors_the_same(tmp_path):
    tensors = read(source("shilabs_nat"))
    write_torch(tmp_path / "x.pth", tensors | {"module.norm.bias": tensors["norm.bias"]})
    with pytest.raises(natjax.CheckpointError, match=r"twice, such as 'norm\.bias' and 'module\.norm\.bias'"):
        read(tmp_path / "x.pth")


def test_averaged_models_count(tmp_path):
    tensors = read(source("shilabs_nat"))
    averaged = {f"module.{name}": values for name, values in tensors.items()} | {"n_averaged": np.array(7)}
    write_torch(tmp_path / "x.pth", averaged)
    assert_same(read(tmp_path / "x.pth"), tensors)


@pytest.mark.once
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"student": 1, "teacher": 1},
            "several state dicts, 'student', 'teacher', and none has a name that natjax knows",
        ),
        ({"epoch": 3, "args": {"lr": 0.1}}, "no state dict .* was found in it; its entries are 'epoch', 'args'"),
        ([1, 2], "no state dict .* was found in it; it is no mapping at all"),
    ],
)
def test_what_holds_no_state_dict_says_what_it_holds(tmp_path, content, message):
    torch = pytest.importorskip("torch")
    if "student" in content:
        content = {name: {"norm.bias": torch.zeros(3)} for name in content}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(natjax.CheckpointError, match=message):
        read(tmp_path / "x.pth")


@pytest.mark.once
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_training_leaves_beside_the_weights(tmp_path, protocol):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(values) for name, values in read(source("shilabs_nat")).items()}
    beside = {
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("out"), size=torch.Size([3, 4])),
        "metrics": collections.defaultdict(list, {"top1": [np.float64(0.7), np.int64(3)], "best": np.bool_(1)}),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "started": datetime.datetime(2022, 4, 14, tzinfo=datetime.UTC),
        "random": np.random.default_rng(0).bytes(4) if protocol > 2 else None,
        "state": np.arange(3),
        "classes": {"cat", "dog"},
        "order": collections.OrderedDict(a=1),
        "decays": collections.Counter({30: 1}),
        "idx_to_class": {
            np.int64(0): "cat",
            np.str_("dog"): 1,
            None: 2,
            -1: 3,
            0.5: 4,
            (1, (2,)): 5,
            10**700: 6,
            b"x": 7,
        },
        "history": [
            collections.deque([0.1, 0.2], maxlen=5),
            collections.deque([1]),
            range(3),
            frozenset([1]),
            bytearray(b"x"),
        ],
        "generators": [np.random.default_rng(0), np.random.RandomState(0), np.random.get_state(), random.getstate()],
        "other tensors": {
            **{
                str(dtype): torch.zeros(3, dtype=dtype)
                for dtype in (torch.uint16, torch.float8_e4m3fn, torch.complex64)
            },
            "sparse": torch.eye(2).to_sparse(),
        },
        "other dtypes": [torch.float8_e5m2, torch.uint16, np.float32, np.dtype("f4"), torch.strided],
        "id": uuid.UUID(int=1),
    }
    torch.save({**beside, "model": tensors}, tmp_path / "x.pth", pickle_protocol=protocol)
    assert_same(read(tmp_path / "x.pth"), read(source("shilabs_nat")))


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


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["nat_mini", "dinat_base"])
def test_dialects_have_every_parameter(dialect, name):
    """Each parameter has tensors of its own, of the shapes that splitting it gives, and joining undoes splitting."""
    config = PRESETS[name].config.replace(embed_dim=8, num_heads=(1, 2, 4, 8), out_indices=(0, 2))
    for kind in DIALECTS[dialect].kinds:
        found = natjax_convert.entries(config, kind, dialect=dialect)
        names = [name for entry in found for name in entry.names]
        assert len(set(names)) == len(names)
        assert detect(dict.fromkeys(names))[:2] == (DIALECTS[dialect], kind)
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


def test_existing_destinations(tmp_path):
    (tmp_path / "out").mkdir()
    natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "out")  # an empty directory is as good as none
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(natjax.CheckpointError, match="exists"):
        natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "out")
    natjax_convert.convert(GOLDENS / "hf_dinat", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert_same(read(tmp_path / "out"), read(GOLDENS / "hf_dinat"))
    natjax_convert.convert(tmp_path / "out", tmp_path / "out", overwrite=True)  # onto itself
    assert_same(read(tmp_path / "out"), read(GOLDENS / "hf_dinat"))
    for to, dst in (("shilabs", tmp_path / "out"), ("hf", tmp_path / "out" / "notes.txt")):
        with pytest.raises(natjax.CheckpointError, match="expected a"):
            natjax_convert.convert(GOLDENS / "hf_nat", dst, to=to, overwrite=True)
    with pytest.raises(natjax.CheckpointError, match="'hf' or 'shilabs'"):
        natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "x", to="tf")
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("to", ["hf", "shilabs"])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, to, existing):
    destination = tmp_path / ("out" if to == "hf" else "out.pth")
    if existing:
        natjax_convert.convert(GOLDENS / "hf_nat", destination, to=to)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    split, written = Entry.split, []

    def write_until_full(*args):
        written.append(args)
        if len(written) == 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return split(*args)

    monkeypatch.setattr(Entry, "split", write_until_full)
    with pytest.raises(natjax.CheckpointError, match=r"No space left on device\. It was left as it was"):
        natjax_convert.convert(GOLDENS / "hf_nat", destination, to=to, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == ([destination] if existing else [])


def test_the_name_of_the_destination_says_what_is_written(tmp_path):
    assert natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "x.pth").to == "shilabs"
    assert (tmp_path / "x.pth").is_file()
    assert natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "nat.v1").to == "hf"
    assert (tmp_path / "nat.v1").is_dir()
    assert natjax_convert.convert(GOLDENS / "hf_nat", f"{tmp_path}/d1.pth/").to == "hf"
    assert (tmp_path / "d1.pth").is_dir()
    natjax_convert.convert(GOLDENS / "hf_nat", tmp_path / "X.PT")
    assert_same(read(tmp_path / "x.pth"), read(tmp_path / "X.PT"))


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("out.pth", "hf", r"out\.pth: the name of a file, and the format 'hf' is a folder"),
        ("out", "shilabs", r"'shilabs' is one file; give a name such as out\.pth"),
        ("nat.safetensors", None, r"no such file by itself.* or a file of the original format: nat\.pth"),
        ("nat.onnx", "hf", "no such file by itself"),
        ("x.tar.gz", None, r"no such file by itself.* x\.pth"),
        (".pth", None, r"an ending without a name; give a file such as nat\.pth"),
        (".safetensors", "shilabs", "an ending without a name"),
        ("d1.pth/", "shilabs", r"d1\.pth/: a folder, and the format 'shilabs' is one file"),
    ],
)
def test_names_that_contradict_the_format(tmp_path, name, to, message):
    with pytest.raises(natjax.CheckpointError, match=message):
        natjax_convert.convert(GOLDENS / "hf_nat", f"{tmp_path}/{name}", to=to)
    assert not list(tmp_path.iterdir())


def test_a_given_processor_is_written(tmp_path):
    processor = natjax.NatImageProcessor(size=96)
    shutil.copy(GOLDENS / "hf_nat" / "model.safetensors", tmp_path / "x.safetensors")
    report = natjax_convert.convert(tmp_path / "x.safetensors", tmp_path / "out", processor=processor)
    assert not report.default_processor
    assert natjax.NatImageProcessor.from_pretrained(tmp_path / "out") == processor
    assert natjax_convert.convert(tmp_path / "x.safetensors", tmp_path / "other").default_processor


def test_processor_travels_along(tmp_path):
    shutil.copytree(GOLDENS / "hf_nat", tmp_path / "in")
    (tmp_path / "in" / "preprocessor_config.json").write_text('{"mine": 1}')
    natjax_convert.convert(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"mine": 1}'
    (tmp_path / "in" / "preprocessor_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(natjax.CheckpointError, match=r"preprocessor_config\.json: cannot be read"):
        natjax_convert.convert(tmp_path / "in", tmp_path / "other")
