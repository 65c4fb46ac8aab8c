"""`natjax eval`: digits, runs and folders, in two processes, what it prints and writes, and how it refuses."""

import argparse
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from flax import nnx

import natjax
from natjax import demo
from natjax.cli import eval as evaluate
from natjax.cli import main
from natjax.cli._eval_output import write_csv
from natjax_train.data import match_classes
from natjax_train.recipes import RECIPES
from natjax_train.tasks.classification import Metrics

pytestmark = pytest.mark.once

CLASSES = [f"class {c}" for c in "abcdef"]
DIGITS = ("--data", "digits", "--model", "digits")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint with random weights, for images of 32 pixels cropped out of 40."""
    directory = tmp_path_factory.mktemp("model")
    config = natjax.NatConfig(
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
        kernel_size=3,
        id2label=dict(enumerate(CLASSES)),
        initializer_range=0.3,
    )
    processor = natjax.NatImageProcessor(
        size={"shortest_edge": 40},
        do_center_crop=True,
        crop_size=32,
        resample=3,
        image_mean=0.5,
        image_std=(0.2, 0.3, 0.4),
    )
    natjax.NatForImageClassification(config, rngs=nnx.Rngs(0)).save_pretrained(directory, processor=processor)
    return directory


def write_images(directory, classes, count=5):
    rng = np.random.default_rng(0)
    for name in classes:
        folder = directory / "val" / name
        folder.mkdir(parents=True)
        for i in range(count):
            size = rng.integers(33, 60, 2)
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    return directory


def run(capsys, *arguments):
    code = main(["eval", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def expected(model, data, classes):
    """Top-1 and loss, image by image, with the model's own processor."""
    net, processor = (c.from_pretrained(model) for c in (natjax.NatForImageClassification, natjax.NatImageProcessor))
    right, losses = [], []
    for name in classes:
        for path in sorted((data / "val" / name).iterdir()):
            logits = np.asarray(net(processor(path)).logits[0], np.float64)
            losses.append(np.log(np.exp(logits).sum()) - logits[CLASSES.index(name)])
            right.append(logits.argmax() == CLASSES.index(name))
    return np.mean(right), np.mean(losses)


def test_a_classifier_is_no_segmenter(capsys):
    code, out, err = run(capsys, *DIGITS, "--task", "segmentation")
    assert (code, out) == (1, "")
    assert (
        "--task segmentation measures a segmenter, and this is none: leave --task out, or give another --model." in err
    )


def test_digits(capsys, tmp_path):
    code, out, _ = run(capsys, *DIGITS, "--json", "--csv", tmp_path / "classes.csv")
    found = json.loads(out)
    assert code == 0
    assert list(found) == ["top1", "top5", "loss", "images_per_second", "images", "classes", "warnings"]
    assert found["warnings"] == []
    assert found["images"] == 360
    assert 0.985 <= found["top1"] <= found["top5"] <= 1
    assert 0 < found["loss"] < 0.1
    assert found["images_per_second"] > 0
    rows = read_csv(tmp_path / "classes.csv")
    assert [row["class"] for row in rows] == [row["class"] for row in found["classes"]] == list("0123456789")
    assert [float(row["recall"]) for row in rows] == [row["recall"] for row in found["classes"]]
    counts = [int(row["images"]) for row in rows]
    assert sum(counts) == 360
    right = sum(count * float(row["recall"]) for count, row in zip(counts, rows, strict=True))
    assert right / 360 == pytest.approx(found["top1"])


