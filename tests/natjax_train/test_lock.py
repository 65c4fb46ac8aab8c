"""The lock of a run's folder."""

import subprocess
import sys

import pytest

from natjax_train import lock
from natjax_train.lock import sole_use

HOLD = "import sys; from pathlib import Path; from natjax_train.lock import sole_use\n"
HOLD += "with sole_use(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="needs file locks")


def test_held_until_the_process_dies(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="under way in another process"), sole_use(tmp_path / "run"):
            pass
        other.kill()
    for _ in range(2):
        with sole_use(tmp_path / "run"):
            pass


def test_without_locks(monkeypatch, tmp_path):
    def flock(file, operation):
        raise OSError("no locks here")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with sole_use(tmp_path / "run"), sole_use(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    monkeypatch.setattr(lock, "fcntl", None)
    with sole_use(tmp_path / "run"), sole_use(tmp_path / "run"):
        pass
