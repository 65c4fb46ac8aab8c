"""Whole runs of detection: what they leave behind, how they resume, and that `natjax eval` measures the same.

What does not depend on the task, such as signals, damaged checkpoints and meshes on resuming, is in test_runs.py.
"""

import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np
import PIL.Image
import pytest

import natjax
from natjax.cli import main
from natjax_train.loop import train
from natjax_train.mesh import last_stride
from natjax_train.recipe import Recipe
from natjax_train.tasks.detection import Detection

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_runs
from test_runs import finish, losses, start_two
from whole_runs import arrays, assert_same_run, metrics, train_interrupted

start = test_runs.start  # a fixture

MODEL = natjax.MaskRcnnForObjectDetection

CLASSES = ("bright", "dark")
TRUNK = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "kernel_size": 3}
HEADS = {"fpn_channels": 8, "rpn_channels": 8, "box_conv_channels": 8, "box_fc_channels": 16, "mask_channels": 8}
HEADS |= {"mask_num_convs": 1, "box_num_convs": 0, "rpn_pre_nms": 200, "rpn_post_nms": 80, "train_rpn_pre_nms": 40}
HEADS |= {"train_rpn_post_nms": 20, "max_detections": 80, "rpn_batch_size": 32, "box_batch_size": 16, "anchor_scale": 4}
HEADS |= {"score_threshold": 0.0, "mask_threshold": 0.1}  # all that such a model finds, so that its AP is not 0
RECIPE = Recipe(
    task="detection",
    model="custom",
    model_config={**TRUNK, **HEADS, "drop_path_rate": 0.1},
    image_size=64,
    longest_edge=96,
    scale_range=(0.75, 1.0),
    batch_size=4,
    base_batch_size=4,
    accumulate=2,
    epochs=4,  # 8 steps
    eval_every=2,
    warmup_epochs=0,
    cooldown_epochs=0,
    learning_rate=5e-3,
    schedule="step",
    milestones=(3,),
    min_learning_rate=0.0,
    image_mean=(0.5,) * 3,
    image_std=(0.25,) * 3,
    workers=0,
    log_every=1,
    save_every=1,
    ema_decay=0.7,
)


SCORES = ("box_ap", "box_ap50", "box_ar100", "mask_ap", "mask_ap50", "mask_ar100")


