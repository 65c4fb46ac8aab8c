"""`natjax train` before any training: help and errors."""

from __future__ import annotations

import dataclasses

import pytest

from natjax import cli
from natjax_train.recipes import Recipe


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')} VALUE" in text
        assert f"\n        {field.name}: " in (Recipe.__doc__ or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--recipe is needed"),
        (["--recipe", "nat-mini"], "Did you mean nat_mini"),
        (["--recipe", "digits", "--epochs", "many"], "epochs must be a finite number; got 'many'"),
        (["--recipe", "digits", "--batch-size=0"], "batch_size must be more than 0; got 0"),
        (["--recipe", "digits", "--processes", "2"], "needs coordinator"),
    ],
)
def test_errors(capsys, tmp_path, arguments, message):
    assert cli.main(["train", "--data", "digits", "--out", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err
