"""The configuration: Hugging Face's files, validation, derived fields."""

import json
import pathlib

import numpy as np
import pytest

import natjax
from natjax import configuration

pytestmark = pytest.mark.once

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("hf_*/config.json")), ids=lambda path: path.parent.name)
def test_hugging_face_configurations_survive_a_round_trip(path, tmp_path):
    original = json.loads(path.read_text())
    config = configuration.read_config(path)
    written = config.to_dict()
    for key, value in original.items():
        inner = isinstance(value, dict)
        assert value.items() <= written[key].items() if inner else value == written[key], key
    assert configuration.config_from_dict(written) == config
    (tmp_path / "config.json").write_text(config.to_json())
    again = configuration.read_config(tmp_path / "config.json")
    assert again == config
    assert hash(again) == hash(config)


def test_derived_fields():
    config = natjax.NatConfig()
    assert (config.model_type, config.hidden_size, config.num_labels) == ("nat", 512, 2)
    assert config.stage_names == ("stem", "stage1", "stage2", "stage3", "stage4")
    assert (config.out_features, config.out_indices) == (("stage4",), (4,))
    assert config.replace(out_indices=(0, -1)).out_features == ("stem", "stage4")
    assert config.replace(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    named = config.replace(id2label={0: "cat", 1: "dog", 2: "owl"})
    assert (named.num_labels, named.label2id) == (3, {"cat": 0, "dog": 1, "owl": 2})
    with pytest.raises(ValueError, match=r"no field 'num_label'\. Did you mean num_labels"):
        config.replace(num_label=3)
    assert natjax.get_config("dinat_mini").model_type == "dinat"
    assert natjax.get_config("dinat_mini").layer_dilations(0) == (1, 8, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, "patch_size must be 4.*got 8"),
        ({"kernel_size": 6}, "kernel_size must be odd.*got 6"),
        ({"kernel_size": 1}, "kernel_size must be odd and at least 3.*got 1"),
        ({"kernel_size": True}, "kernel_size must be an integer.*got True"),
        ({"embed_dim": 63}, "embed_dim must be even.*got 63"),
        ({"num_heads": (2, 4, 8, 15)}, "level 3 has 512 channels, not a multiple of its 15 heads"),
        ({"num_heads": (2, 4, 8)}, "depths and num_heads need one entry per level"),
        ({"depths": "3465"}, "depths must be a sequence"),
        ({"depths": (3, 0, 6, 5)}, "depths's entries must be an integer of at least 1; got 0"),
        ({"dilations": ((1, 2),)}, "dilations need one entry per layer"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\); got 1.0"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate must be a finite number; got nan"),
        ({"mlp_ratio": 0}, "mlp_ratio must be .*got 0"),
        ({"mlp_ratio": 1e308}, "mlp_ratio must be below"),
        ({"embed_dim": 10**400}, "embed_dim must be at most"),
        ({"num_labels": 10**12}, "num_labels must be at most"),
        ({"depths": (1,) * 99, "num_heads": (1,) * 99}, "at most 16 levels; got 99"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu.*got 'swish'"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false; got 1"),
        ({"problem_type": "ranking"}, "problem_type must be None or one of.*got 'ranking'"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label must map every class index"),
        ({"id2label": {"x": "a"}}, "class indices; got 'x'"),
        ({"id2label": {0.5: "a"}}, "class indices; got 0.5"),
        ({"id2label": ["a", "b"]}, r"id2label must map class indices to names; got \['a', 'b'\]"),
        ({"label2id": {"a": 0, "b": 2}}, r"no gaps; got \[0, 2\]"),
        ({"label2id": {"a": 1}, "id2label": {0: "a"}}, "label2id says that 'a' is class 1, id2label does not"),
        ({"label2id": {"a": 0}, "num_labels": 2}, r"num_labels \(2\) and id2label \(1 entries\) disagree"),
        ({"depths": np.array([0, 1, 1, 1])}, "depths's entries must be an integer of at least 1; got 0"),
        ({"embed_dim": np.float64(64)}, "embed_dim must be an integer.*got 64.0"),
        ({"id2label": {0: "a"}, "num_labels": 2}, r"num_labels \(2\) and id2label \(1 entries\) disagree"),
        ({"out_features": ("stage9",)}, "out_features must be among stem, stage1.*got.*stage9"),
        ({"out_features": ("stage2", "stage1")}, "out_features must be in the order of"),
        ({"out_indices": (7,)}, "out_indices must index.*got 7"),
        ({"out_features": ("stem",), "out_indices": (1,)}, "disagree"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        natjax.NatConfig(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a usable configuration"),
        ("[]", "a JSON object; got list"),
        ('{"model_type": "swin"}', "'swin' model"),
        ('{"model_type": "dinat"}', "needs dilations"),
        ('{"id2label": {"x": "cat"}}', "class indices; got 'x'"),
        ("[" * 100_000, "not a usable configuration"),
    ],
)
def test_unusable_files_are_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(natjax.CheckpointError, match=message) as error:
        natjax.NatConfig.from_json_file(path)
    assert str(error.value).startswith(str(path))


def test_missing_file(tmp_path):
    with pytest.raises(natjax.CheckpointError, match="No such file"):
        natjax.NatConfig.from_json_file(tmp_path / "config.json")


def test_unknown_entries_are_kept():
    config = natjax.NatConfig.from_dict({"model_type": "nat", "finetuning_task": "digits"})
    assert config.to_dict()["finetuning_task"] == "digits"


def test_numbers_of_numpy_are_numbers():
    config = natjax.NatConfig(
        embed_dim=np.int64(64),
        depths=np.array([3, 4, 6, 5]),
        num_heads=[np.int32(2), 4, 8, 16],
        dilations=[np.full(n, 2) for n in (3, 4, 6, 5)],
        mlp_ratio=np.float32(3),
        qkv_bias=np.bool_(True),
        num_labels=np.int64(3),
        out_indices=np.array([1, 2]),
    )
    plain = natjax.NatConfig(
        dilations=[[2] * n for n in (3, 4, 6, 5)], num_labels=3, out_indices=(1, 2), depths=(3, 4, 6, 5)
    )
    assert config == plain
    assert config.to_json() == plain.to_json()
    assert type(config.embed_dim) is type(config.depths[0]) is int


@pytest.mark.parametrize(
    "labels",
    [
        {"id2label": {"0": "cat", "1": "dog"}},
        {"id2label": {"1": "dog", "0": "cat"}, "label2id": {"cat": "0", "dog": "1"}},
        {"id2label": {np.int64(0): np.str_("cat"), np.int64(1): "dog"}, "num_labels": 2},
        {"label2id": {"dog": 1, "cat": 0}},
    ],
)
def test_labels_as_hugging_face_has_them(labels):
    for config in (
        natjax.NatConfig(**labels),
        natjax.NatConfig().replace(**labels),
        natjax.get_config("nat_mini", **labels),
    ):
        assert config.id2label == {0: "cat", 1: "dog"}
        assert config.label2id == {"cat": 0, "dog": 1}
        assert config.num_labels == 2
        assert config.replace(num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_any_configuration_is_read_by_its_model_type(tmp_path):
    config = natjax.get_config("dinat_mini")
    (tmp_path / "config.json").write_text(config.to_json())
    assert configuration.read_config(tmp_path / "config.json") == config
    assert configuration.config_from_dict({"embed_dim": 32}) == natjax.NatConfig(embed_dim=32)
    (tmp_path / "other.json").write_text('{"model_type": "swin"}')
    with pytest.raises(natjax.CheckpointError, match=r"other\.json.*of a 'swin' model; natjax reads 'nat', 'dinat'"):
        configuration.read_config(tmp_path / "other.json")
    with pytest.raises(ValueError, match="of a 'swin' model; NatConfig reads 'nat' and 'dinat'"):
        natjax.NatConfig.from_dict({"model_type": "swin"})
