"""Whole runs of `natjax train`: interrupted in every way, resumed, on meshes and several processes."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import natjax
from natjax import cli

pytestmark = [
    pytest.mark.slow,
    # A read that fails ends Orbax's event loop while other reads of it are under way, and these complain to nobody.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODEL = {
    "num_channels": 1,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "kernel_size": 3,
    "drop_path_rate": 0.1,
}
SETTINGS = {
    "image_size": 32,
    "batch_size": 16,
    "epochs": 0.34,  # 30 steps
    "warmup_epochs": 0.05,
    "eval_every": 0.12,
    "save_every": 5,
    "log_every": 1,
    "ema_decay": 0.9,
    "model_config": json.dumps(MODEL),
}


def command(out, *arguments, **settings):
    fields = [f"--{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    return ["train", "--recipe=digits", "--data=digits", f"--out={out}", *fields, *arguments]


@pytest.fixture(scope="session")
def start():
    """Starts `natjax train` in a folder, as a process."""

    def start(out, *arguments, devices=1, start_new_session=False, **settings):
        variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        if devices > 1 or any("--processes" in argument for argument in arguments):
            variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # these programs are compiled for one test only
        return subprocess.Popen(
            [sys.executable, "-m", "natjax", *command(out, *arguments, **settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
            start_new_session=start_new_session,
        )

    return start


@pytest.fixture
def run(capsys):
    """Runs `natjax train` in this process, for what no other process and no signal is needed; returns code and messages."""

    def run(out, *arguments, **settings):
        capsys.readouterr()
        return cli.main(command(out, *arguments, **settings)), capsys.readouterr().err

    yield run
    gc.collect()  # so that reads complain here and not during another test


@pytest.fixture(scope="session")
def undisturbed(start, tmp_path_factory):
    """The folder of a run that nothing disturbs; one for all workers of pytest."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    out = shared / "undisturbed"
    with open(shared / "undisturbed.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "confusion.png").exists():
            assert finish(start(out))[0] == 0
    return out


def finish(process, seconds=300):
    """Returns the exit code and what the process said."""
    messages = process.communicate(timeout=seconds)[1]
    return process.returncode, messages


def lines(out):
    path = out / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def losses(out):
    return [line["loss"] for line in lines(out) if "lr" in line]


def wait_for(process, out, steps):
    while process.poll() is None and len(losses(out)) < steps:
        time.sleep(0.02)


def test_a_run(undisturbed):
    assert len(losses(undisturbed)) == 30
    assert json.loads((undisturbed / "recipe.json").read_text())["epochs"] == 0.34
    model = natjax.NatForImageClassification.from_pretrained(undisturbed / "model")
    assert model.config.num_labels == 10
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir() if int(p.name) >= 25) == ["25", "30"]


def test_same_again(run, undisturbed, tmp_path):
    assert run(tmp_path / "run")[0] == 0
    assert losses(tmp_path / "run") == losses(undisturbed)
    weights = [(out / "model" / "model.safetensors").read_bytes() for out in (undisturbed, tmp_path / "run")]
    assert weights[0] == weights[1]
    code, messages = run(tmp_path / "run")
    assert code == 1
    assert "holds a run already: go on with --resume" in messages


@pytest.mark.parametrize("select", ["best", "last"])
def test_select(run, tmp_path, select):
    out, settings = tmp_path / "run", {"save_every": 0, "eval_every": 0.03, "learning_rate": 0.1}

    def selected(*arguments):
        code, messages = run(out, *arguments, select=select, **settings)
        assert code == 0, messages
        return int(re.search(r"the model of step (\d+), top-1", messages).group(1)), messages

    step, _ = selected()
    top1 = {line["step"]: line["top1"] for line in lines(out) if "top1" in line}
    assert step == 30 if select == "last" else top1[step] == max(top1.values()) > top1[30]
    if select == "best":
        (out / "checkpoints" / str(step) / "state" / "manifest.ocdbt").unlink()
        another, messages = selected("--resume")
        assert f"The checkpoint of step {step} is damaged" in messages
        assert another in {27, 30} - {step}  # the newest two are kept beside the best