@pytest.mark.parametrize("batch_size", [4, 64])
def test_folder_as_the_models_own_processor_prepares_it(capsys, tmp_path, model, batch_size):
    classes = [CLASSES[i] for i in (1, 2, 4)]  # some of the model's, found by name
    data = write_images(tmp_path, classes)
    code, out, _ = run(capsys, "--data", data, "--model", model, "--json", "--batch-size", batch_size)
    found = json.loads(out)
    top1, loss = expected(model, data, classes)
    assert code == 0
    assert found["top1"] == pytest.approx(top1)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_two_processes_share_the_images(capsys, tmp_path, model):
    data = write_images(tmp_path / "data", CLASSES)
    arguments = ["--data", data, "--model", model, "--json", "--batch-size", 8]
    _, out, _ = run(capsys, *arguments, "--csv", tmp_path / "alone.csv")
    alone = json.loads(out)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    children = []
    for i in range(2):
        own = ["--csv", tmp_path / f"{i}.csv", "--coordinator", address, "--processes", 2, "--process", i]
        command = [sys.executable, "-m", "natjax", "eval", *map(str, (*arguments, *own))]
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env))
    outputs = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    (first, _), (second, _) = outputs
    together = json.loads(first[first.index("{") :])  # after words of gloo
    assert [together[name] for name in ("top1", "top5")] == [alone[name] for name in ("top1", "top5")]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert read_csv(tmp_path / "0.csv") == read_csv(tmp_path / "alone.csv")
    assert sum(int(row["images"]) for row in read_csv(tmp_path / "0.csv")) == 30
    assert "{" not in second
    assert not (tmp_path / "1.csv").exists()


def test_dtype(capsys, tmp_path, model):
    arguments = ["--data", write_images(tmp_path, CLASSES), "--model", model, "--json"]
    exact, again, rough = (
        json.loads(run(capsys, *arguments, *dtype)[1])["loss"]
        for dtype in ((), ("--dtype", "float32"), ("--dtype", "bfloat16"))
    )
    assert exact == again != rough
    assert rough == pytest.approx(exact, rel=0.05)


def test_text_names_the_hardest_classes(capsys, tmp_path, model):
    code, out, _ = run(capsys, "--data", write_images(tmp_path, CLASSES), "--model", model)
    first, second, _, head, *rows = out.splitlines()
    assert code == 0
    assert first.startswith("30 images, ")
    assert second.startswith("top-1 ")
    assert head.split() == ["class", "images", "recall", "precision"]
    assert len(rows) == 6


@pytest.mark.filterwarnings("default:.*cannot be read")
def test_unreadable_images_are_not_counted(capsys, tmp_path, model):
    data = write_images(tmp_path, CLASSES)
    (data / "val" / CLASSES[0] / "1.png").write_bytes(b"no image")
    code, out, err = run(capsys, "--data", data, "--model", model)
    assert code == 1
    assert out.startswith("29 images, ")
    assert "1 image could not be read and is not counted" in err


def test_runs_folder(capsys, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    code, _, err = run(capsys, "--data", "digits", "--model", tmp_path)
    assert code == 1
    assert "has no model before its first evaluation" in err
    shutil.copytree(demo.MODEL_DIR, tmp_path / "model")
    code, out, _ = run(capsys, "--data", "digits", "--model", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["top1"] >= 0.985


@pytest.mark.parametrize(
    ("classes", "names", "expected", "said"),
    [
        (["cat", "dog"], ["emu", "dog", "cat"], [2, 1], None),
        (["caf\u00e9"], ["dog", "cafe\u0301"], [1], None),
        (["CAT", "DOG", "EMU"], ["emu", "cat", "dog"], [1, 2, 0], "whatever case.*: CAT is cat"),
        (["great_white-shark"], ["cat", "great white shark"], [1], "whatever case"),
        (
            ["goldfish", "tench"],
            ["tench, Tinca tinca", "goldfish, Carassius"],
            [1, 0],
            "synonyms: goldfish is goldfish, C",
        ),
        (["a", "b"], ["LABEL_0", "LABEL_1"], [0, 1], "no names of their own .*in order"),
        (["x", "x"], ["x", "x"], [0, 1], None),
        ([f"n{i:08}" for i in range(1000)], list(map(str, range(1000))), list(range(1000)), "WordNet ids"),
    ],
)
def test_classes_are_matched_by_name(classes, names, expected, said):
    found, words = match_classes(classes, names)
    assert found == expected
    assert (words is None) == (said is None)
    assert said is None or re.search(said, words)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["n0", "n1"], ["cat", "dog"]),
        (["cat", "emu"], ["cat", "dog"]),
        (["a"], ["LABEL_0", "LABEL_1"]),
        (["Cat", "cat_"], ["cat", "dog"]),
        (["crane", "hen"], ["crane, a bird", "crane, a machine", "hen"]),
    ],
)
def test_names_that_do_not_say_which_class_is_which(classes, names):
    with pytest.raises(
        ValueError, match=f"data's {len(classes)} classes .{classes[0]}.*model's {len(names)} .{names[0]}"
    ):
        match_classes(classes, names)


