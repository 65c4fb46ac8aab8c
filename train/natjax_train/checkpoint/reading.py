"""Reading one checkpoint: whether it is good, damaged or of another model, and its arrays placed on the devices.

Every process reads a checkpoint as a whole, by itself, and all agree on whether it is good before any takes it: a file that one
of them cannot read would otherwise leave the others waiting for it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from natjax_train.checkpoint.checksums import digest
from natjax_train.checkpoint.orbax_items import read_positions

if TYPE_CHECKING:
    from natjax_train.step import TrainState

GOOD, DAMAGED, MISFIT = range(3)  # the worst of all processes' counts


def read(path: Path, like: TrainState) -> tuple[dict[str, np.ndarray], list[Any], int, str]:
    """Reads the checkpoint of a step as a whole, by this process alone.

    Returns:
        All arrays by name, all processes' positions in the data, the verdict of all processes, and the reason for it.
    """
    arrays, positions, verdict, reason = _read(path, like)
    return arrays, positions, *_agreed(verdict, reason)


def _read(path: Path, like: TrainState) -> tuple[dict[str, np.ndarray], list[Any], int, str]:
    try:
        with _alone():
            saved: Any = ocp.metadata(str(path), "state").metadata
            if difference := _difference(saved["state"], named(like)):
                return {}, [], MISFIT, difference
            wanted = {name: np.empty((), leaf.dtype) for name, leaf in named(like).items()}
            items = {"state": wanted, "digests": np.empty((), np.uint32)}
            found = ocp.load_checkpointables(str(path), {"state": items})["state"]
        positions = read_positions(path / "data")
        right = [digest(np, found["state"][name]) for name in wanted]
        if not np.array_equal(np.stack(right), found["digests"]):
            return {}, [], DAMAGED, "some of its arrays are not what was saved"
        return found["state"], positions, GOOD, ""
    except Exception as error:  # whatever a damaged file makes of Orbax
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # where each array's read would say the same
        return {}, [], DAMAGED, _reason(error)


def placed(arrays: dict[str, np.ndarray], like: TrainState) -> TrainState:
    """Returns the arrays on the devices, each with its sharding."""

    def place(name: str, leaf: Any) -> jax.Array:
        array = arrays.pop(name)  # the host's copy goes as soon as it is on the devices
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.unflatten(jax.tree.structure(like), [place(name, leaf) for name, leaf in named(like).items()])


def named(state: TrainState) -> dict[str, Any]:
    """Returns the arrays by path: Orbax would make text of the model's whole-number keys."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _alone() -> ocp.Context:
    """Returns a context in which Orbax waits for no other process."""
    context, index = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"natjax-{index}"
    return context


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Returns in words how the arrays of a checkpoint differ from those wanted; "" where they do not."""
    lacking, spare = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    if lacking or spare:
        parts = [
            f"{what} {names[0]} ({len(names)} arrays)" for what, names in (("lacks", lacking), ("has", spare)) if names
        ]
        return f"the checkpoint {' and '.join(parts)}{'' if lacking else ', which the recipe does without'}"
    for name, leaf in wanted.items():
        if (found := (tuple(saved[name].shape), saved[name].dtype)) != (tuple(leaf.shape), leaf.dtype):
            return f"{name} is {list(found[0])} {found[1]} in the checkpoint and {list(leaf.shape)} {leaf.dtype} here"
    return ""


def _reason(error: BaseException) -> str:
    """Returns what was at the root of an error, on one line: Orbax wraps what its storage says."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    text = " ".join(str(error).partition(" [tensorstore_spec")[0].split()).removesuffix(".")
    return text[max(0, text.rfind("Error ")) :][:400] or type(error).__name__


def _agreed(verdict: int, reason: str) -> tuple[int, str]:
    """Returns the worst verdict of all processes; the reason is this process's own, if it has one."""
    if jax.process_count() > 1:
        verdict = int(np.max(multihost_utils.process_allgather(np.asarray(verdict))))
    return verdict, reason or ("another process says so" if verdict else "")
