"""The log of a run: lines of JSON, what terminals and files are shown, resumed and damaged logs, TensorBoard."""

import io
import json
import sys
import time
import types

import numpy as np
import pytest

from natjax_train.log import Log
from natjax_train.tasks.classification import Metrics

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version

FOUND = Metrics(loss=0.5, top1=0.875, top5=1.0, images_per_second=321.0, confusion=np.eye(2, dtype=np.int64))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(directory, steps, stream, total=8, first_step=0, loss=None):
    log = Log(directory, total, first_step, log_every=2, stream=stream)
    for step in steps:
        value = 1 / step if loss is None else loss
        log.step(step, loss=value, lr=1e-3, grad_norm=2.0, images_per_second=50.0 * step, data_wait=0.25)
    return log


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_json_are_complete_at_once(tmp_path):
    log = run(tmp_path, [1, 2], io.StringIO())
    log.evaluation(2, FOUND)
    rows = lines(tmp_path)  # before it is closed: a killed run has them
    assert rows[1] == {
        "step": 2,
        "loss": 0.5,
        "lr": 1e-3,
        "images_per_second": 100.0,
        "data_wait": 0.25,
        "grad_norm": 2.0,
    }
    assert rows[2] == {"step": 2, "val_loss": 0.5, "top1": 0.875}
    log.close()


def test_an_evaluation_that_is_done_again_is_logged_once(tmp_path):
    log = run(tmp_path, [1, 2], io.StringIO())
    log.evaluation(1, FOUND)
    log.evaluation(2, FOUND)
    log.close()
    log = run(tmp_path, [], io.StringIO(), first_step=2)  # which a kill kept from saving that score
    log.evaluation(2, FOUND)
    log.close()
    log = run(tmp_path, [2], io.StringIO(), first_step=1)  # the step comes again, and so does its evaluation
    log.evaluation(2, FOUND)
    log.close()
    assert [row["step"] for row in lines(tmp_path) if "top1" in row] == [1, 2]


def test_plain_lines(tmp_path):
    stream = io.StringIO()
    log = run(tmp_path, range(1, 6), stream)
    log.evaluation(5, FOUND)
    log.close()
    first, second, evaluation = stream.getvalue().splitlines()
    assert first.startswith("step 2/8  loss 0.7500  lr 1.0e-03  eta 0m0")
    assert first.endswith("  100 img/s  wait 25%")  # of step 2 alone
    assert second.startswith("step 4/8  loss 0.2917  lr 1.0e-03  eta 0m0")
    assert second.endswith("  171 img/s  wait 25%")
    assert evaluation == "evaluation after step 5: top-1 87.50%  loss 0.5000  of 2 images  321 images/s"


def test_only_steps_count_as_their_time(tmp_path, monkeypatch):
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    stream = io.StringIO()
    log = Log(tmp_path, 10, log_every=1, stream=stream)
    for step, seconds, pause in ((1, 300, 0), (2, 2, 100), (3, 2, 0)):  # compiled for, then an evaluation
        clock += seconds
        log.step(step, loss=1.0, lr=0.1, images_per_second=8 / seconds, data_wait=0.0)
        clock += pause
        log.restart_clock()
    log.close()
    first, second, third = stream.getvalue().splitlines()
    assert first.endswith("eta -  - img/s  wait -")
    assert second.endswith("eta 0m16s  4 img/s  wait 0%")
    assert third.endswith("eta 0m14s  4 img/s  wait 0%")


def test_live_line(tmp_path):
    stream = Terminal()
    log = run(tmp_path, [*range(1, 8), 8], stream)
    shown = stream.getvalue()
    assert shown.count("\r") == 2  # the first step and the last one; those between came too fast to be read
    assert "\n" not in shown
    log.evaluation(8, FOUND)
    log.close()
    *_, wiped, evaluation = stream.getvalue().split("\r")
    assert not wiped.strip()
    assert evaluation.startswith("evaluation after step 8: ")
    assert evaluation.count("\n") == 1


@pytest.mark.parametrize(
    ("columns", "last"),
    [(80, "wait 100%"), (70, "1024 img/s"), (60, "eta 107h38m"), (48, "lr 1.0e-03"), (32, "loss 6.9000"), (5, "")],
)
def test_live_line_fits_the_terminal(tmp_path, monkeypatch, columns, last):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(time, "monotonic", iter([0.0, 1.0]).__next__)
    stream = Terminal()
    log = Log(tmp_path, 387500, stream=stream)
    for step in (1, 2):  # a second a step: everything is as long as it gets
        log.step(step, loss=6.9, lr=1e-3, images_per_second=1024.0, data_wait=1.0)
    log.close()
    shown = stream.getvalue().strip("\r\n").rpartition("\r")[-1].rstrip()
    assert len(shown) < columns
    assert shown.endswith(last)
    assert "step      2/387500  loss 6.9000  lr 1.0e-03  eta 107h38m  1024 img/s  wait 100%".startswith(shown)


def test_resumed_runs_drop_what_comes_again(tmp_path):
    log = run(tmp_path, range(1, 6), io.StringIO())
    log.evaluation(3, FOUND)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('null\n{"loss": 3}\n\xff\n{"step": 2, "lo')  # the end of a crash
    run(tmp_path, [4, 5, 6], io.StringIO(), first_step=3, loss=7.0).close()
    assert [(row["step"], row.get("loss")) for row in lines(tmp_path)] == [
        *((step, 1 / step) for step in (1, 2, 3)),
        (3, None),
        *((step, 7.0) for step in (4, 5, 6)),
    ]
    run(tmp_path, [1], io.StringIO()).close()
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_is_not_finite_is_null(tmp_path, loss):
    run(tmp_path, [1, 2], io.StringIO(), loss=loss).close()
    assert [row["loss"] for row in lines(tmp_path)] == [None, None]


def test_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, directory, purge_step):
            calls.append((directory, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    log = run(tmp_path, [4], io.StringIO(), first_step=3)
    log.evaluation(4, FOUND)
    log.close()
    assert calls[0] == (str(tmp_path / "tensorboard"), 4)
    assert ("loss", 0.25, 4) in calls
    assert ("top1", 0.875, 4) in calls
    assert calls[-1] == "closed"


def test_messages_do_not_share_the_live_line(tmp_path):
    stream = Terminal()
    log = Log(tmp_path, 10, log_every=1, stream=stream)
    log.step(1, loss=1.0, lr=0.1, images_per_second=5.0, data_wait=0.0)
    log.beside(lambda message: stream.write(message + "\n"))("saved")
    log.close()
    line, _, rest = stream.getvalue().lstrip("\r").partition("\r")
    assert line.startswith("step")
    assert rest.strip(" \r\n") == "saved"