def test_classes_of_other_names(capsys, tmp_path, model):
    data = write_images(tmp_path / "loose", [name.upper().replace(" ", "_") for name in CLASSES], 2)
    code, out, err = run(capsys, "--data", data, "--model", model, "--json")
    (warning,) = json.loads(out)["warnings"]
    assert code == 0
    assert warning in err
    assert "CLASS_A is class a" in warning
    code, out, err = run(capsys, "--data", write_images(tmp_path / "other", ["n1", "n2"], 1), "--model", model)
    assert (code, out) == (1, "")
    assert "The names of the data's 2 classes (n1; n2) are not among those of the model's 6 (class a; " in err


def test_a_table_that_cannot_be_written_is_known_before_the_evaluation(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("natjax_train.evaluate.evaluate", lambda *_, **__: pytest.fail("too late"))
    code, out, err = run(capsys, *DIGITS, "--csv", tmp_path / "missing" / "classes.csv")
    assert (code, out) == (1, "")
    assert "No such file or directory" in err
    code, out, err = run(capsys, "--data", "digits", "--csv", tmp_path)
    assert (code, out) == (1, "")
    assert "is a folder; give a file to write" in err


def test_it_says_what_it_measures(capsys, tmp_path, model):
    data = write_images(tmp_path, CLASSES[:2], 2)
    (data / "train" / CLASSES[0]).mkdir(parents=True)
    (data / "train" / CLASSES[1]).mkdir()
    (data / "train" / CLASSES[2]).mkdir()
    code, out, err = run(capsys, "--data", data, "--model", model, "--json")
    assert code == 0
    assert f"4 images, 3 classes; model {model}; preprocessing from the checkpoint" in err
    assert f"Classes without validation images: {CLASSES[2]}." in err
    found = json.loads(out)["classes"][2]
    assert (found["class"], found["images"], found["recall"]) == (CLASSES[2], 0, None)


def test_a_table_of_names_that_are_no_utf8(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(str(path), evaluate._COLUMNS, [("caf\udce9", 2, 0.5, float("nan")), ("dog", 1, 1.0, 0.5)])
    assert path.read_text(encoding="utf-8").splitlines() == [
        "class,images,recall,precision",
        "caf\\udce9,2,0.5,",
        "dog,1,1.0,0.5",
    ]


@pytest.mark.parametrize(("count", "top5"), [(5, ""), (6, "top-5 100.00%, ")])
def test_what_says_nothing_is_not_printed(capsys, count, top5):
    confusion = np.zeros((count, count), np.int64)
    confusion[:, 0] = 1  # all are taken for the first class
    metrics = Metrics(loss=1.0, top1=1 / count, top5=1.0, images_per_second=2.0, confusion=confusion)
    rows = [(str(i), *found) for i, found in enumerate(metrics.per_class())]
    evaluate._print(metrics, rows, count)
    out = capsys.readouterr().out
    assert f"top-1 {1 / count:.2%}, {top5}loss 1.0000" in out
    assert "nan" not in out
    assert out.splitlines()[-1].split()[1:] == ["1", "100.0%", f"{1 / count:.1%}"]
    assert out.splitlines()[-2].split()[1:] == ["1", "0.0%", "-"]
    assert ("top5" in metrics.row()) == bool(top5)
    evaluate._tell(argparse.Namespace(json=True, csv=None), metrics, list(map(str, range(count))), [])
    assert ("top5" in json.loads(capsys.readouterr().out)) == bool(top5)


def test_data_without_a_split(capsys, tmp_path, model):
    data = write_images(tmp_path, CLASSES, 4) / "val"
    code, _, err = run(capsys, "--data", data, "--model", model)
    assert code == 1
    assert "has no val/ or validation/" in err
    assert "--val-fraction 0.1" in err
    shutil.copytree(model, tmp_path / "run" / "model")
    recipe = dataclasses.replace(RECIPES["finetune"], val_fraction=0.25, seed=3)
    (tmp_path / "run" / "recipe.json").write_text(recipe.to_json())
    code, out, err = run(capsys, "--data", data, "--model", tmp_path / "run", "--json")
    assert (code, json.loads(out)["images"]) == (0, 6)
    (warning,) = json.loads(out)["warnings"]
    assert warning == (
        f"{data} has no val/: if these are the run's data, the images that it held out are measured (val_fraction 0.25)"
    )
    assert err.count(warning) == 1
    weights = tmp_path / "run" / "model" / "model.safetensors"
    code, out, err = run(capsys, "--data", data, "--model", weights, "--json", "--csv", tmp_path / "classes.csv")
    assert (code, json.loads(out)["images"]) == (0, 6)
    assert f"{tmp_path / 'classes.csv'}: wrote images, recall and precision of 6 classes" in err


def test_messages_do_not_share_the_line_of_progress(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def measure(*_, progress, report, **__):
        progress(3)
        report("one is broken")
        progress(4)
        raise natjax.ImageError("all are broken")

    terminal = Terminal()
    monkeypatch.setattr("natjax_train.evaluate.measure", measure)
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["eval", *DIGITS]) == 1
    before, _, after = terminal.getvalue().partition("natjax: one is broken\n")
    for line, text in (before.rpartition("\n")[2], "3/360"), (after.partition("natjax: error: all")[0], "4/360"):
        empty, shown, wiped, rest = line.split("\r")
        assert shown.startswith(text)
        assert empty == wiped.strip() == rest == ""


def test_refusals(capsys, tmp_path, model):
    code, _, err = run(capsys, "--data", "digits")
    assert code == 1
    assert "no model given" in err
    for workers in ("-1", "many"):
        with pytest.raises(SystemExit):
            run(capsys, *DIGITS, "--workers", workers)
        assert f"argument --workers: must be an integer of at least 0; got '{workers}'" in capsys.readouterr().err
    code, _, err = run(capsys, "--data", tmp_path / "missing", "--model", model)
    assert code == 1
    assert "no such folder" in err
    strange = shutil.copytree(model, tmp_path / "strange")
    natjax.NatImageProcessor(size={"shortest_edge": 32}).save_pretrained(strange)
    code, _, err = run(capsys, "--data", write_images(tmp_path, CLASSES, 2), "--model", strange)
    assert code == 1
    assert re.search(r"one size; the model's image processor makes some of 32 x \d+ and \d+ x \d+ pixels", err)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": 120.0, "image_std": (50.0, 60.0, 70.0)},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
        {"rescale_factor": 0.00392157},
    ],
)
def test_whatever_a_processor_does_to_pixels(capsys, tmp_path, model, changes):
    other = shutil.copytree(model, tmp_path / "other")
    natjax.NatImageProcessor(size=32, **changes).save_pretrained(other)
    data = write_images(tmp_path, CLASSES, 1)
    code, out, _ = run(capsys, "--data", data, "--model", other, "--json")
    assert code == 0
    assert json.loads(out)["loss"] == pytest.approx(expected(other, data, CLASSES)[1], rel=1e-5)
