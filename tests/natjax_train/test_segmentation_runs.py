"""Whole runs of segmentation: what they leave behind, how they resume, and what `natjax eval` says of their model.

What does not depend on the task, such as signals, damaged checkpoints and meshes on resuming, is in test_runs.py.
"""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
from natjax.cli import main
from natjax_train import loop
from natjax_train.loop import NonFiniteError, train
from natjax_train.recipe import Recipe
from natjax_train.tasks.iou import Metrics, count
from natjax_train.tasks.segmentation import Segmentation

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_runs
from test_runs import finish, losses, start_two, wait_for
from whole_runs import arrays, assert_same_run, metrics, train_interrupted

start = test_runs.start  # a fixture

MODEL = natjax.UperNetForSemanticSegmentation

TRUNK = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "kernel_size": 3}
HEADS = {"hidden_size": 8, "auxiliary_channels": 8, "pool_scales": [1, 2]}
RECIPE = Recipe(
    task="segmentation",
    model="custom",
    model_config={**TRUNK, **HEADS},
    image_size=32,
    batch_size=4,
    base_batch_size=4,
    epochs=5,  # 10 steps
    eval_every=2.5,
    warmup_epochs=0,
    cooldown_epochs=0,
    learning_rate=1e-2,
    image_mean=(0.5,) * 3,
    image_std=(0.25,) * 3,
    workers=0,
    log_every=1,
    save_every=1,
    ema_decay=0.7,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A bright square or a dark one on grey: three classes."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "classes.txt").write_text("ground\nbright\ndark\n")
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 3)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(number):
            mask = np.zeros((40, 48), np.uint8)
            y, x = rng.integers(0, 24, 2)
            mask[y : y + 16, x : x + 16] = 1 + i % 2
            image = np.array([128, 240, 16])[mask][..., None] + rng.integers(-15, 15, (40, 48, 3))
            PIL.Image.fromarray(image.astype(np.uint8)).save(folder / "images" / split / f"{i}.png")
            PIL.Image.fromarray(mask).save(folder / "masks" / split / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def states():
    """Those of the undisturbed run, before and after every step, on the host."""
    return []


@pytest.fixture(scope="module")
def undisturbed(data, states, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    make = loop.make_training

    def make_recorded(*arguments):
        training = make(*arguments)

        def step(state, batch):
            states[:] = states or [jax.device_get(state)]
            state, metrics = training.step(state, batch)
            states.append(jax.device_get(state))
            return state, metrics

        return dataclasses.replace(training, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_training", make_recorded)
        train(RECIPE, str(data), out, report=lambda message: None)
    return out


def test_a_run(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert {
        "recipe.json",
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "curves.png",
        "examples.png",
    } <= names
    model = natjax.UperNetForSemanticSegmentation.from_pretrained(undisturbed)
    assert list(model.config.id2label.values()) == ["ground", "bright", "dark"]
    assert [line["step"] for line in metrics(undisturbed) if "miou" in line] == [5, 10]


def test_the_model_has_averaged_weights_and_statistics(undisturbed, states):
    scores = {line["step"]: line["miou"] for line in metrics(undisturbed) if "miou" in line}
    best = max(scores, key=lambda step: (scores[step], step))
    model = natjax.UperNetForSemanticSegmentation.from_pretrained(undisturbed)
    for name, kind in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        mean, *others = (jax.tree.map(np.float64, getattr(state, name)) for state in states[: best + 1])
        for now in others:
            mean = jax.tree.map(lambda mean, now: 0.7 * mean + 0.3 * now, mean, now)
        if kind is nnx.BatchStat:
            mean = jax.tree.map(lambda mean, now: best if now.dtype == np.int32 else mean, mean, states[0].batch_stats)
        found = nnx.to_pure_dict(nnx.state(model, kind))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, mean)


def test_an_interrupted_run_resumes_bit_exactly(data, undisturbed, tmp_path):
    train_interrupted(RECIPE, data, tmp_path / "interrupted")
    assert_same_run(MODEL, tmp_path / "interrupted", undisturbed)


def test_eval_measures_what_the_run_measured(data, undisturbed, capsys):
    assert main(["eval", "--task", "segmentation", "--model", str(undisturbed), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = max((line for line in metrics(undisturbed) if "miou" in line), key=lambda line: (line["miou"], line["step"]))
    assert found["miou"] == pytest.approx(best["miou"], abs=1e-6)
    assert found["loss"] == pytest.approx(best["val_loss"], rel=1e-5)


def test_masks_of_other_classes_are_refused_on_resuming(data, undisturbed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for kind in ("images", "masks"):
        (other / kind).symlink_to(data / kind)
    (other / "classes.txt").write_text("ground\nbright\nblack\n")
    with pytest.raises(ValueError, match=r"classes \(ground, bright, black\) are not the run's"):
        train(RECIPE, str(other), undisturbed, resume=True, report=lambda message: None)


@pytest.fixture
def options(data, tmp_path):
    """Arguments and settings for the helpers of test_runs, whose own settings they replace."""
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    settings = {name: json.dumps(getattr(RECIPE, name)) for name in test_runs.SETTINGS}
    return (f"--data={data}", f"--recipe={tmp_path / 'recipe.json'}"), settings


@pytest.mark.slow
def test_a_full_disk_and_a_kill(start, options, data, undisturbed, tmp_path):
    """First no file may grow any more; then the process is killed."""
    arguments, settings = options
    out = tmp_path / "run"
    process = start(out, *arguments, **settings)
    while process.poll() is None and not (out / "checkpoints" / "1").exists():
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    code, messages = finish(process)
    assert code == 1, messages
    assert "could not be written" in messages
    assert "The earlier ones are intact" in messages
    assert "Traceback" not in messages
    process = start(out, "--resume", *arguments, **settings)
    wait_for(process, out, 6)
    process.kill()
    code, messages = finish(process)
    assert code == -signal.SIGKILL, messages
    assert "Resuming after step" in messages
    train(RECIPE, str(data), out, resume=True, report=lambda message: None)
    assert_same_run(MODEL, out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2", "space=2"])  # each with its images, and both with their rows of all images
def test_two_processes(start, options, undisturbed, tmp_path, mesh):
    arguments, settings = (*options[0], f"--mesh={mesh}"), options[1]
    for code, messages in map(finish, start_two(start, tmp_path / "run", *arguments, **settings)):
        assert code == 0, messages
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), abs=2e-5)
    # Weights differ more: a shift before batch normalisation has no gradient but rounding errors, which Adam makes steps of.
    found, expected = (
        [line["val_loss"] for line in metrics(out) if "miou" in line] for out in (tmp_path / "run", undisturbed)
    )
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def spoiled(data, tmp_path, monkeypatch):
    """The data with a training image whose pixels become NaN on the device: a batch of every epoch has it."""
    folder = shutil.copytree(data, tmp_path / "spoiled")
    PIL.Image.new("L", (48, 40), 255).save(folder / "masks" / "train" / "3.png")
    prepare = Segmentation.prepare

    def prepare_spoiled(self, key, batch):
        pixel_values, targets = prepare(self, key, batch)
        bad = jnp.all(batch["label"] == 255, axis=(1, 2))
        return jnp.where(bad[:, None, None, None], jnp.nan, pixel_values), targets

    monkeypatch.setattr(Segmentation, "prepare", prepare_spoiled)
    return str(folder)


@pytest.mark.slow
def test_batches_with_nans(spoiled, tmp_path):
    """The first one ends a run; a run that leaves them out learns from the others alone."""
    recipe, out, messages = dataclasses.replace(RECIPE, select="last"), tmp_path / "run", []
    with pytest.raises(NonFiniteError, match=r"Step [12] is not finite: loss nan"):
        train(recipe, spoiled, out, report=lambda message: None)
    recipe = dataclasses.replace(recipe, skip_nonfinite=True)
    train(recipe, spoiled, out, resume=True, report=messages.append)
    assert sum(message.endswith("It is left out.") for message in messages) == 5
    assert [line["loss"] is None for line in metrics(out) if "loss" in line].count(True) == 5
    for path, variable in arrays(MODEL, out):
        assert np.isfinite(variable[...]).all(), path
        assert path[-1] != "num_batches_tracked" or variable[...] == 5


def test_validation_images_that_are_held_out(data, undisturbed, tmp_path, capsys):
    folder = tmp_path / "flat"  # without folders of splits
    for kind in ("images", "masks"):
        shutil.copytree(data / kind / "train", folder / kind)
    shutil.copy(data / "classes.txt", folder)

    def names(seed):
        recipe = dataclasses.replace(RECIPE, val_fraction=0.25, seed=seed)
        parts = Segmentation.open_splits(recipe, str(folder), print)
        return [{part.name(i) for i in range(len(part))} for part in parts]

    training, validation = names(0)
    assert (len(training), len(validation)) == (6, 2)
    assert not training & validation
    assert names(0) == [training, validation]
    assert any(names(seed)[1] != validation for seed in (1, 2, 3))
    with pytest.raises(ValueError, match=r"has val/ in it: leave val_fraction out"):
        Segmentation.open_splits(dataclasses.replace(RECIPE, val_fraction=0.25), str(data), print)

    shutil.copytree(undisturbed / "model", tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.json").write_text(dataclasses.replace(RECIPE, val_fraction=0.25).to_json())
    capsys.readouterr()
    assert main(["eval", "--model", str(tmp_path / "run"), "--data", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    masks = [np.asarray(PIL.Image.open(folder / "masks" / os.path.basename(name))) for name in validation]
    assert found["images"] == 2
    assert [row["pixels"] for row in found["classes"]] == [
        sum(int((mask == i).sum()) for mask in masks) for i in range(3)
    ]


def test_examples_have_the_models_colours(undisturbed, tmp_path):
    config = json.loads((undisturbed / "config.json").read_text())
    examples = {name: np.full((1, 8, 8), 2, np.uint8) for name in ("truth", "predicted")}
    result = types.SimpleNamespace(examples={"image": np.zeros((1, 8, 8, 3), np.uint8), **examples})
    own = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for palette, colour in ((own, own[2]), (None, natjax.segmentation.palette_for(3)[2].tolist())):
        (tmp_path / "config.json").write_text(json.dumps(config | ({"palette": palette} if palette else {})))
        Segmentation(RECIPE, ("ground", "bright", "dark")).plot(result, tmp_path)
        with PIL.Image.open(tmp_path / "examples.png") as picture:
            assert tuple(colour) in {found for _, found in picture.convert("RGB").getcolors(10**6)}


def test_a_model_of_more_classes_than_masks_tell_apart_is_not_measured(data, tmp_path, capsys):
    trunk = natjax.NatConfig(**TRUNK, out_features=["stage1", "stage2", "stage3"])
    config = natjax.UperNetConfig(backbone_config=trunk, **HEADS, num_labels=256)
    natjax.UperNetForSemanticSegmentation(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    assert main(["eval", "--model", str(tmp_path), "--data", str(data)]) == 1
    assert f"{tmp_path} has 256 classes; there can be 254 at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--crop-size", "24", "--stride", "12"], {"crop_size": 24, "stride": 12}),
        pytest.param(["--multi-scale"], {"scales": "multi", "flip": True}, marks=pytest.mark.slow),
    ],
)
def test_eval_has_the_class_maps_of_the_pipeline(data, undisturbed, monkeypatch, capsys, flags, options):
    monkeypatch.setattr("natjax.pipelines.segmentation.MULTI_SCALE", (0.5, 1.0))  # each is compiled for
    command = ["eval", "--model", str(undisturbed), "--data", str(data), "--json", "--size-divisor", "1", *flags]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    segment = natjax.pipeline("image-segmentation", undisturbed, **options)
    counts = np.zeros((3, 3), np.int64)
    for path in sorted((data / "images" / "val").iterdir()):
        mask = np.asarray(PIL.Image.open(data / "masks" / "val" / path.name))
        counts += count(segment.class_maps(path), mask, 3)
    expected = Metrics(counts, 0.0, 3, 1.0)
    assert (found["images"], found["loss"]) == (3, None)
    assert [row["iou"] for row in found["classes"]] == pytest.approx(expected.iou.tolist(), abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy, abs=1e-9)