def write_split(folder, split, number, rng, wide):
    """Writes images of grey noise with a bright square, a dark one, both or none; after the wide ones come upright ones."""
    (folder / "images" / split).mkdir(parents=True)
    images, annotations = [], []
    for i in range(number):
        upright = i >= wide
        height, width = (64, 48) if upright else (48, 64)
        pixels = rng.integers(100, 150, (height, width, 3))
        for label in [[0], [1], [0, 1], []][i % 4]:
            side = 18 + 2 * (i % 3)
            x, y = int(rng.integers(0, 14)) + 32 * label, int(rng.integers(0, 24))
            x, y = (y, x) if upright else (x, y)
            pixels[y : y + side, x : x + side] = (240, 16)[label]
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotation = {"id": len(annotations) + 1, "image_id": 7 * i, "category_id": 3 + 2 * label}
            annotation |= {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0, "segmentation": [corners]}
            annotations.append(annotation)
        name = f"{7 * i}.png"
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / split / name)
        images.append({"id": 7 * i, "file_name": name, "height": height, "width": width})
    categories = [{"id": 3 + 2 * label, "name": name} for label, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    write_split(folder, "train", 10, rng, wide=10)  # of which 8 have objects
    write_split(folder, "val", 8, rng, wide=4)
    return folder


@pytest.fixture(scope="module")
def messages():
    """Those of the undisturbed run."""
    return []


@pytest.fixture(scope="module")
def undisturbed(data, messages, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(RECIPE, str(data), out, report=messages.append)
    return out


def assert_eval_agrees(out, data, capsys):
    """`natjax eval` measures of a run's model, that of its best step, what the run did."""
    capsys.readouterr()
    assert main(["eval", "--model", str(out), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = max((row for row in metrics(out) if "box_ap" in row), key=lambda row: (row["box_ap"], row["step"]))
    assert all(0 < best[name] < 1 for name in SCORES)
    assert {name: found[name] for name in SCORES} == pytest.approx({name: best[name] for name in SCORES}, abs=1e-6)


def test_a_run(data, undisturbed, messages):
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
    assert messages[0] == (
        "8 training and 8 validation images, 2 classes; random weights: custom; colours normalised as the recipe says"
    )
    assert any("images left out of training: 2 without objects" in message for message in messages)
    model = natjax.MaskRcnnForObjectDetection.from_pretrained(undisturbed)
    assert list(model.config.id2label.values()) == list(CLASSES)
    rows = metrics(undisturbed)
    steps = [row for row in rows if "lr" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    parts = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")
    assert all(row["loss"] == pytest.approx(sum(row[part] for part in parts), rel=1e-5) for row in steps)
    assert steps[-1]["lr"] == pytest.approx(steps[0]["lr"] / 10)
    assert steps[-1]["loss"] < steps[0]["loss"]
    measured = [row for row in rows if "box_ap" in row]
    assert [row["step"] for row in measured] == [4, 8]
    assert all({"mask_ap", "box_ap50", "mask_ar100"} <= row.keys() for row in measured)
    processor = natjax.NatImageProcessor.from_pretrained(undisturbed / "model")
    assert (processor.size, processor.image_mean) == ({"shortest_edge": 64, "longest_edge": 96}, (0.5,) * 3)
    assert "object-detection" in (undisturbed / "model" / "README.md").read_text()


@pytest.mark.once
def test_an_interrupted_run_resumes_bit_exactly(data, undisturbed, tmp_path):
    train_interrupted(RECIPE, data, tmp_path / "interrupted")
    assert_same_run(MODEL, tmp_path / "interrupted", undisturbed)


@pytest.mark.once
def test_eval_measures_what_the_run_measured(data, undisturbed, capsys):
    assert_eval_agrees(undisturbed, data, capsys)


def test_a_data_set_without_validation_images(data, tmp_path):
    folder = tmp_path / "flat"
    for kind in ("images", "annotations"):
        shutil.copytree(data / kind, folder / kind, ignore=shutil.ignore_patterns("val*"))
    recipe = dataclasses.replace(RECIPE, val_fraction=0.25)
    training, validation = Detection.open_splits(recipe, str(folder), print)
    ids = [set(part.ids.tolist()) for part in (training, validation)]
    assert not ids[0] & ids[1]
    assert list(map(len, ids)) == [7, 2]
    with pytest.raises(ValueError, match=r"has annotations for val: leave val_fraction out"):
        Detection.open_splits(recipe, str(data), print)
    with pytest.raises(natjax.ImageError, match=r"has no annotations for val"):
        Detection.open_splits(RECIPE, str(folder), print)


@pytest.mark.once
def test_batches_are_as_high_as_devices_that_share_images_need(data, tmp_path, monkeypatch):
    """Images of 64 rows for devices that take multiples of 80."""

    class LoadedError(Exception):
        pass

    def load(self, *arguments, **options):
        raise LoadedError(next(original(self, *arguments, **options))["image"].shape)

    original = Detection.train_loader
    monkeypatch.setattr(Detection, "train_loader", load)
    monkeypatch.setattr("natjax_train.loop.height_divisor", lambda mesh, config: 5 * last_stride(config))
    with pytest.raises(LoadedError, match=r"\(4, 80, 96, 3\)"):
        train(RECIPE, str(data), tmp_path / "run", report=lambda message: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_with_half_of_the_parameters_each_whose_devices_share_images(
    start, data, undisturbed, tmp_path, capsys
):
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    arguments = (f"--data={data}", f"--recipe={tmp_path / 'recipe.json'}", "--mesh=fsdp=2,space=2")
    settings = {name: json.dumps(getattr(RECIPE, name)) for name in test_runs.SETTINGS}
    for code, messages in map(finish, start_two(start, tmp_path / "run", *arguments, devices=2, **settings)):
        assert code == 0, messages
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed), rel=1e-3)
    assert_eval_agrees(tmp_path / "run", data, capsys)


@pytest.mark.once
@pytest.mark.slow
def test_a_frozen_backbone(undisturbed, tmp_path):
    """From the model of another run; a step of wide images and one of upright ones, which are programs of their own."""
    for split, number in (("train", 10), ("val", 4)):
        write_split(tmp_path / "data", split, number, np.random.default_rng(1), wide=number // 2)
    model = undisturbed / "model"
    changes = {"model": str(model), "model_config": {}, "freeze_backbone": True, "accumulate": 1, "ema_decay": None}
    recipe = dataclasses.replace(RECIPE, **changes, epochs=1, milestones=(0.5,))
    train(recipe, str(tmp_path / "data"), tmp_path / "run", report=lambda message: None)
    steps = [row for row in metrics(tmp_path / "run") if "lr" in row]
    assert len(steps) == 2
    assert all(np.isfinite(row["loss"]) for row in steps)
    moved = set()
    for (path, before), (same, after) in zip(arrays(MODEL, model), arrays(MODEL, tmp_path / "run"), strict=True):
        assert path == same
        if (before[...] != after[...]).any():
            moved.add(path[0])
    assert moved == {"neck", "rpn_head", "roi_head"}
