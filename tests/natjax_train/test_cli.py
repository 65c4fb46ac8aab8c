"""`natjax train` before any training: help and errors."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import jax
import pytest

from natjax import cli
from natjax.cli import train
from natjax_train import loop, start
from natjax_train.recipe import Recipe, field_help
from natjax_train.recipes import RECIPES

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version


def has_flag(field):
    """Returns a pattern of the flag of a recipe's field, with what it takes."""
    return rf"--{field.replace('_', '-')} (N|X|X,\.\.\.|TEXT|JSON|\[true\|false\])\s"


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert re.search(has_flag(field.name), text)
        assert field.metadata["help"]


def test_help_without_docstrings():
    command = [sys.executable, "-OO", "-m", "natjax", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in field_help():
        assert re.search(has_flag(name), done.stdout)
    assert "micro-batches of a step" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--recipe is needed"),
        (["--recipe", "nat-mini"], "Did you mean nat_mini"),
        (["--recipe", "digits", "--epochs", "many"], "epochs must be a finite number; got 'many'"),
        (["--recipe", "digits", "--batch-size=0"], "batch_size must be more than 0; got 0"),
        (["--recipe", "digits", "--processes", "2"], "needs coordinator"),
        (["--recipe", "digits", "--batch-size", "2000"], "the 1437 training images: give --batch-size 1437 or less."),
    ],
)
def test_errors(capsys, tmp_path, arguments, message):
    assert cli.main(["train", "--data", "digits", "--out", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def run(capsys, out, *arguments):
    code = cli.main(["train", "--data", "digits", "--out", str(out), *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"), [('{"model" "custom"}', "Expecting ':'"), ('{"epochs": 1}', "needs a model")]
)
def test_files_that_hold_no_recipe(capsys, tmp_path, text, reason):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    for arguments in (["--recipe", str(path)], ["--resume"]):
        code, message = run(capsys, tmp_path, *arguments)
        assert code == 1
        assert message.startswith(f"natjax: error: {path} is no recipe: ")
        assert reason in message


def test_resumed_by_another_recipe(capsys, monkeypatch, tmp_path):
    (tmp_path / "recipe.json").write_text(dataclasses.replace(RECIPES["digits"], epochs=30.0, seed=5).to_json())
    recipes = []
    monkeypatch.setattr(loop, "train", lambda recipe, *arguments, **options: recipes.append(recipe))
    code, message = run(capsys, tmp_path, "--resume", "--recipe", "digits", "--warmup-epochs", "1", "--keep", "5")
    assert (code, recipes) == (1, [])
    assert "recipe.json, which differs from --recipe digits in epochs, seed: leave --recipe out" in message
    same = ("--recipe", "digits", "--epochs", "30", "--warmup-epochs", "1", "--seed", "5")
    for arguments in (("--warmup-epochs", "1"), same):
        assert run(capsys, tmp_path, "--resume", *arguments) == (0, "")
        assert (recipes[-1].epochs, recipes[-1].seed, recipes[-1].warmup_epochs) == (30.0, 5, 1.0)


@pytest.mark.parametrize("said", ["RESOURCE_EXHAUSTED: Out of memory allocating", "INTERNAL: something else"])
def test_out_of_memory(capsys, monkeypatch, tmp_path, said):
    def train(*arguments, **options):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(loop, "train", train)
    code, message = run(capsys, tmp_path, "--recipe", "digits", "--accumulate", "2")
    assert code == 1
    names = ["batch_size (64)", "accumulate (2)", "--remat", "--dtype bfloat16"]
    assert [name in message for name in names] == [said.startswith("RESOURCE")] * 4
    assert (said in message) != said.startswith("RESOURCE")


def test_flags_as_people_write_them(capsys, monkeypatch, tmp_path):
    recipes = []
    monkeypatch.setattr(loop, "train", lambda recipe, *arguments, **options: recipes.append(recipe))
    for flags, expected in (
        (["--remat"], (True, None)),
        (["--remat", "true", "--no-crop"], (True, False)),
        (["--no-remat", "--crop"], (False, True)),
        (["--remat=false", "--crop", "none"], (False, None)),
    ):
        assert run(capsys, tmp_path, "--recipe", "finetune", *flags) == (0, "")
        assert (recipes[-1].remat, recipes[-1].crop) == expected
    code, message = run(capsys, tmp_path, "--recipe", "finetune", "--epochs", "2")
    assert (code, recipes[-1].warmup_epochs) == (0, pytest.approx(0.2))
    assert (
        message
        == "natjax: warm-up shortened from 3 to 0.2 epochs, the same part of a run of 2 (--warmup-epochs says otherwise)\n"
    )
    code, message = run(capsys, tmp_path, "--recipe", "mask_rcnn_nat_mini", "--epochs", "12")
    assert (code, recipes[-1].milestones) == (0, (9, 11))
    assert (
        message
        == "natjax: milestones moved from 27, 33 to 9, 11 epochs, the same part of a run of 12 (--milestones says otherwise)\n"
    )


def test_the_same_command_resumes(capsys, monkeypatch, tmp_path):
    decided = start.resolve(dataclasses.replace(RECIPES["finetune"], model="digits"))[0]
    (tmp_path / "recipe.json").write_text(decided.to_json())
    recipes = []
    monkeypatch.setattr(loop, "train", lambda recipe, *arguments, **options: recipes.append(recipe))
    same = ("--resume", "--recipe", "finetune", "--model", "digits")
    assert run(capsys, tmp_path, *same) == (0, "")
    assert recipes == [decided]


def test_a_recipe_file_names_its_model_as_before(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    named = dataclasses.replace(RECIPES["finetune"], model="models/one")
    (tmp_path / "mine.json").write_text(named.to_json())
    saved = dataclasses.replace(named, model=str(tmp_path / "models" / "one"))
    (tmp_path / "recipe.json").write_text(saved.to_json())
    monkeypatch.setattr(loop, "train", lambda *arguments, **options: None)
    assert run(capsys, tmp_path, "--resume", "--recipe", "mine.json") == (0, "")


def test_lists_are_printed_on_a_line():
    text = RECIPES["dinat_mini"].to_json()
    shown = train._on_one_line(text)
    assert json.loads(shown) == json.loads(text)
    assert '"crop_scale": [0.08, 1.0],' in shown


def test_the_recipe_is_printed_once_all_was_found(capsys, tmp_path):
    assert (
        cli.main(["train", "--recipe", "digits", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "run")]) == 1
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no such folder" in printed.err
