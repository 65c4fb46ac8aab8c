"""The command line as a whole: help, usage, exit codes, and one clear line for what goes wrong."""

import subprocess
import sys
import types

import pytest
from fake_model import FakeModel

import natjax
from natjax.cli import main

pytestmark = pytest.mark.once


def test_help_and_version_import_nothing_heavy():
    code = """
import sys
from natjax.cli import main
for arguments in (["--help"], ["--version"], ["classify", "--help"], ["convert", "--help"], ["bench", "op", "--help"]):
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 0
    heavy = {"jax", "flax", "numpy", "PIL", "torch", "safetensors"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.count("usage: natjax") == 4
    assert f"natjax {natjax.__version__}\n" in result.stdout


def test_module_and_script_are_the_same_command():
    result = subprocess.run([sys.executable, "-m", "natjax", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"natjax {natjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: COMMAND"),
        ("paint", "invalid choice: 'paint'"),
        ("classfy x.png", "). Did you mean classify?"),
        ("bnch op", "). Did you mean bench?"),
        ("convert a b --to shilab", "). Did you mean shilabs?"),
        ("info nat_mini --image-sise 8", "unrecognized arguments: --image-sise 8. Did you mean --image-size?"),
        ("bench nat_mini --batchsize=8", "unrecognized arguments: --batchsize=8. Did you mean --batch-size?"),
        ("list --jso", "unrecognized arguments: --jso. Did you mean --json?"),
        ("list nat* more", "unrecognized arguments: more"),
        ("classify", "required: IMAGE"),
        ("classify x.png --topk 0", "must be an integer of at least 1; got '0'"),
        ("classify x.png --batch-size many", "must be an integer of at least 1; got 'many'"),
        ("info nat_mini --image-size 1x2x3", "must be a number of pixels or HEIGHTxWIDTH; got '1x2x3'"),
        ("info nat_mini --image-size 9x0", "must be 1 to 65536 pixels; got '0'"),
        ("doctor --image-size 0", "must be 1 to 65536 pixels; got '0'"),
        ("doctor --image-size -5", "must be 1 to 65536 pixels; got '-5'"),
        ("doctor --image-size 999999999", "must be 1 to 65536 pixels; got '999999999'"),
        ("doctor --image-size 8x8", "must be 1 to 65536 pixels; got '8x8'"),
        ("convert a b --dilations [1", "must be 'none' or JSON"),
        ("convert a b --to c", "invalid choice: 'c'"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in error
    assert message in error


def test_demo(monkeypatch):
    demo = types.SimpleNamespace(run=lambda out: 0 if out == "there" else 9)
    monkeypatch.setitem(sys.modules, "natjax.demo", demo)
    monkeypatch.setattr(natjax, "demo", demo, raising=False)
    assert main(["demo", "--out", "there"]) == 0


def test_errors_are_one_line_unless_asked_for_more(fake, capsys, monkeypatch):
    assert main(["classify", "images", "--model", "missing"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("natjax: error: missing: no such file or directory")
    assert "Traceback" not in err
    assert main(["classify", "images", "--model", "missing", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("NATJAX_TRACEBACK", "1")
    assert main(["classify", "images", "--model", "missing"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oh"), 1, "error: unexpected ZeroDivisionError: oh (--debug shows where)"),
        (ValueError(), 1, "error: ValueError"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left"),
    ],
)
def test_failures(error, code, message, fake, capsys, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(FakeModel, "from_pretrained", fail)
    assert main(["classify", "images", "--model", "model"]) == code
    assert capsys.readouterr().err == f"natjax: {message}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break differently there")
def test_nobody_reads_the_output():
    code = "import natjax.cli, sys; natjax.cli.info.run = None\n"
    code += (
        "natjax.cli._COMMANDS['list'].run = lambda args: print('x' * 10**6) or 0\nsys.exit(natjax.cli.main(['list']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_streams(closed, monkeypatch):
    monkeypatch.setattr(sys, closed, None)
    assert main(["list", "nat_mini"]) == 0
    assert main(["list", "nothing"]) == 1
    getattr(sys, closed).close()
