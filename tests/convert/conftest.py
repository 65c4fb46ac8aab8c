"""What the tests of damaged and hostile checkpoints share."""

import gc
import os
import pathlib
import shutil
import sys
import time
import warnings

import pytest

import natjax
import natjax_convert

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for golden_checkpoints

NAT = pathlib.Path(__file__).parents[1] / "goldens" / "hf_nat"
SECONDS = 1.0  # of this thread's processor time


@pytest.fixture(scope="session")
def quick_error():
    """Calls a function; returns the words of its CheckpointError, or None; fails where it takes more than SECONDS.

    What these tests look for, work that grows without bounds, is slow every time; a busy machine is not, so there are
    three tries. The garbage collector does not look at what other tests left in this process.
    """

    def error_of(function):
        for _ in range(3):
            error = None
            gc.freeze()
            start = time.thread_time()
            try:
                function()
            except natjax.CheckpointError as refused:
                error = str(refused)
            finally:
                seconds = time.thread_time() - start
                gc.unfreeze()
            if seconds < SECONDS:
                return error
        raise AssertionError(f"it took {seconds:.1f} seconds of processor time")

    return error_of


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a config.json, to which a test adds weights."""
    directory = tmp_path / "in"
    directory.mkdir()
    shutil.copy(NAT / "config.json", directory)
    return directory


@pytest.fixture(scope="session")
def nat_shapes():
    """The shapes of the golden's tensors by name."""
    return {name: tensor.shape for name, tensor in natjax_convert.read_state_dict(NAT).items()}


@pytest.fixture
def attempt(tmp_path, monkeypatch, nat_shapes, quick_error):
    """Converts a suspicious checkpoint; returns the error, or None where it went through with the model's own shapes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nothing here is meant to survive a power cut, and it takes long

    def convert(source):
        out, before = tmp_path / "out", sorted(tmp_path.rglob("*"))

        def attempted():
            shutil.rmtree(out, ignore_errors=True)
            natjax_convert.convert(source, out)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*hold NaN or infinity")
            error = quick_error(attempted)
        if error is None:
            assert {n: t.shape for n, t in natjax_convert.read_state_dict(out).items()} == nat_shapes
            shutil.rmtree(out)
        assert sorted(tmp_path.rglob("*")) == before
        assert len(error or "") < 10_000
        return error

    return convert


@pytest.fixture
def refuse(attempt):
    """Converts a checkpoint that must not go through; returns the error."""

    def convert(source):
        error = attempt(source)
        assert error is not None
        return error

    return convert
