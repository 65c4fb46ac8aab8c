"""One run at a time in a folder. A run that fails before its first step leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from natjax import run_files
from natjax.configuration import CONFIG_NAME

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

_LOCK = ".lock"
# What a run may have made before its first step.
_FIRST = (
    _LOCK,
    CONFIG_NAME,
    run_files.CHECKPOINTS,
    run_files.RECIPE,
    run_files.METRICS,
    run_files.CURVES,
    run_files.TENSORBOARD,
)


@contextlib.contextmanager
def sole_use(directory: Path) -> Generator[None]:
    """Holds the folder's lock, which the kernel releases however the process ends; makes the folder.

    Where the file system knows no locks, nothing is locked. Where an error ends a run before its first step, what the run has
    made is removed, and the folder with it if it was made.

    Raises:
        ValueError: another process holds it, or the folder cannot be made.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = set(os.listdir(directory))
        file = _open_lock(directory / _LOCK)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be made or written: {error.strerror or error}.") from None
    with file:
        try:
            yield
        except BaseException:
            if not _has_begun(directory):
                _remove(directory, [name for name in _FIRST if name not in before], made)
            raise


def _open_lock(path: Path):
    """Returns the lock's open file, locked where that can be done."""
    while True:
        file = path.open("w")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"{path.parent}: its run is under way in another process; wait for it or stop it."
            ) from None
        except OSError:
            pass
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # a run that failed has removed it meanwhile


def _has_begun(directory: Path) -> bool:
    metrics = directory / run_files.METRICS
    return run_files.has_checkpoints(directory) or (metrics.exists() and metrics.stat().st_size > 0)


def _remove(directory: Path, names: list[str], folders: list[Path]) -> None:
    for name in names:
        path = directory / name
        with contextlib.suppress(
            OSError
        ):  # Windows removes no open file; the error that ended the run is the one to show
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it
        for folder in folders:
            folder.rmdir()
