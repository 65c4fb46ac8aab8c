"""What the GPU benchmark and tuning refuse: wrong arguments and files, before anything is written, measured or tuned."""

import json
import sys

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import tuner
from benchmarks.harness import RESULTS
from natjax_kernels.fused.configurations import Config

pytestmark = pytest.mark.once


def refused(monkeypatch, capsys, *arguments):
    """Returns what the benchmark says on stderr of arguments that are wrong, having measured nothing."""
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        gpu.main()
    assert raised.value.code == 2
    return capsys.readouterr().err


ROW, ORIGIN = {"case": "a", "microseconds": 1.0}, {"device": "NVIDIA H200", "date": "monday"}
GOOD = {"status": "complete", "provenance": ORIGIN, "rows": [ROW]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a folder", "cannot be read: Is a directory"),
        ("{", "cannot be read: Expecting property name"),
        ("[1]", "no results of a GPU"),
        ({"provenance": ORIGIN, "gpus": {}}, "no results of a GPU"),
        ({"section": ["op"], "rows": [ROW]}, "no results of a GPU"),
        ({"op": "complete"}, "no dict with a status"),
        ({"op": {"rows": [ROW]}}, "no dict with a status"),
        ({"op": GOOD | {"output": 1}}, "no dict with a status"),
        ({"op": GOOD | {"rows": "no list"}}, "rows are no list of dicts"),
        ({"op": GOOD | {"rows": ["no dict"]}}, "rows are no list of dicts"),
        ({"op": GOOD | {"rows": [{"error": 3}]}}, "error or reason that is no text"),
        ({"op": GOOD | {"rows": [ROW | {"case": ["a"]}]}}, "lists or dicts for labels"),
        ({"op": GOOD | {"provenance": {"device": "NVIDIA H200"}}}, "no device and date"),
        ({"op": GOOD | {"provenance": "none"}}, "no device and date"),
        ({"op": GOOD | {"load_before_run": 0.1}}, "measured on a CPU"),
        ({"op": GOOD | {"provenance": ORIGIN | {"device": "cpu", "small": False}}}, "measured on a CPU"),
    ],
)
def test_a_summary_of_a_file_without_results_is_refused(tmp_path, monkeypatch, capsys, content, said):
    """And adds none of the other files, nor a folder."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"op": GOOD}))
    if content == "a folder":
        bad.mkdir()
    elif content is not None:
        bad.write_text(content if isinstance(content, str) else json.dumps(content))
    error = refused(monkeypatch, capsys, "--out", tmp_path / "out", "--summary", good, bad)
    assert f"{bad} " in error
    assert said in error
    assert "Expected a file of python -m benchmarks.gpu" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["costs", "resources", "convert_cpu", "train_step_cpu", "cpu"])
def test_results_of_other_benchmarks_are_none_of_a_gpu(name):
    with pytest.raises(ValueError, match="no results of a GPU"):
        gpu.load(RESULTS / f"{name}.json")


def test_results_of_a_rehearsal_are_results(tmp_path, monkeypatch):
    brought = tmp_path / "gpu_cpu.json"
    brought.write_text(json.dumps({"op": GOOD | {"provenance": ORIGIN | {"device": "cpu", "small": True}}}))
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", str(tmp_path / "out"), "--summary", str(brought)])
    assert gpu.main() == 0
    assert (tmp_path / "out" / "gpu_cpu.json").exists()


def test_a_summary_of_nothing_says_so_and_makes_no_folder(tmp_path, monkeypatch, capsys):
    error = refused(monkeypatch, capsys, "--out", tmp_path / "out", "--summary")
    assert f"{tmp_path / 'out'} has no results of python -m benchmarks.gpu: run it" in error
    assert not (tmp_path / "out").exists()


def test_damaged_results_in_the_folder_are_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    damaged = tmp_path / "gpu_nvidia_h200.json"
    damaged.write_text('{"op": {"status"')
    for arguments in ([], ["--summary"]):
        assert f"{damaged} cannot be read" in refused(monkeypatch, capsys, "--out", tmp_path, *arguments)
    assert damaged.read_text() == '{"op": {"status"'


def test_a_damaged_partial_file_ends_no_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu_op.partial.json").write_text("")
    monkeypatch.setattr(gpu, "run", lambda *_: [("op", GOOD)])
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", str(tmp_path)])
    assert gpu.main() == 0
    assert "gpu_op.partial.json cannot be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["gpu_nvidia_h200.json"]


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option in ("--seconds", "--within") for value in ("0", "-5", "nan", "inf", "x")]
    + [("--threads", "0")],
)
def test_times_and_threads_are_positive(tmp_path, monkeypatch, capsys, option, value):
    error = refused(monkeypatch, capsys, "--out", tmp_path / "out", option, value)
    assert f"argument {option}: must be" in error
    assert f"got {value!r}" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_files_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "under"):
        assert "--out has to be a folder that files" in refused(monkeypatch, capsys, "--out", out)

    def read_only(path):
        raise OSError(f"no file can be written in {path.parent}")

    monkeypatch.setattr(gpu, "check_writable", read_only)
    assert f"no file can be written in {tmp_path}" in refused(monkeypatch, capsys, "--out", tmp_path)


def refused_tuning(monkeypatch, capsys, *arguments):
    """Returns what tuning says on stderr of arguments that are wrong, having tuned nothing."""
    pytest.importorskip("triton")
    from benchmarks import tune
    from benchmarks.gpu import alone

    monkeypatch.setattr(alone, "Alone", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["benchmarks.tune", "--device-kind", "A", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        tune.main()
    return capsys.readouterr().err or raised.value.code


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is a folder; give a file to write"),
        ("missing/configs.json", "no file can be written in"),
        ("damaged.json", "cannot be read: Expecting value"),
        ("list.json", "cannot be read: it has other than dicts"),
        ("text.json", "cannot be read: it has other than dicts"),
    ],
)
def test_configurations_that_cannot_be_added_to_are_refused_before_tuning(tmp_path, monkeypatch, capsys, name, said):
    """And stay as they are."""
    texts = {"damaged.json": '{"A": {"x":', "list.json": "[]", "text.json": '{"A": "x"}'}
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    path = tmp_path / name
    error = refused_tuning(monkeypatch, capsys, "--configs", path)
    assert f"error: --configs: {path}" in error
    assert said in error
    if name in texts:
        with pytest.raises(ValueError, match="cannot be read"):  # one that was damaged meanwhile, too
            tuner.merge(path, "A", "key", Config((4, 4), None, 64, True, 4))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == texts


@pytest.mark.parametrize(
    ("option", "value"), [("--seconds", "0"), ("--seconds", "nan"), ("--threads", "0"), ("--most", "-1")]
)
def test_tuning_takes_positive_times_and_numbers(monkeypatch, capsys, option, value):
    assert f"argument {option}: must be" in refused_tuning(monkeypatch, capsys, option, value)


def test_a_list_of_no_cases_is_an_error(monkeypatch, capsys):
    error = refused_tuning(monkeypatch, capsys, "--list", "--cases", "zzz")
    assert error == "No case is named like ['zzz']; --list without --cases prints the names."
