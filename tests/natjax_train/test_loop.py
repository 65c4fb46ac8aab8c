"""The loop in this process: what a step may not do, and that any task will do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

import natjax
from natjax.demo import MODEL_DIR
from natjax_train import loop
from natjax_train.augment.device import normalize
from natjax_train.interruption import InterruptedEvaluationError, Interruption
from natjax_train.recipe import IMAGE_FIELDS, override
from natjax_train.recipes import RECIPES, find_recipe
from natjax_train.tasks import TASKS
from natjax_train.tasks.base import Task

MODEL = {"num_channels": 1, "embed_dim": 8, "depths": [1], "num_heads": [1], "kernel_size": 3}
CHANGES = {"image_size": "16", "batch_size": "16", "epochs": "0.03", "warmup_epochs": "0"}


def small_recipe(**changes):
    return override(RECIPES["digits"], CHANGES | {"model_config": json.dumps(MODEL)} | changes)


def test_a_step_moves_nothing_between_host_and_devices(monkeypatch, tmp_path):
    make = loop.make_training

    def make_training(*arguments):
        training = make(*arguments)

        def step(state, batch):
            return training.step(state, batch | {"image": batch["image"] + np.zeros(1, np.uint8)})

        return dataclasses.replace(training, step=step)

    monkeypatch.setattr(loop, "make_training", make_training)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(small_recipe(), "digits", tmp_path / "run")


@dataclasses.dataclass
class Error:
    """Mean squared error, of which less is better."""

    error: float

    @property
    def score(self):
        return -self.error

    def row(self):
        return {"mse": self.error}

    def text(self):
        return self.headline()

    def headline(self):
        return f"mse {self.error:.3f}"


class Regression(Task):
    """Tells the number that a digit stands for, as a tenth of it."""

    curves = ("Error", {"mse": "squared"})

    def initial_model(self):
        config = natjax.NatConfig(**self.recipe.model_config, id2label={0: "number"})
        return natjax.NatForImageClassification(config, rngs=nnx.Rngs(0))

    def resumed_model(self, config):
        return self.initial_model()

    def prepare(self, key, batch):
        targets = {"number": batch["label"] / 10, "even": batch["label"] % 2 == 0, "odd": batch["label"] % 2 == 1}
        return normalize(batch["image"], self.recipe.image_mean, self.recipe.image_std), targets

    def training_loss(self, model, pixel_values, targets, rngs):
        errors = model(pixel_values, rngs=rngs).logits[:, 0] - targets["number"]
        parts = {f"loss_{name}": jnp.mean(jnp.square(errors), where=targets[name]) for name in ("even", "odd")}
        return jnp.mean(jnp.square(errors)), parts

    def predict(self, model, inputs):
        return {"number": model(inputs).logits[:, 0]}

    def judge(self, predictions, batch):
        found = {"mask": batch["mask"], "error": (predictions["number"] - batch["label"] / 10) ** 2}
        return jax.tree.map(lambda x: reshard(x, P()), found)

    def kept(self, judged):
        return {"error": judged["error"].sum(keepdims=True), "images": np.array([len(judged["error"])])}

    def result(self, judged, images_per_second, source):
        assert judged["images"].sum() == len(source)
        return Error(float(judged["error"].sum() / len(source)))

    def plot(self, result, directory):
        (directory / "error.txt").write_text(result.headline())


def test_a_second_task_is_a_class_and_an_entry(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "another_task", types.SimpleNamespace(Regression=Regression))
    monkeypatch.setitem(TASKS, "regression", "another_task:Regression")
    changes = {"task": "regression", "epochs": "0.2", "eval_every": "0.1", "select": "best", "base_batch_size": "16"}
    messages = []
    loop.train(small_recipe(**changes), "digits", tmp_path / "run", report=messages.append)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    errors = {row["step"]: row["mse"] for row in rows if "mse" in row}
    assert len(errors) == 2
    steps = [row for row in rows if "lr" in row]
    assert all(0 < row["loss_even"] != row["loss_odd"] > 0 for row in steps)
    assert all(
        min(row["loss_even"], row["loss_odd"]) < row["loss"] < max(row["loss_even"], row["loss_odd"]) for row in steps
    )
    best = min(errors, key=errors.get)
    assert messages[-1].endswith(f"the model of step {best}, mse {errors[best]:.3f}.")
    assert (tmp_path / "run" / "error.txt").read_text() == f"mse {errors[best]:.3f}"
    assert (tmp_path / "run" / "curves.png").exists()
    loop.train(small_recipe(**changes), "digits", tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"mse"') == 2
    with pytest.raises(ValueError, match="begun with task regression, and cannot go on with classification"):
        loop.train(small_recipe(), "digits", tmp_path / "run", resume=True)


@pytest.mark.parametrize("select", ["best", "last"])
def test_what_is_exported_is_measured_once(monkeypatch, tmp_path, select):
    monkeypatch.setitem(sys.modules, "another_task", types.SimpleNamespace(Regression=Regression))
    monkeypatch.setitem(TASKS, "regression", "another_task:Regression")
    errors, exports, export = iter((3.0, 2.0, 5.0)), [], natjax.NatForImageClassification.save_pretrained
    monkeypatch.setattr(Regression, "result", lambda *_: Error(next(errors)))
    monkeypatch.setattr(
        natjax.NatForImageClassification,
        "save_pretrained",
        lambda model, *arguments, **options: exports.append(model) or export(model, *arguments, **options),
    )
    changes = {"task": "regression", "epochs": "0.3", "eval_every": "0.1", "select": select}
    messages = []
    loop.train(small_recipe(**changes), "digits", tmp_path / "run", report=messages.append)
    best, error, count = (18, 2.0, 2) if select == "best" else (27, 5.0, 3)
    assert messages[-1].endswith(f"the model of step {best}, mse {error:.3f}.")
    assert (tmp_path / "run" / "error.txt").read_text() == f"mse {error:.3f}"
    assert f"after step {best}:" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert len(exports) == count
    assert next(errors, None) is None


def messages_of(tmp_path, **changes):
    messages, recipes = [], []
    loop.train(small_recipe(**changes), "digits", tmp_path / "run", report=messages.append, started=recipes.append)
    return messages, recipes


def test_a_run_says_what_it_starts_from(tmp_path):
    messages, (recipe,) = messages_of(tmp_path, image_mean="none", image_std="none", crop_pct="none", crop="none")
    assert messages[0] == (
        "1,437 training and 360 validation images, 10 classes; random weights: custom; preprocessing as for ImageNet"
    )
    assert messages[1].startswith("compiling the training step; this can take minutes on a CPU")
    assert (recipe.image_mean, recipe.crop_pct, recipe.eval_crop) == ((0.5,), 0.875, True)
    assert find_recipe(str(tmp_path / "run" / "recipe.json")) == recipe
    processor = natjax.NatImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 18}, {"height": 16, "width": 16})
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Data: digits, 1,437 training and 360 validation images of 10 classes: 0, 1, 2," in card
    messages = []
    loop.train(recipe, "digits", tmp_path / "run", resume=True, report=messages.append)
    assert messages[0] == "Resuming after step 3 of 3."
    assert messages[1].endswith("10 classes; weights from its checkpoint; preprocessing from the run's recipe")
    left_open = dict.fromkeys(IMAGE_FIELDS)
    kept = []
    again = dataclasses.replace(recipe, **left_open)
    loop.train(again, "digits", tmp_path / "run", resume=True, report=messages.append, started=kept.append)
    assert kept == [recipe]
    others = {"image_mean": (0.2,), "image_size": 8, "crop": False, "crop_pct": 0.5}
    others |= {"detector": "mask_rcnn", "keep_empty": True, "max_objects": 7}
    for name, value in others.items():
        other = dataclasses.replace(recipe, **left_open | {name: value})
        with pytest.raises(ValueError, match=f"The run was begun with {name} .* cannot go on with "):
            loop.train(other, "digits", tmp_path / "run", resume=True)


@pytest.mark.once
def test_a_local_model_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrained = natjax.NatForImageClassification(natjax.NatConfig(**MODEL, num_labels=10), rngs=nnx.Rngs(0))
    pretrained.save_pretrained("runs/pretrain", processor=natjax.NatImageProcessor.from_pretrained(MODEL_DIR))
    recipe = small_recipe(model="runs/pretrain", model_config="{}")
    recipes = []
    loop.train(recipe, "digits", "run", started=recipes.append)
    assert recipes[0].model == str(tmp_path / "runs" / "pretrain")
    shutil.rmtree("runs")
    for again in (recipe, recipes[0]):
        loop.train(again, "digits", "run", resume=True, started=recipes.append)
        assert recipes[-1] == recipes[0]
        assert "base_model" not in (tmp_path / "run" / "model" / "README.md").read_text()
    with pytest.raises(ValueError, match="cannot go on with runs/other"):
        loop.train(dataclasses.replace(recipe, model="runs/other"), "digits", "run", resume=True)


def test_a_signal_is_heard_before_results_are_summed_up():
    interruption = Interruption()
    batches = interruption.during([1, 2])
    assert [next(batches), next(batches)] == [1, 2]
    interruption.received = signal.SIGTERM
    with pytest.raises(InterruptedEvaluationError, match="SIGTERM"):
        next(batches)


def test_a_start_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    out = tmp_path / "runs" / "new"
    for data in (tmp_path / "missing", "digits"):
        with pytest.raises((ValueError, OSError)):
            loop.train(small_recipe(model=str(tmp_path / "no" / "model" / "there")), str(data), out)
    monkeypatch.setattr(loop, "make_training", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.train(small_recipe(), "digits", out)
    assert not list(tmp_path.iterdir())
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ZeroDivisionError):
        loop.train(small_recipe(), "digits", out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_folders_that_no_run_can_have(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"a run needs a folder, and .*file is a file"):
            loop.train(small_recipe(), "digits", out)
    with pytest.raises(ValueError, match="no UTF-8"):
        loop.train(small_recipe(), "digits", tmp_path / "out\udce9")


def test_a_model_in_the_folder_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a model and no run, whose config\.json would be replaced"):
        loop.train(small_recipe(), "digits", tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_curves_are_drawn_whatever_ends_a_run(tmp_path):
    with pytest.raises(loop.NonFiniteError):
        loop.train(small_recipe(learning_rate="1e38", clip_norm="none", epochs="0.1"), "digits", tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").exists()
