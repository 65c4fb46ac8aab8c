"""Writing files so that a reader never sees half of one: under a temporary name beside it first, then renamed.

All atomic writes of natjax. Needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from natjax.errors import CheckpointError


@contextlib.contextmanager
def staging(destination: str | os.PathLike) -> Generator[Path]:
    """A temporary directory beside `destination`, or in it where it exists.

    Its files move to the destination once all of them are complete and on disk.

    A destination that does not exist appears in one rename; in an existing one, files of the same names are replaced one by
    one and others stay. Where anything fails, the destination stays as it was.

    Raises:
        CheckpointError: the disk is full, or the destination cannot be written.
    """
    destination = Path(destination)
    temporary = None
    try:
        parent = destination if destination.is_dir() else destination.parent  # it may be the mount point of a volume
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=parent))
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private; what is published should not be
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        if destination.is_dir():
            for file in sorted(temporary.iterdir()):
                file.replace(destination / file.name)
        else:
            temporary.rename(destination)
    except OSError as error:
        raise CheckpointError(
            f"{destination}: cannot write: {error.strerror or error}. It was left as it was."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Generator[Path]:
    """A temporary path beside `path`, to be written by the caller; renamed to `path` once it is complete and on disk.

    Where anything fails, `path` stays as it was and the temporary file is removed. A link stays a link: its target is replaced.
    What is neither file nor folder, such as a pipe or /dev/stdout, is written to at the end.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, "complete")
            with open(folder + "/complete", "rb") as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Checks that `replacing` can write a file, to be known before long work rather than after it. Leaves nothing behind.

    Raises:
        OSError: it cannot: a folder is there, or the folder of the file is missing or takes no files.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give a file to write.")
    if path.exists() and not path.is_file():
        return  # a pipe, say, is not opened before there is something to write
    folder = Path(os.path.realpath(path)).parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise type(error)(f"{path}: no file can be written in {folder}: {error.strerror or error}.") from error


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
