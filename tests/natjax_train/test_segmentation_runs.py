"""Whole runs of segmentation: what they leave behind, how they resume, and what `natjax eval` says of their model."""

import json
import os
import signal

import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
from natjax.cli import main
from natjax_train.loop import PreemptedError, train
from natjax_train.recipe import Recipe

TRUNK = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "kernel_size": 3}
HEADS = {"hidden_size": 8, "auxiliary_channels": 8, "pool_scales": [1, 2]}
RECIPE = Recipe(
    task="segmentation",
    model="custom",
    model_config={**TRUNK, **HEADS},
    image_size=32,
    batch_size=4,
    base_batch_size=4,
    epochs=3,
    warmup_epochs=0,
    cooldown_epochs=0,
    learning_rate=1e-2,
    image_mean=(0.5,) * 3,
    image_std=(0.25,) * 3,
    workers=0,
    log_every=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A bright square or a dark one on grey: three classes."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "classes.txt").write_text("ground\nbright\ndark\n")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((40, 48), np.uint8)
            y, x = rng.integers(0, 24, 2)
            mask[y : y + 16, x : x + 16] = 1 + i % 2
            image = np.array([128, 240, 16])[mask][..., None] + rng.integers(-15, 15, (40, 48, 3))
            PIL.Image.fromarray(image.astype(np.uint8)).save(folder / "images" / split / f"{i}.png")
            PIL.Image.fromarray(mask).save(folder / "masks" / split / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(RECIPE, str(data), out, report=lambda message: None)
    return out


def arrays(out):
    """All that the model of a run holds, batch statistics included."""
    model = natjax.UperNetForSemanticSegmentation.from_pretrained(out)
    return nnx.to_flat_state(nnx.split(model)[1])


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("step", "loss", "miou", "val_loss") if key in line} for line in lines]


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
    statistics = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))["decode_head"]["bottleneck"]["batch_norm"]
    assert statistics["num_batches_tracked"] == 6
    assert abs(statistics["mean"]).max() > 0
    assert [line["step"] for line in metrics(undisturbed) if "miou" in line] == [2, 4, 6]


def test_an_interrupted_run_resumes_bit_exactly(data, undisturbed, tmp_path):
    out = tmp_path / "interrupted"
    with pytest.raises(PreemptedError):
        train(
            RECIPE,
            str(data),
            out,
            report=lambda message: None,
            started=lambda recipe: os.kill(os.getpid(), signal.SIGTERM),
        )
    assert len(metrics(out)) == 1
    train(RECIPE, str(data), out, resume=True, report=lambda message: None)
    assert metrics(out) == metrics(undisturbed)
    for (path, ours), (other, theirs) in zip(arrays(out), arrays(undisturbed), strict=True):
        assert path == other
        np.testing.assert_array_equal(ours[...], theirs[...], err_msg=str(path))


def test_eval_measures_what_the_run_measured(data, undisturbed, capsys):
    assert main(["eval", "--task", "segmentation", "--model", str(undisturbed), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["miou"] == pytest.approx(metrics(undisturbed)[-1]["miou"], abs=1e-6)


def test_masks_of_other_classes_are_refused_on_resuming(data, undisturbed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for kind in ("images", "masks"):
        (other / kind).symlink_to(data / kind)
    (other / "classes.txt").write_text("ground\nbright\nblack\n")
    with pytest.raises(ValueError, match=r"classes \(ground, bright, black\) are not the run's"):
        train(RECIPE, str(other), undisturbed, resume=True, report=lambda message: None)
