"""from_pretrained: heads, biases, kinds, the Hugging Face Hub (a stand-in), and, with -m hub, the published weights."""

import dataclasses
import os
import pathlib
import re
import shutil
import sys
import types
import urllib.request

import jax
import numpy as np
import pytest
from flax import nnx

import natjax
import natjax_convert
from natjax import errors, hub, presets

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NAT = GOLDENS / "hf_nat"


def arrays(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def classifier():
    return natjax.NatForImageClassification.from_pretrained(NAT)


def test_save_and_load(tmp_path, classifier):
    classifier.save_pretrained(tmp_path / "saved")
    again = natjax.NatForImageClassification.from_pretrained(tmp_path / "saved")
    assert_equal(arrays(again), arrays(classifier))
    assert again.config.replace(extra={}) == classifier.config.replace(extra={})


def test_an_open_checkpoint_is_not_opened_again(tmp_path, classifier):
    shutil.copytree(NAT, tmp_path / "in")
    checkpoint = natjax_convert.Checkpoint.open(tmp_path / "in")
    assert (checkpoint.dialect.name, checkpoint.kind, checkpoint.config) == ("hf", "classifier", classifier.config)
    (tmp_path / "in" / "config.json").unlink()
    assert_equal(arrays(natjax.NatForImageClassification.from_pretrained(checkpoint)), arrays(classifier))


def test_replace_head(classifier):
    model = natjax.NatForImageClassification.from_pretrained(NAT, replace_head=True, num_labels=10)
    assert model.classifier.kernel.shape == (64, 10)
    assert 0 < float(abs(model.classifier.kernel[...]).max()) < 0.1
    assert float(abs(model.classifier.bias[...]).max()) == 0
    assert_equal(arrays(model)["nat"], arrays(classifier)["nat"])
    message = (
        r"classifier\.weight: expected \(10, 64\), got \(5, 64\) \(replace_head=True starts with a new classifier\)"
    )
    with pytest.raises(natjax.CheckpointError, match=message):
        natjax.NatForImageClassification.from_pretrained(NAT, num_labels=10)
    assert natjax.NatForImageClassification.from_pretrained(NAT, replace_head=True, num_labels=0).classifier is None


def test_what_transformers_calls_replacing_a_head():
    with pytest.raises(ValueError, match=r"ignore_mismatched_sizes .*replace_head=True"):
        natjax.NatForImageClassification.from_pretrained(NAT, ignore_mismatched_sizes=True, num_labels=10)


def test_pretrained_presets(monkeypatch, classifier):
    asked = {}

    def download(*_, allow_patterns, **options):
        asked.update(options)
        return str(NAT)

    fake_hub(monkeypatch, download)
    model = natjax.create_model("nat_mini", pretrained=True)
    assert_equal(arrays(model), arrays(classifier))
    model = natjax.create_model("nat_mini", pretrained=True, id2label={"0": "cat", "1": "dog"}, drop_path_rate=0.5)
    assert (model.config.label2id, model.config.drop_path_rate) == ({"cat": 0, "dog": 1}, 0.5)
    assert_equal(arrays(model)["nat"], arrays(classifier)["nat"])
    monkeypatch.setitem(
        presets.PRESETS, "nat_mini", dataclasses.replace(presets.PRESETS["nat_mini"], config=classifier.config)
    )
    monkeypatch.setattr(presets, "imagenet_1k", lambda: [*classifier.config.id2label.values()])
    model = natjax.create_model("nat_mini", pretrained=True, num_labels=classifier.config.num_labels)
    assert_equal(arrays(model), arrays(classifier))  # as many classes as the head has: it is kept
    options = {"revision": "v1", "local_files_only": True, "cache_dir": "cache"}
    backbone = natjax.create_model("nat_mini", pretrained=True, model_class=natjax.NatModel, **options)
    assert asked == options
    assert_equal(arrays(backbone), arrays(classifier)["nat"])
    with pytest.raises(ValueError, match="Did you mean nat_mini"):
        natjax.create_model("nat_minni", pretrained=True)


def test_resize_biases(classifier):
    model = natjax.NatForImageClassification.from_pretrained(NAT, resize_biases=True, kernel_size=5)
    rpb = model.nat.encoder.levels[0].layers[0].attention.rpb[...]
    assert rpb.shape == (1, 9, 9)
    with pytest.raises(natjax.CheckpointError, match=r"resize_biases=True"):
        natjax.NatForImageClassification.from_pretrained(NAT, kernel_size=5)


def test_a_classifier_serves_every_kind(classifier):
    assert_equal(arrays(natjax.NatModel.from_pretrained(NAT)), arrays(classifier)["nat"])
    with pytest.warns(
        errors.MissingNormsWarning, match="no norms for the stages stage1, stage3; they start as the identity"
    ):
        backbone = natjax.NatBackbone.from_pretrained(NAT, out_features=("stage1", "stage3"))
    np.testing.assert_array_equal(backbone.hidden_states_norms["stage3"].scale[...], np.ones(64))
    np.testing.assert_array_equal(backbone.hidden_states_norms["stage3"].bias[...], np.zeros(64))
    assert_equal(arrays(backbone)["encoder"], arrays(classifier)["nat"]["encoder"])
    with pytest.raises(natjax.CheckpointError, match="The checkpoint is of a backbone, the model is a classifier"):
        natjax.NatForImageClassification.from_pretrained(GOLDENS / "hf_nat_backbone")


def test_param_dtype(classifier):
    model = natjax.NatModel.from_pretrained(NAT, param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(arrays(model))} == {"bfloat16"}


def test_the_model_outlives_its_file(tmp_path, classifier):
    shutil.copytree(NAT, tmp_path / "copy")
    model = natjax.NatForImageClassification.from_pretrained(tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))  # in place, under the model's feet
    assert_equal(arrays(model), arrays(classifier))


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/x", "/nowhere/x", "a/b/c", "nowhere/", "x" * 5000])
def test_no_such_checkpoint(name):
    with pytest.raises(natjax.CheckpointError, match="no such file or directory, and no id"):
        natjax.NatModel.from_pretrained(name)