def test_kill(start, undisturbed, tmp_path):
    """Five kills, at random moments; checkpoints are written all the time."""
    rng, out, code = random.Random(0), tmp_path / "run", None
    for _ in range(5):
        process = start(out, "--resume", save_every=1)
        wait_for(process, out, len(losses(out)) + rng.randint(0, 5))
        time.sleep(rng.random() / 3)
        process.kill()
        code, messages = finish(process)
        assert code in (-signal.SIGKILL, 0), messages
    code, messages = finish(start(out, "--resume"))
    assert code == 0, messages
    assert "damaged" not in messages
    assert losses(out) == losses(undisturbed)
    assert [line["top1"] for line in lines(out) if "top1" in line] == [
        line["top1"] for line in lines(undisturbed) if "top1" in line
    ]


def test_sigterm(start, undisturbed, tmp_path):
    process = start(tmp_path / "run", save_every=0)
    wait_for(process, tmp_path / "run", 13)  # an evaluation is at 11
    process.send_signal(signal.SIGSTOP)
    code, messages = finish(start(tmp_path / "run", "--resume", save_every=0))
    assert code == 1
    assert "its run is under way in another process" in messages
    process.send_signal(signal.SIGCONT)
    process.terminate()
    code, messages = finish(process)
    assert code == 75, messages
    assert "SIGTERM: saved after step" in messages
    assert natjax.NatForImageClassification.from_pretrained(tmp_path / "run" / "model").config.num_labels == 10
    assert finish(start(tmp_path / "run", "--resume", save_every=0))[0] == 0
    assert losses(tmp_path / "run") == losses(undisturbed)


def stop_early(start, out, **options):
    process = start(out, **options)
    wait_for(process, out, 6)
    process.terminate()
    assert finish(process)[0] == 75


def test_damage(start, undisturbed, tmp_path):
    out = tmp_path / "run"
    stop_early(start, out, save_every=1)
    newest = max(int(path.name) for path in (out / "checkpoints").iterdir())
    for path in (out / "checkpoints" / str(newest) / "state" / "ocdbt.process_0" / "d").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 4
        path.write_bytes(content)
    code, messages = finish(start(out, "--resume"))
    assert code == 0, messages
    assert f"The checkpoint of step {newest} is damaged" in messages
    assert f"Resuming after step {newest - 1} of 30" in messages
    assert losses(out) == losses(undisturbed)


def test_another_mesh(start, undisturbed, tmp_path):
    out = tmp_path / "run"
    stop_early(start, out, devices=4, mesh="data=2,fsdp=2")
    assert finish(start(out, "--resume", devices=2, mesh="data=2"))[0] == 0
    assert losses(out) == pytest.approx(losses(undisturbed), abs=2e-5)


def test_another_mesh_that_does_not_divide_the_height(start, undisturbed):
    code, messages = finish(start(undisturbed, "--resume", devices=8, mesh="space=8"))
    assert code == 1
    assert "of 8 x 8 = 64 rows; got 32: give another --mesh" in messages
    assert "Traceback" not in messages


def test_nan(run, tmp_path):
    settings = {"learning_rate": 1e30, "warmup_learning_rate": 1e30, "clip_norm": "none"}
    code, messages = run(tmp_path / "run", save_every=1, **settings)
    assert code == 1
    assert "Step 2 is not finite: loss nan" in messages
    assert "The last good checkpoint is of step 1." in messages
    assert "classifier.kernel" in messages


def test_nan_skipped(run, tmp_path):
    settings = {"learning_rate": 1e30, "warmup_learning_rate": 1e30, "skip_nonfinite": "true", "clip_norm": "none"}
    code, messages = run(tmp_path / "run", epochs=0.06, **settings)
    assert code == 0, messages
    assert messages.count("It is left out.") >= 3


