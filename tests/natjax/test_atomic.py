"""Files appear whole or not at all; what is no file is written to, and never replaced."""

import os
import threading

import pytest

from natjax.atomic import check_writable, replacing

pytestmark = pytest.mark.once


def write(path, text="new"):
    with replacing(path) as unfinished:
        unfinished.touch()
        unfinished.write_text(text)


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(TypeError):
        write(path, text=b"half")
    assert path.read_text() == "old"
    write(path)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_devices_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert read == ["new"]
    assert pipe.is_fifo()
    write(os.devnull)
    assert not os.path.isfile(os.devnull)


def test_what_can_be_written_is_known_beforehand(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    check_writable(path)
    check_writable(os.devnull)
    assert os.listdir(tmp_path) == []
    path.write_text("old")
    path.chmod(0o400)  # which replacing it does not mind
    check_writable(path)
    assert path.read_text() == "old"
    with pytest.raises(IsADirectoryError, match="is a folder; give a file to write"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file can be written in .*missing: No such file or directory"):
        check_writable(tmp_path / "missing" / "table.csv")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")  # as of a folder that is for reading, but to root

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"table\.csv: no file can be written in .*: Permission denied"):
        check_writable(path)
