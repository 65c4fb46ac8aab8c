"""Small files of natjax's own in a checkpoint, `<step>/data`: the positions of all processes in the data, and the score."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

from natjax_train.checkpoint.checksums import sealed, unsealed


class DataIterator(Protocol):
    """A process's batches, which can say where they are and go back there."""

    def get_state(self) -> Any:
        """Returns the position, of what JSON holds."""

    def set_state(self, state: Any) -> None:
        """Goes to a position."""

    def join_states(self, states: list[Any]) -> Any:
        """Returns one position of those of all processes, which any process of a resumed run can go on from."""


class SmallFiles:
    """Files by name; Orbax calls `save`, and `unsealed` reads each."""

    def __init__(self, values: dict[str, Any]):
        self._texts = {name: sealed(value) for name, value in values.items()}

    async def save(self, directory: Any) -> Awaitable[None]:
        """Returns what writes the files, once Orbax has made the folder."""

        async def write() -> None:
            folder = await directory.await_creation()
            for name, text in self._texts.items():
                await asyncio.to_thread((folder / name).write_text, text)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        """Is never called."""
        raise NotImplementedError("Orbax wants this method to be there; unsealed reads what save wrote.")


def position_name(index: int | str, count: int | str) -> str:
    """Returns the name of the file of a process's position."""
    return f"process-{index}-of-{count}.json"


def read_positions(directory: Path) -> list[Any]:
    """Returns the positions of all processes that there were."""
    count = max((int(path.stem.rpartition("-")[2]) for path in directory.glob(position_name("*", "*"))), default=1)
    return [unsealed(directory / position_name(index, count), "position in the data") for index in range(count)]
