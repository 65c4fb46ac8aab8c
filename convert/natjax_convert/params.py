"""State dicts to Flax parameters and back. Strict: nothing missing, nothing left over, nothing of another shape."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from natjax.configuration import DenseConfig, NatConfig
from natjax.errors import CheckpointError, MissingNormsWarning
from natjax.presets import PRESETS
from natjax_convert.dialect import Entry, Found
from natjax_convert.inference import fitting_presets, infer_config
from natjax_convert.misfits import misfit, shown_path
from natjax_convert.names import detect, dialect_of, rcnn, upernet
from natjax_convert.pieces import BUFFERS, is_of_classifier
from natjax_convert.rpb import resize_rpb
from natjax_convert.shapes import DENSE, Kind, parameters
from natjax_convert.state_dict import LazyTensor, StateDict, unusable

_COUNTER = np.dtype("i8")  # of batches, in files
_FLOATS = {np.dtype(t) for t in ("f8", "f4", "f2", ml_dtypes.bfloat16)}
_HEADS = ("classifier", *upernet.HEADS, *rcnn.HEADS)
# Modules that a checkpoint of a larger model has and a smaller one does without.
_SPARE: dict[Kind, tuple[str, ...]] = {
    "classifier": (),
    "model": ("hidden_states_norms", *_HEADS),
    "backbone": ("layernorm", "hidden_states_norms", *_HEADS),
    "segmentation": (),
    "detection": (),
}
_KINDS: dict[Kind, str] = {
    "classifier": "image classifiers",
    "model": "bare models",
    "backbone": "backbones",
    "segmentation": "segmentation models",
    "detection": "detection models",
}
_TENSORS_OF_A_LAYER = 8  # of 12 at least: with fewer, a list of all that is missing says nothing


def entries(config: NatConfig | DenseConfig, kind: Kind = "classifier", *, dialect: str = "hf") -> list[Entry]:
    """Returns all parameters of a model with the tensors of a dialect that they are made of.

    Raises:
        CheckpointError: the dialect cannot express such a model.
    """
    names = dialect_of(dialect, config)
    if kind not in names.kinds:
        known = ", ".join(_KINDS[known] for known in names.kinds)
        raise CheckpointError(
            f"The format of {names.title} is for {known}; this is a {_one(kind)}. Write Hugging Face's instead."
        )
    prefix = names.kinds[kind].prefix.format(model_type=config.trunk.model_type)
    return [names.entry(parameter, prefix) for parameter in parameters(config, kind)]


def to_flax(
    state_dict: StateDict,
    config: NatConfig | DenseConfig,
    *,
    kind: Kind = "classifier",
    dtype: Any = np.float32,
    without_head: bool = False,
    resize_biases: bool = False,
    lazy: bool = False,
    found: Found | None = None,
) -> dict:
    """Makes the parameters of a Flax model from a state dict.

    Args:
        state_dict: tensors by name, in any dialect.
        config: the model's configuration.
        kind: the model: "classifier", "model", "backbone", "segmentation" or "detection". A checkpoint may hold more than the
            model needs: a classifier's serves all of the trunk, too, and that of a segmentation or detection model its backbone;
            a backbone's norms, where it has none, start as the identity, with a warning.
        dtype: of the parameters; None keeps the checkpoint's.
        without_head: whether to leave out the classifier, whose tensors in the checkpoint, if any, are ignored.
        resize_biases: whether relative positional biases of another kernel size are interpolated (bicubic).
        lazy: whether to return `LazyTensor`s of the checkpoint's own dtypes, to be read one at a time.
        found: what `natjax_convert.names.detect` says of the state dict, where that is known already.

    Returns:
        Nested dict of numpy arrays, as `nnx.to_pure_dict` has it. Arrays may be views of the file.

    Warns:
        MissingNormsWarning: all norms of a backbone are missing.
        UserWarning: some of them are missing, or parameters hold NaN or infinity.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape or not floating point; all are named at once.
    """
    found = found or detect(state_dict)
    trunk = config.trunk
    if trunk.model_type not in found.model_types:
        raise unusable(
            state_dict,
            f"The weights are those of a {' or '.join(map(repr, found.model_types))} model, the configuration is of a "
            f"{trunk.model_type!r} one; "
            "they do not belong together.",
        )
    family = found.dialect.family
    if kind == found.kind and family and isinstance(config, DenseConfig) and family is not type(config):
        raise unusable(
            state_dict,
            f"The weights are those of a {family.title}, the configuration is that of a {config.title}; "
            "they do not belong together.",
        )
    if _TENSORS_OF_A_LAYER * sum(trunk.depths) > len(state_dict):
        raise unusable(
            state_dict,
            f"{len(state_dict)} tensors are too few for the configuration's {sum(trunk.depths)} layers."
            f"{_other_presets(state_dict, config, found)}",
        )
    modules = (*_SPARE[kind], *(("classifier",) if without_head else ()))
    spare = tuple(name for module in modules for name in found.dialect.beginnings(module, found.prefix))
    params: dict = {}
    problems, used, identities = [], set(), []
    for parameter in parameters(config, kind):
        entry = found.dialect.entry(parameter, found.prefix)
        if without_head and parameter.of_classifier:
            used.update(entry.names)
            continue
        if entry.path[0] == "hidden_states_norms" and not any(name in state_dict for name in entry.names):
            identities.append(str(entry.path[1]))
            _put(params, entry.path, _identity(entry))
            continue
        used.update(entry.names)
        tensors, wrong = _collect(entry, state_dict, resize_biases)
        problems += wrong
        if not wrong:
            _put(params, entry.path, _joined(entry, tensors))
    problems += _check_buffers(state_dict, trunk, found, used)
    left_over = [name for name in state_dict if name not in used and not name.startswith(spare)]
    if problems or left_over:
        same = found.kind == kind
        about = "" if same else f" The checkpoint is of a {_one(found.kind)}, the model is a {_one(kind)}."
        about += _other_presets(state_dict, config, found)
        raise unusable(state_dict, misfit(problems, left_over, about))
    if identities:
        stages = ", ".join(dict.fromkeys(identities))
        category = MissingNormsWarning if set(identities) == set(trunk.out_features or ()) else UserWarning
        message = f"The checkpoint has no norms for the stages {stages}; they start as the identity."
        warnings.warn(message, category, stacklevel=2)
    _warn_not_finite(params)
    if not lazy:
        for path, leaf in list(_leaves(params)):
            values = np.asarray(leaf)
            _put(params, path, values if dtype is None else values.astype(BUFFERS.get(path[-1], dtype), copy=False))
    return params


def from_flax(
    params: Mapping, config: NatConfig | DenseConfig, *, kind: Kind = "classifier", dialect: str = "hf"
) -> dict[str, LazyTensor]:
    """Makes a state dict from the parameters of a Flax model; undoes `to_flax` bit by bit.

    Args:
        params: nested dict of arrays, as `nnx.to_pure_dict` has it.
        config: the model's configuration.
        kind: the model: "classifier", "model", "backbone", "segmentation" or "detection".
        dialect: "hf", "shilabs" (classifiers only), "mmseg" (segmentation models only) or "mmdet" (detection models only).

    Raises:
        CheckpointError: the parameters are not those of the model, or the dialect cannot express it.
    """
    leaves = dict(_leaves(params))
    state_dict, problems = {}, []
    for entry in entries(config, kind, dialect=dialect):
        leaf = leaves.pop(entry.path, None)
        if leaf is None or tuple(leaf.shape) != entry.shape:
            got = "nothing" if leaf is None else f"shape {tuple(leaf.shape)}"
            problems.append(f"{shown_path(entry.path)}: expected shape {entry.shape}, got {got}")
            continue
        dtype = np.dtype(_COUNTER if entry.path[-1] == "num_batches_tracked" else leaf.dtype)
        for i, name in enumerate(entry.names):

            def read(entry: Entry = entry, leaf: Any = leaf, dtype: np.dtype = dtype, i: int = i) -> np.ndarray:
                return entry.split(np.asarray(leaf, dtype))[i]

            state_dict[name] = LazyTensor(entry.tensor_shape, dtype, read)
    if problems or leaves:
        raise CheckpointError(misfit(problems, list(map(shown_path, leaves))))
    return {**state_dict, **dialect_of(dialect, config).buffers(config.trunk)}


def _check_buffers(state_dict: StateDict, config: NatConfig, found: Found, used: set[str]) -> list[str]:
    """Returns what is wrong with the buffers of a file, which are those of its own shapes, and adds them to the names used."""
    wanted = found.dialect.buffers(config)
    if not wanted:
        return []
    problems, own = [], found.dialect.buffers(infer_config(state_dict, found=found))
    for name in wanted:
        tensor = state_dict.get(name)
        used.add(name)
        if tensor is None:
            problems.append(f"{name}: missing")
        elif name in own and not _is_same(tensor, own[name]):
            problems.append(f"{name}: its values do not follow from the model's shapes")
    return problems


def _is_same(tensor: LazyTensor | np.ndarray, other: LazyTensor) -> bool:
    if tuple(tensor.shape) != other.shape:
        return False
    values = np.asarray(tensor)  # before the other is made, so that a small file cannot ask for a large one
    return np.array_equal(values, np.asarray(other))


def _collect(entry: Entry, state_dict: StateDict, resize_biases: bool) -> tuple[list[Any], list[str]]:
    """Returns the tensors of a parameter, not read yet, and what is wrong with them."""
    if not entry.names:
        return [], [f"{shown_path(entry.path)}: checkpoints of this kind have no tensor for it"]
    shape = entry.tensor_shape
    hint = " (replace_head=True starts with a new classifier)" if is_of_classifier(entry.path) else ""
    tensors, problems = [], []
    for name in entry.names:
        tensor = state_dict.get(name)
        if tensor is None:
            problems.append(f"{name}: missing")
        elif entry.path[-1] == "num_batches_tracked" and np.dtype(tensor.dtype) != _COUNTER:
            problems.append(f"{name}: expected int64, got {tensor.dtype}")
        elif entry.path[-1] != "num_batches_tracked" and np.dtype(tensor.dtype) not in _FLOATS:
            problems.append(f"{name}: expected floating point, got {tensor.dtype}")
        elif tuple(tensor.shape) == shape:
            tensors.append(tensor)
        elif entry.path[-1] == "rpb" and len(tensor.shape) == 3 and tensor.shape[0] == shape[0]:
            if resize_biases:
                tensors.append(resize_rpb(np.asarray(tensor), (shape[-1] + 1) // 2))
            else:
                problems.append(
                    f"{name}: expected {shape}, got {tuple(tensor.shape)} (resize_biases=True interpolates)"
                )
        else:
            problems.append(f"{name}: expected {shape}, got {tuple(tensor.shape)}{hint}")
    return tensors, problems


def _one(kind: Kind) -> str:
    return f"{kind} model" if kind in DENSE else kind


def _other_presets(state_dict: StateDict, config: NatConfig | DenseConfig, found: Found) -> str:
    """Returns a sentence with the presets that the tensors fit, where the configuration is that of none of them."""
    names = fitting_presets(state_dict, found)
    if found.kind in DENSE:
        same = names and isinstance(config, DENSE[found.kind][0])
        return f" The tensors fit {', '.join(names)}." if same else ""
    if not names or parameters(config, "model") == parameters(PRESETS[names[0]].config, "model"):
        return ""
    return f" The tensors fit {', '.join(names)}."


def _warn_not_finite(params: dict) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        sums = {path: np.asarray(leaf).sum(dtype=np.float64) for path, leaf in _leaves(params)}
    if bad := [shown_path(path) for path, total in sums.items() if not np.isfinite(total)]:
        warnings.warn(f"{len(bad)} parameters hold NaN or infinity: {', '.join(bad[:3])}.", stacklevel=3)


def _joined(entry: Entry, tensors: list) -> LazyTensor:
    dtype = np.result_type(*(tensor.dtype for tensor in tensors))
    return LazyTensor(entry.shape, dtype, lambda: entry.join([np.asarray(tensor) for tensor in tensors]))


def _identity(entry: Entry) -> LazyTensor:
    return LazyTensor(entry.shape, np.dtype("f4"), lambda: np.full(entry.shape, entry.path[-1] == "scale", np.float32))


def _put(tree: dict, path: tuple, value: LazyTensor | np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _leaves(tree: Mapping, path: tuple = ()) -> Iterable[tuple[tuple, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        elif value is not None:
            yield (*path, key), value