def start_two(start, out, *arguments, **settings):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = (f"--coordinator={address}", "--processes=2")
    return [start(out, *hosts, f"--process={i}", *arguments, **settings) for i in range(2)]


def test_another_number_of_processes(start, undisturbed, tmp_path):
    """From one to two, and back to one."""
    out = tmp_path / "run"
    stop_early(start, out)
    hosts = start_two(start, out, "--resume", save_every=5)
    wait_for(hosts[0], out, 18)
    for host in hosts:
        host.kill()
    messages = [finish(host)[1] for host in hosts]
    code, last = finish(start(out, "--resume"))
    assert code == 0, last
    assert all("Resuming after step" in message for message in (messages[0], last))
    assert "damaged" not in messages[0] + last
    assert losses(out) == pytest.approx(losses(undisturbed), abs=2e-5)


def test_interrupt(start, tmp_path):
    process = start(tmp_path / "run", save_every=0)
    wait_for(process, tmp_path / "run", 6)
    process.send_signal(signal.SIGINT)
    code, messages = finish(process)
    assert code == 130, messages
    assert "SIGINT: saved after step" in messages
    assert "Traceback" not in messages
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == len(losses(tmp_path / "run"))  # and from there on it is test_sigterm


def test_sigterm_before_an_evaluation(start, tmp_path):
    """Every step is followed by an evaluation: the one that the signal puts off is made up for, also after a kill amid that."""
    settings = {"eval_every": 0.001, "epochs": 0.1}
    code, messages = finish(start(tmp_path / "whole", **settings))
    assert code == 0, messages
    process = start(tmp_path / "run", **settings)
    wait_for(process, tmp_path / "run", 4)
    process.terminate()
    assert finish(process)[0] == 75
    process, steps = start(tmp_path / "run", "--resume", **settings), len(losses(tmp_path / "run"))
    while (
        process.poll() is None and len(lines(tmp_path / "run")) < 2 * steps
    ):  # the evaluation is logged, its score comes
        time.sleep(0.001)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    code, messages = finish(start(tmp_path / "run", "--resume", **settings))
    assert code == 0, messages
    assert "Resuming after step" in messages
    top1, whole = ([line["top1"] for line in lines(tmp_path / run) if "top1" in line] for run in ("run", "whole"))
    assert top1 == whole
    assert len(top1) == len(losses(tmp_path / "run"))


def test_sigterm_for_the_workers_as_well(start, undisturbed, tmp_path):
    """As schedulers send it, to all processes of a job."""
    out = tmp_path / "run"
    process = start(out, workers=2, worker_kind="processes", start_new_session=True)
    wait_for(process, out, 6)
    os.killpg(process.pid, signal.SIGTERM)
    code, messages = finish(process)
    assert code == 75, messages
    assert finish(start(out, "--resume", workers=0, worker_kind="processes"))[0] == 0
    assert losses(out) == losses(undisturbed)


