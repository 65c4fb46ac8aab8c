"""State dicts to Flax parameters and back. Strict: nothing missing, nothing left over, nothing of another shape."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from natjax.configuration import NatConfig
from natjax.errors import CheckpointError
from natjax_convert.mapping import Dialect, Entry, Kind, entries
from natjax_convert.rpb import resize_rpb
from natjax_convert.tensors import LazyTensor, StateDict

_HF_PREFIX = re.compile(r"(nat|dinat)\.(?=embeddings\.|encoder\.|layernorm\.)")
_FLOATS = {np.dtype(t) for t in ("f8", "f4", "f2", ml_dtypes.bfloat16)}
# What a checkpoint of a larger model has that a smaller one does without.
_SPARE = {
    "classifier": (),
    "model": ("classifier.", "head.", "hidden_states_norms."),
    "backbone": ("classifier.", "head.", "layernorm.", "norm.", "hidden_states_norms."),
}
_HEADS = ("classifier.", "head.")
_REPORTED = 12  # problems spelled out in an error; the rest is counted


def detect(state_dict: Mapping[str, Any]) -> tuple[Dialect, str]:
    """Returns a state dict's dialect and the prefix of its trunk ("nat.", "dinat." or none), by its names.

    Raises:
        CheckpointError: it is of no NAT or DiNAT.
    """
    for name in state_dict:
        if match := _HF_PREFIX.match(name):
            return "hf", match[0]
    if any(name.startswith("embeddings.patch_embeddings.") for name in state_dict):
        return "hf", ""
    if any(name.startswith("patch_embed.") for name in state_dict) and any(".blocks." in name for name in state_dict):
        return "shilabs", ""
    raise CheckpointError(
        "The checkpoint is of no NAT or DiNAT: expected names such as nat.embeddings.norm.weight (Hugging Face) or "
        f"patch_embed.norm.weight (SHI-Labs); got {', '.join(map(repr, list(state_dict)[:3])) or 'no tensors'}."
    )


def detect_kind(state_dict: Mapping[str, Any]) -> Kind:
    """Returns whether a state dict is of an image classifier, a bare model or a backbone, by its names."""
    dialect, prefix = detect(state_dict)
    if any(name.startswith("hidden_states_norms.") for name in state_dict):
        return "backbone"
    return "classifier" if dialect == "shilabs" or prefix else "model"


def to_flax(
    state_dict: StateDict,
    config: NatConfig,
    *,
    kind: Kind = "classifier",
    dtype: Any = np.float32,
    without_head: bool = False,
    resize_biases: bool = False,
    lazy: bool = False,
) -> dict:
    """Makes the parameters of a Flax model from a state dict.

    Args:
        state_dict: tensors by name, in either dialect.
        config: the model's configuration.
        kind: the model: "classifier", "model" or "backbone". A checkpoint may hold more than the model needs: a classifier's
            serves all three; a backbone's norms, where it has none, start as the identity, with a warning.
        dtype: of the parameters; None keeps the checkpoint's.
        without_head: whether to leave out the classifier, whose tensors in the checkpoint, if any, are ignored.
        resize_biases: whether relative positional biases of another kernel size are interpolated (bicubic).
        lazy: whether to return `LazyTensor`s of the checkpoint's own dtypes, to be read one at a time.

    Returns:
        Nested dict of numpy arrays, as `nnx.to_pure_dict` has it. Arrays may be views of the file.

    Warns:
        UserWarning: parameters hold NaN or infinity, or norms of a backbone are missing.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape or not floating point; all are named at once.
    """
    dialect, prefix = detect(state_dict)
    if prefix and prefix != f"{config.model_type}.":
        raise CheckpointError(
            f"The weights are those of a {prefix[:-1]!r} model, the configuration is of a {config.model_type!r} one; "
            "they do not belong together."
        )
    if sum(config.depths) > len(state_dict):
        raise CheckpointError(
            f"{len(state_dict)} tensors are too few for the configuration's {sum(config.depths)} layers."
        )
    spare = (*_SPARE[kind], *_HEADS) if without_head else _SPARE[kind]
    sources = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    params: dict = {}
    problems, used, identities = [], set(), []
    for entry in entries(config, kind):
        if without_head and entry.path[0] == "classifier":
            continue
        names = entry.names(dialect)
        if kind == "backbone" and entry.path[0] == "hidden_states_norms" and not any(n in sources for n in names):
            identities.append(str(entry.path[1]))
            _put(params, entry.path, _identity(entry))
            continue
        used.update(names)
        tensors, found = _collect(entry, names, sources, dialect, resize_biases)
        problems += found
        if not found:
            _put(params, entry.path, _joined(entry, tensors))
    left_over = [name for name in sources if name not in used and not name.startswith(spare)]
    _report(problems, left_over, prefix, detect_kind(state_dict), kind)
    if identities:
        stages = ", ".join(dict.fromkeys(identities))
        warnings.warn(f"The checkpoint has no norms for the stages {stages}; they start as the identity.", stacklevel=2)
    _warn_not_finite(params)
    if not lazy:
        for path, leaf in list(_leaves(params)):
            parameter = np.asarray(leaf)
            _put(params, path, parameter if dtype is None else parameter.astype(dtype, copy=False))
    return params


def from_flax(
    params: Mapping, config: NatConfig, *, kind: Kind = "classifier", dialect: Dialect = "hf"
) -> dict[str, LazyTensor]:
    """Makes a state dict from the parameters of a Flax model; undoes `to_flax` bit by bit.

    Args:
        params: nested dict of arrays, as `nnx.to_pure_dict` has it.
        config: the model's configuration.
        kind: the model: "classifier", "model" or "backbone".
        dialect: "hf" or "shilabs" (classifiers only).

    Raises:
        CheckpointError: the parameters are not those of the model, or the dialect cannot express it.
    """
    if dialect == "shilabs" and kind != "classifier":
        raise CheckpointError(
            f"SHI-Labs' format is for image classifiers; this is a {kind}. Write Hugging Face's instead."
        )
    prefix = f"{config.model_type}." if dialect == "hf" and kind == "classifier" else ""
    leaves = dict(_leaves(params))
    state_dict, problems = {}, []
    for entry in entries(config, kind):
        leaf = leaves.pop(entry.path, None)
        if leaf is None or tuple(leaf.shape) != entry.shape:
            got = "nothing" if leaf is None else f"shape {tuple(leaf.shape)}"
            problems.append(f"{'/'.join(map(str, entry.path))}: expected shape {entry.shape}, got {got}")
            continue
        shape = entry.tensor_shape(dialect)
        for i, name in enumerate(entry.names(dialect)):
            full = name if name.startswith(_HEADS) else prefix + name

            def read(entry: Entry = entry, leaf: Any = leaf, i: int = i) -> np.ndarray:
                return entry.split(np.asarray(leaf), dialect)[i]

            state_dict[full] = LazyTensor(shape, np.dtype(leaf.dtype), read)
    _report(problems, ["/".join(map(str, path)) for path in leaves], "", kind, kind)
    return state_dict


def infer_config(state_dict: StateDict, *, dilations: Any = None) -> NatConfig:
    """Infers the configuration of an image classifier from the shapes of its tensors.

    Args:
        state_dict: tensors by name, in either dialect.
        dilations: of every layer, by level; they are in no tensor. None means NAT.

    Raises:
        CheckpointError: tensors are missing, or their shapes are those of no NAT.
    """
    dialect, prefix = detect(state_dict)
    # An empty tensor can have any shape without a byte to show for it.
    shapes = {name.removeprefix(prefix): tuple(t.shape) for name, t in state_dict.items() if 0 not in t.shape}
    hf = dialect == "hf"
    layer = "encoder.levels.{}.layers.{}." if hf else "levels.{}.blocks.{}."
    rpb = layer + ("attention.self.rpb" if hf else "attn.rpb")
    try:
        stem = shapes["embeddings.patch_embeddings.projection.0.weight" if hf else "patch_embed.proj.0.weight"]
        embed_dim = 2 * stem[0]
        depths = []
        while rpb.format(len(depths), 0) in shapes:
            level = len(depths)
            depths.append(next(j for j in range(len(shapes) + 1) if rpb.format(level, j) not in shapes))
        heads = [shapes[rpb.format(level, 0)][0] for level in range(len(depths))]
        hidden = shapes[layer.format(0, 0) + ("intermediate.dense.weight" if hf else "mlp.fc1.weight")][0]
        head = shapes.get("classifier.weight" if hf else "head.weight", (0,))
        scale = layer.format(0, 0) + ("layer_scale_parameters" if hf else "gamma1")
        return NatConfig(
            num_channels=stem[1],
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(heads),
            kernel_size=(shapes[rpb.format(0, 0)][1] + 1) // 2,
            dilations=dilations,
            mlp_ratio=hidden / embed_dim,
            qkv_bias=layer.format(0, 0) + ("attention.self.query.bias" if hf else "attn.qkv.bias") in shapes,
            layer_scale_init_value=1e-5 if scale in shapes else 0.0,
            num_labels=head[0],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"The tensors' shapes are those of no NAT or DiNAT: {error}") from error


def _collect(
    entry: Entry, names: tuple[str, ...], sources: StateDict, dialect: Dialect, resize_biases: bool
) -> tuple[list[Any], list[str]]:
    """Returns the tensors of a parameter, not read yet, and what is wrong with them."""
    shape = entry.tensor_shape(dialect)
    tensors, problems = [], []
    for name in names:
        tensor = sources.get(name)
        if tensor is None:
            problems.append(f"{name}: missing")
        elif np.dtype(tensor.dtype) not in _FLOATS:
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
            problems.append(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
    return tensors, problems


def _report(problems: list[str], left_over: list[str], prefix: str, got: str, wanted: str) -> None:
    if not problems and not left_over:
        return
    candidates = left_over[:200]  # difflib is slow
    for i, problem in enumerate(problems[:_REPORTED]):
        if near := difflib.get_close_matches(problem.removesuffix(": missing"), candidates, n=1, cutoff=0.8):
            problems[i] = f"{problem} (is it {_shown(near[0])}?)"
    lines = problems + [f"{_shown(name)}: not part of the model" for name in left_over[:_REPORTED]]
    count = len(problems) + len(left_over)
    more = f"\n  ... and {count - _REPORTED} more" if count > _REPORTED else ""
    about = f" The checkpoint is of a {got}, the model is a {wanted}." if got != wanted else ""
    raise CheckpointError(
        f"The checkpoint does not fit the model ({len(problems)} tensors missing or of another shape or dtype, "
        f"{len(left_over)} left over; prefix {prefix!r}).{about}\n  " + "\n  ".join(lines[:_REPORTED]) + more
    )


def _warn_not_finite(params: dict) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        sums = {path: np.asarray(leaf).sum(dtype=np.float64) for path, leaf in _leaves(params)}
    if bad := ["/".join(map(str, path)) for path, total in sums.items() if not np.isfinite(total)]:
        warnings.warn(f"{len(bad)} parameters hold NaN or infinity: {', '.join(bad[:3])}.", stacklevel=3)


def _joined(entry: Entry, tensors: list) -> LazyTensor:
    dtype = np.result_type(*(tensor.dtype for tensor in tensors))
    return LazyTensor(entry.shape, dtype, lambda: entry.join([np.asarray(tensor) for tensor in tensors]))


def _identity(entry: Entry) -> LazyTensor:
    return LazyTensor(entry.shape, np.dtype("f4"), lambda: np.full(entry.shape, entry.path[-1] == "scale", np.float32))


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 200 else repr(name[:200])


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
