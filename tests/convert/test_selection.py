"""Which tensors of a file are the model: under which entry, with which prefix, averaged or not, and what is left out."""

import argparse
import collections
import datetime
import pathlib
import random
import re
import uuid

import numpy as np
import pytest
from golden_checkpoints import assert_same, options, read, source

import natjax
import natjax_convert
from natjax_convert.safetensors_file import write_safetensors
from natjax_convert.torch_zip import write_torch

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