def test_resumed_by_mistake(start, run, undisturbed, tmp_path):
    out = tmp_path / "run"
    stop_early(start, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change, message in (
        ({"ema_decay": "none"}, "of another model or recipe: the checkpoint has ema."),
        ({"model_config": json.dumps(MODEL | {"embed_dim": 32})}, "of another model or recipe: "),
        ({"model": "nat_mini"}, "begun with model custom, and cannot go on with nat_mini"),
        ({"batch_size": 32}, "begun with batch_size 16, and cannot go on with 32"),
        ({"seed": 7}, "begun with seed 0, and cannot go on with 7"),
        ({"epochs": 0.06}, "beyond the 5 that it is to have now"),
    ):
        code, messages = run(out, "--resume", **change)
        assert (code, "Traceback" in messages) == (1, False)
        assert message in messages
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert run(out, "--resume")[0] == 0
    assert losses(out) == losses(undisturbed)


def test_damage_of_one_process(start, undisturbed, tmp_path):
    stopped = tmp_path / "stopped"
    hosts = start_two(start, stopped, mesh="fsdp=2")
    wait_for(hosts[0], stopped, 6)
    for host in hosts:
        host.terminate()
    assert [finish(host)[0] for host in hosts] == [75, 75]
    newest = max(int(path.name) for path in (stopped / "checkpoints").iterdir())
    for i, damaged in enumerate(("data/process-1-of-2.json", "state/ocdbt.process_1/d/*")):
        out = shutil.copytree(stopped, tmp_path / f"damaged{i}")
        for path in (out / "checkpoints" / str(newest)).glob(damaged):
            path.unlink()
        for code, messages in map(finish, start_two(start, out, "--resume", mesh="fsdp=2")):
            assert code == 0, messages
        assert (out / "checkpoints" / f"damaged-{newest}").is_dir()
        assert losses(out) == pytest.approx(losses(undisturbed), abs=2e-5)


def test_fine_tuning_goes_on_without_what_it_started_from(start, undisturbed, tmp_path):
    pretrained = tmp_path / "pretrained"
    shutil.copytree(undisturbed / "model", pretrained)
    options = {"model": str(pretrained), "model_config": "{}"}
    stop_early(start, tmp_path / "run", **options)
    shutil.rmtree(pretrained)
    code, messages = finish(start(tmp_path / "run", "--resume", **options))
    assert code == 0, messages


def write_images(directory):
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 6)):
        for name in ("cat", "dog"):
            (directory / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8).astype(np.uint8))
                image.save(directory / part / name / f"{i:02}.png")


def test_an_error_in_one_process_ends_all(start, tmp_path):
    write_images(tmp_path / "data")
    (tmp_path / "data" / "train" / "cat" / "07.png").write_bytes(b"")
    options = {"epochs": 20, "eval_every": 1, "max_corrupt": 0}
    hosts = start_two(start, tmp_path / "run", f"--data={tmp_path / 'data'}", **options)
    wait_for(hosts[0], tmp_path / "run", 1)  # what follows is compiled
    ends = [finish(host, seconds=110) for host in hosts]
    assert all(code != 0 for code, _ in ends)
    (message,) = (message for _, message in ends if "Images cannot be read: " in message)
    assert "Mend or remove them, or allow more by --max-corrupt." in message
    assert "Traceback" not in message


def test_processes_that_share_images_skip_none(start, tmp_path):
    write_images(tmp_path / "data")
    for path in (tmp_path / "data" / "train" / "cat").iterdir():
        path.write_bytes(b"")
    hosts = start_two(start, tmp_path / "run", f"--data={tmp_path / 'data'}", "--mesh=space=2", max_corrupt=100)
    ends = [finish(host, seconds=110) for host in hosts]
    assert all(code != 0 for code, _ in ends)
    messages = [message for _, message in ends if "Images cannot be read: " in message]
    assert messages
    assert all("Processes that share images (space) must have the same ones" in message for message in messages)


def test_images_that_cannot_be_read(run, tmp_path):
    write_images(tmp_path / "data")
    (tmp_path / "data" / "train" / "cat" / "07.png").write_bytes(b"")
    (tmp_path / "data" / "val" / "dog" / "03.png").write_bytes(b"")
    out, options = tmp_path / "run", {"epochs": 2, "eval_every": 1}
    code, messages = run(out, f"--data={tmp_path / 'data'}", **options)
    assert code == 0, messages
    assert messages.count("train/cat/07.png cannot be read, skipped: ") == 1
    assert "val/dog/03.png cannot be read, skipped: " in messages
    assert "of 11 images" in messages
    assert lines(out)[-2]["unreadable"] == 1
    (tmp_path / "data" / "train" / "cat" / "07.png").unlink()
    code, messages = run(out, "--resume", f"--data={tmp_path / 'data'}", **options)
    assert code == 1
    assert "begun with 80 training images; the data now has 79" in messages