class LocalEntryNotFoundError(Exception):
    """What the hub raises where it cannot be reached, or must not be, and has nothing in its cache."""


def fake_hub(monkeypatch, download):
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download
    module.utils = types.SimpleNamespace(LocalEntryNotFoundError=LocalEntryNotFoundError)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub(monkeypatch, tmp_path, classifier, weights):
    calls = []

    def download(name, *, allow_patterns, **options):
        calls.append((name, allow_patterns, options))
        shutil.copy(NAT / "config.json", tmp_path)
        if any(pathlib.PurePath(weights).match(pattern) for pattern in allow_patterns):
            shutil.copy(NAT / weights, tmp_path)
        return str(tmp_path)

    fake_hub(monkeypatch, download)
    model = natjax.NatForImageClassification.from_pretrained(
        "owner/name", revision="v1", local_files_only=True, cache_dir="cache"
    )
    assert_equal(arrays(model), arrays(classifier))
    assert len(calls) == (1 if weights.endswith("safetensors") else 2)  # pickles only where there is nothing else
    options = {"revision": "v1", "local_files_only": True, "cache_dir": "cache"}
    assert all(name == "owner/name" and given == options for name, _, given in calls)


def test_processors_come_from_the_hub_as_models_do(monkeypatch, tmp_path):
    calls = []

    def download(name, **options):
        calls.append((name, {key: options[key] for key in ("revision", "local_files_only", "cache_dir")}))
        assert options["allow_patterns"] == ["config.json", "preprocessor_config.json"]  # and no weights
        return str(tmp_path)

    fake_hub(monkeypatch, download)
    processor = natjax.NatImageProcessor(size=8)
    options = {"revision": "v1", "local_files_only": True, "cache_dir": "cache"}
    with pytest.raises(natjax.CheckpointError, match=r"preprocessor_config\.json: cannot read"):
        natjax.NatImageProcessor.from_pretrained("owner/name", **options)
    processor.save_pretrained(tmp_path)
    assert natjax.NatImageProcessor.from_pretrained("owner/name", **options) == processor
    assert calls == [("owner/name", options)] * 2
    with pytest.raises(natjax.CheckpointError, match="no such file or directory, and no id"):
        natjax.NatImageProcessor.from_pretrained("nowhere")


