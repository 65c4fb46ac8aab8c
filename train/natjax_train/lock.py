"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


@contextlib.contextmanager
def sole_use(directory: Path) -> Generator[None]:
    """Holds the folder's lock, which the kernel releases however the process ends; makes the folder.

    Where the file system knows no locks, nothing is locked.

    Raises:
        ValueError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{directory}: its run is under way in another process; wait for it or stop it.") from None
        except OSError:
            pass
        yield
