"""Checkpoints of a run, by Orbax: state, position in the data and recipe; asynchronous, atomic, restored on any mesh.

A checkpoint lies in `<directory>/<step>`, which appears under this name only once it is complete. A digest per array, a sum over
its bits that no sharding changes, is saved with the arrays and compared after reading, so that damage to the files is noticed
and the newest good checkpoint used instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from natjax.errors import CheckpointError

if TYPE_CHECKING:
    from jaxtyping import Array, UInt32

    from natjax_train.step import TrainState

_policies = ocp.training.preservation_policies


class DataIterator(Protocol):
    """A process's batches, which can say where they are and go back there."""

    def get_state(self) -> Any:
        """Returns the position, of what JSON holds."""

    def set_state(self, state: Any) -> None:
        """Goes to a position."""

    def join_states(self, states: list[Any]) -> Any:
        """Returns one position of those of all processes, for a run that goes on with another number of them."""


class Checkpoints:
    """The checkpoints of one run: the newest few and the best.

    Args:
        directory: made where it does not exist.
        keep: how many of the newest to keep.
        report: called with a message about damaged checkpoints.
    """

    def __init__(self, directory: str | os.PathLike, keep: int, report: Callable[[str], None]):
        self._directory, self._keep, self._report = Path(directory).absolute(), keep, report
        self._pending: tuple[int, Any] | None = None
        self._open()

    def _open(self) -> None:
        if jax.process_index() == 0:  # Orbax opens no directory with an unreadable score in it
            for path in self._directory.glob("*/metrics/metrics"):
                try:
                    _score(json.loads(path.read_text()))
                except (ValueError, KeyError, TypeError):
                    if path.parents[1].name.isdecimal():
                        self._report(
                            f"The checkpoint of step {path.parents[1].name} is damaged: its score is unreadable."
                        )
                        _rename_damaged(path.parents[1])
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("natjax checkpoints")
        best = _policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
        )
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,  # ty: ignore
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # ty: ignore
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(self._keep), best]),  # ty: ignore
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """Steps of which there is a complete checkpoint, in order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest score, the last of equal ones; None where none has one."""
        return max(self._scored())[1] if self._scored() else None

    @property
    def best_score(self) -> float:
        """The highest score; minus infinity where there is none."""
        return max(self._scored())[0] if self._scored() else -math.inf

    def _scored(self) -> list[tuple[float, int]]:
        self.wait()
        return [(_score(c.metrics), c.step) for c in self._checkpointer.checkpoints if c.metrics]

    def save(self, state: TrainState, data: DataIterator, recipe: str, score: float | None = None) -> None:
        """Begins to save the state under its step, once the save before has ended. Nothing is done where it exists.

        Raises:
            CheckpointError: this save or the one before failed, as on a full disk; what was saved earlier is intact.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps:
            return
        items = {"state": {"state": _named(state), "digests": digests(state)}, "data": _Position(data)}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step,
                items,
                force=True,
                custom_metadata=json.loads(recipe),
                metrics=None if score is None else {"score": score},
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = (step, response)

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
            CheckpointError: it failed.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:  # Orbax and its storage raise what they like
            raise self._failed(step, error) from error

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        good = [s for s in self.steps if s < step]
        rest = f"The earlier ones are intact, the newest is of step {good[-1]}." if good else "There is no earlier one."
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        return CheckpointError(
            f"{self._directory}: the checkpoint of step {step} could not be written: {reason} {rest}"
        )

    def restore(self, like: TrainState, data: DataIterator | None = None, step: int | None = None) -> TrainState | None:
        """Returns the newest good checkpoint's state and moves `data` to where it was. Damaged ones are reported and set
        aside, as `damaged-<step>`.

        Args:
            like: shapes, dtypes and shardings to restore to, of `jax.eval_shape` for instance.
            data: None leaves the position unread.
            step: of the checkpoint to read; None is the newest.

        Raises:
            CheckpointError: there are checkpoints, but none is good; or the one asked for is not.
        """
        found = self.steps if step is None else [step]
        for candidate in reversed(found):
            try:
                state, problem = self._load(candidate, like, data), None
            except Exception as error:  # whatever a damaged file makes of Orbax
                state, problem = None, _reason(error)
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # where each array's read would say the same
            if _everywhere(problem is None):
                return state
            self._report(
                f"The checkpoint of step {candidate} is damaged: {problem or 'unreadable for another process'}"
            )
            self._set_aside(candidate)
        if found:
            raise CheckpointError(
                f"{self._directory}: no good checkpoint among those of steps {found}. They are set aside as damaged-*; "
                "resuming once more starts anew."
            )
        return None

    def _load(self, step: int, like: TrainState, data: DataIterator | None) -> TrainState:
        wanted = {"state": {"state": _named(like), "digests": jax.eval_shape(digests, like)}}
        items = self._checkpointer.load_checkpointables(step, wanted | ({"data": _Position(data)} if data else {}))
        state = jax.tree.unflatten(jax.tree.structure(like), [items["state"]["state"][name] for name in _named(like)])
        if not np.array_equal(digests(state), items["state"]["digests"]):
            raise CheckpointError("some of its arrays are not what was saved.")
        return state

    def _set_aside(self, step: int) -> None:
        self._checkpointer.close()
        if jax.process_index() == 0:
            _rename_damaged(self._directory / str(step))
        self._open()

    def close(self) -> None:
        """Waits for the save under way and ends.

        Raises:
            CheckpointError: that save failed.
        """
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # of a failed save, which `wait` has raised
                self._checkpointer.close()


@jax.jit
def digests(tree: Any) -> UInt32[Array, "leaves"]:
    """Returns a sum of every array's bits, weighted by position, modulo 2**32: the same however the arrays are sharded."""

    def digest(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
        weight = jnp.ones(leaf.shape, jnp.uint32)
        for axis in range(leaf.ndim):
            weight = weight * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum(bits * (2 * weight + 1), dtype=jnp.uint32)  # odd: no bit of an element is lost

    return jnp.stack([digest(leaf) for leaf in jax.tree.leaves(tree)])


def _score(metrics: Any) -> float:
    return metrics["score"]


class _Position:
    """Position of one process's data iterator, in a file of its own; Orbax calls `save` and `load`."""

    def __init__(self, data: DataIterator):
        self._data = data

    async def save(self, directory: Any) -> Awaitable[None]:
        text = json.dumps(self._data.get_state())  # now, and not when the file is written
        document = {"state": text, "crc32": zlib.crc32(text.encode())}

        async def write() -> None:
            folder = await directory.await_creation()
            name = _position_name(jax.process_index(), jax.process_count())
            await asyncio.to_thread((folder / name).write_text, json.dumps(document))

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            saved = [int(path.stem.rpartition("-")[2]) for path in directory.glob(_position_name("*", "*"))]
            count = max(saved, default=jax.process_count())  # of processes then
            same = count == jax.process_count()
            wanted = [jax.process_index()] if same else range(count)
            states = [_read_position(directory / _position_name(index, count)) for index in wanted]
            self._data.set_state(states[0] if same else self._data.join_states(states))

        return read()


def _position_name(index: int | str, count: int | str) -> str:
    return f"process-{index}-of-{count}.json"


def _read_position(path: Any) -> Any:
    if not path.exists():
        raise CheckpointError(f"its position in the data is missing ({path.name}).")
    document = json.loads(path.read_text())
    if zlib.crc32(document["state"].encode()) != document["crc32"]:
        raise CheckpointError("its position in the data is not what was saved.")
    return json.loads(document["state"])


def _named(state: TrainState) -> dict[str, Any]:
    """Returns the arrays by path: Orbax would make text of the model's whole-number keys."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _reason(error: BaseException) -> str:
    """Returns what was at the root of an error, on one line: Orbax wraps what its storage says."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).partition(" [tensorstore_spec")[0].split()).removesuffix(".")
    return text[max(0, text.rfind("Error ")) :][:400] or type(error).__name__


def _everywhere(fine: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine)))) if jax.process_count() > 1 else fine


def _rename_damaged(path: Path) -> None:
    names = (path.with_name(f"damaged-{path.name}" + (f"-{i}" if i else "")) for i in itertools.count())
    path.rename(next(name for name in names if not name.exists()))