@pytest.mark.parametrize(
    ("error", "only", "message"),
    [
        (
            LocalEntryNotFoundError("x"),
            False,
            "not in the cache of the Hugging Face Hub, and there is no connection to it",
        ),
        (
            LocalEntryNotFoundError("x"),
            True,
            "not in the cache of the Hugging Face Hub, and local_files_only forbids downloading",
        ),
        (OSError("Disk full.\nMore."), False, "cannot be downloaded from the Hugging Face Hub: Disk full"),
        (ValueError(), False, "cannot be downloaded from the Hugging Face Hub: ValueError"),
    ],
)
def test_what_the_hub_does_not_give(monkeypatch, error, only, message):
    def download(*_, **__):
        raise error

    fake_hub(monkeypatch, download)
    with pytest.raises(natjax.CheckpointError) as caught:
        hub.locate("owner/name", local_files_only=only)
    assert str(caught.value) == f"owner/name: no such file or directory here, and {message}."
    assert caught.value.__context__ is None


def test_hub_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(natjax.CheckpointError, match=re.escape(errors.install_line("hub"))):
        hub.locate("owner/name")


def test_presets_lead_to_their_published_weights(monkeypatch, tmp_path, classifier):
    calls = []

    def download(name, **_):
        calls.append(name)
        return str(NAT)

    fake_hub(monkeypatch, download)
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert_equal(arrays(natjax.NatForImageClassification.from_pretrained("nat_mini")), arrays(classifier))
    assert calls == ["shi-labs/nat-mini-in1k-224"]
    (tmp_path / "nat_mini").mkdir()  # what exists as a path is one
    assert hub.locate("nat_mini") == pathlib.Path("nat_mini")


def test_weights_fetched_by_hand(monkeypatch, tmp_path):
    """What the message says to do where nothing can be downloaded works."""
    monkeypatch.setenv("NATJAX_WEIGHTS", str(tmp_path / "kept"))

    def download(*_, **__):
        raise LocalEntryNotFoundError("offline")

    for stand_in in (None, download):
        if stand_in:
            fake_hub(monkeypatch, stand_in)
        else:
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(natjax.CheckpointError) as caught:
            hub.locate("dinat_mini")
        message = str(caught.value)
        assert presets.PRESETS["dinat_mini"].address in message
        assert "shi-labs/dinat-mini-in1k-224" in message
        assert (
            f"natjax convert dinat_mini_in1k_224.pth {tmp_path / 'kept' / 'dinat_mini'} --config dinat_mini" in message
        )
    shutil.copytree(NAT, tmp_path / "kept" / "dinat_mini")
    assert hub.locate("dinat_mini") == tmp_path / "kept" / "dinat_mini"
    fake_hub(monkeypatch, lambda name, *, revision, **_: f"{name}@{revision}")
    assert hub.locate("dinat_mini", revision="v1", weights=False) == pathlib.Path("shi-labs/dinat-mini-in1k-224@v1")
    (tmp_path / "kept" / "nat_mini").mkdir()  # holds nothing
    assert hub.locate("nat_mini", weights=False) == pathlib.Path("shi-labs/nat-mini-in1k-224@None")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nat_mni", "Did you mean nat_mini?"),
        ("NAT-Mini", "Did you mean nat_mini?"),
        ("dinat-large-384", "Did you mean dinat_large_384?"),
        ("https://example.org/nat_mini.pth", "Download the file, and give its path"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(natjax.CheckpointError, match=re.escape(message)):
        hub.locate(name)


def test_runs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    with pytest.raises(natjax.CheckpointError, match="run: the run has no model before its first evaluation"):
        hub.locate(run)
    (run / "model").mkdir()
    assert hub.locate(run) == hub.locate(f"{run}/") == run / "model"
    shutil.copy(NAT / "model.safetensors", tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    assert hub.locate(tmp_path) == tmp_path


def test_the_built_in_classifier_has_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert natjax.NatForImageClassification.from_pretrained("digits").config.num_labels == 10


COCO = "http://images.cocodataset.org/val2017/000000039769.jpg"  # the image of transformers' own integration tests


@pytest.mark.hub
def test_published_weights(tmp_path):
    """Hugging Face's integration test of NAT: the first logits of nat-mini on a photo of two cats."""
    image = os.environ.get("NATJAX_COCO_IMAGE") or urllib.request.urlretrieve(COCO, tmp_path / "cats.jpg")[0]
    name = "shi-labs/nat-mini-in1k-224"
    model = natjax.NatForImageClassification.from_pretrained(name)
    processor = natjax.NatImageProcessor.from_pretrained(name)
    logits = model(processor(natjax.load_image(image))).logits
    assert logits.shape == (1, 1000)
    np.testing.assert_allclose(logits[0, :3], [0.3805, -0.8676, -0.3912], atol=1e-4)
