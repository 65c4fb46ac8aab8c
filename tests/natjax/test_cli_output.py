"""What the commands print on a terminal."""

import io
import os

import pytest

from natjax.cli import _output

pytestmark = pytest.mark.once  # of neither Python's nor JAX's version


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [12, 40, 200])
def test_progress_fits_the_terminal(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    progress = _output.Progress(100_000, "images")
    for done in (99_999, 7):
        progress.update(done)
    progress.clear()
    lines = terminal.getvalue().split("\r")
    assert lines[1].startswith("99999/10000")
    assert max(map(len, lines)) < columns
    assert len(lines[2]) >= len(lines[1])  # what was longer is written over
    assert lines[-2].strip() == lines[-1] == ""
