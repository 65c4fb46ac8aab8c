"""Which of the tensors in a file are the model: under which entry of it, and behind which prefix of their names."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from natjax.errors import CheckpointError
from natjax_convert.dialect import Found
from natjax_convert.names import DIALECTS
from natjax_convert.state_dict import LazyTensor

# Names that checkpoints give to a model, as entries or as prefixes, in the order in which they are preferred.
_KNOWN = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights"),
)
_AVERAGED = re.compile(r"(?<![a-z])(?:ema|swa)|(?:ema|swa)(?![a-z])|averaged|shadow", re.IGNORECASE)
_WITHIN = re.compile(r"\b_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module)\.")
_WRAPPER_MODULES = re.compile(r"\A(?:(?:module|model|net|network)\.)+")  # which no dialect's names start with
_BACKBONE = "backbone."
_COUNTERS = {"n_averaged"}  # of torch's AveragedModel
_MAX_DEPTH = 8  # of entries in entries
_MAX_MAPPINGS = 1000
_MAX_PREFIXES = 16
_MAX_MODELS = 64
_MAX_CHARACTERS = 2**20  # of all names together, which a short file can repeat; DiNAT-Large's have 2**15


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """Tensors that may be the model.

    Attributes:
        entries: that lead to their mapping.
        prefix: that is before all of their names.
        tensors: by the names that the model itself gave them, and those that they have in the file.
        found: what they are, or None where they are of no NAT or DiNAT.
        strays: names of what is no tensor among them.
        beside: names of what else is in their mapping.
    """

    entries: tuple[str, ...]
    prefix: str
    tensors: dict[str, list[str]]
    found: Found | None
    strays: list
    beside: list

    @functools.cached_property
    def averaged(self) -> bool:
        return any(map(_AVERAGED.search, (*self.entries, self.prefix)))

    @property
    def rank(self) -> tuple[int, ...]:
        """Sorts those with known names to the front; those with names that nobody knows are the same."""
        steps = (*self.entries, *self.prefix.split(".")[:-1])
        ranks = [_KNOWN.index(step) if step in _KNOWN else len(_KNOWN) for step in steps]
        unknown = ranks.index(len(_KNOWN)) + 1 if len(_KNOWN) in ranks else len(ranks)
        return tuple(ranks[:unknown])

    def __str__(self) -> str:
        return repr(".".join((*self.entries, *([f"{self.prefix}*"] if self.prefix else ())))[:60])


def select(path: Path, content: Any) -> dict[str, LazyTensor]:
    """Returns the model among the tensors of a file, by the names that the model itself gave them.

    Those that are recognised as a NAT or DiNAT come first, averaged weights before others, then those under a name of `_KNOWN`;
    where none is recognised, the most tensors.

    Args:
        path: of the file, for messages.
        content: what the file holds: a mapping of names to tensors, or one of names to anything.

    Warns:
        UserWarning: there is more than the model: what was taken and what was left out.

    Raises:
        CheckpointError: there is no state dict, there are several, or some of its entries are no tensors.
    """
    models: list[tuple[_Candidate, dict]] = []
    unknown: list[tuple[_Candidate, dict]] = []
    characters = 0
    for entries, mapping in itertools.islice(_mappings(content), _MAX_MAPPINGS):
        characters += sum(len(name) for name in (*entries, *mapping) if isinstance(name, str))
        if characters > _MAX_CHARACTERS:
            raise CheckpointError(
                f"{path}: its names have more than {_MAX_CHARACTERS} characters, which no model's have."
            )
        for each in _candidates(entries, mapping):
            (models if each.found else unknown).append((each, mapping))
        if len(models) > _MAX_MODELS:
            raise _several(path, models, f"more than the {_MAX_MODELS} that natjax compares")
    if not models and not unknown:
        has = f"its entries are {_named(content)}" if isinstance(content, dict) else "it is no mapping at all"
        raise CheckpointError(f"{path}: no state dict (a mapping of names to tensors) was found in it; {has}.")
    if models:
        partial = {  # averages of a part of the tensors alone are not the model
            id(each)
            for each, _ in models
            if each.averaged and any(each.tensors.keys() < other.tensors.keys() for other, _ in models)
        }
        order = {id(each): (id(each) in partial, not each.averaged, each.rank) for each, _ in models}
    else:
        order = {id(each): (-len(each.tensors), False, each.rank) for each, _ in unknown}
    best = min(order.values())
    chosen = [(each, mapping) for each, mapping in models or unknown if order[id(each)] == best]
    if len(chosen) > 1:
        raise _several(path, chosen, f"and none has a name that natjax knows ({', '.join(_KNOWN)})")
    [(model, mapping)] = chosen
    if model.strays:
        raise CheckpointError(f"{path}: its state dict has entries that are no tensors: {_named(model.strays)}.")
    if twice := next((names for names in model.tensors.values() if len(names) > 1), None):
        raise CheckpointError(f"{path}: has some tensors twice, such as {twice[0]!r} and {twice[1]!r}.")
    others = [f"{'averaged ' if each.averaged else ''}weights {each}" for each, _ in models if each is not model]
    _say_what_is_left_out(path, model, others + ([] if model.averaged else _nameless(content)))
    return {name: mapping[names[0]] for name, names in model.tensors.items()}


def _several(path: Path, chosen: list[tuple[_Candidate, dict]], why: str) -> CheckpointError:
    named = ", ".join(str(each) for each, _ in chosen[:5])
    return CheckpointError(
        f"{path}: holds several state dicts, {named}, {why}. In PyTorch, torch.save the one you want alone."
    )


def _say_what_is_left_out(path: Path, model: _Candidate, others: list[str]) -> None:
    left_out = others[:5]
    if model.beside:
        left_out.append(more(model.beside))
    if left_out:
        taken = f"{'averaged ' if model.averaged else ''}weights {model}" if model.entries or model.prefix else "model"
        warnings.warn(f"{path}: took the {taken}; left out: {', '.join(left_out)}.", stacklevel=4)


def _nameless(content: dict) -> list[str]:
    """Says which entries hold averaged weights as lists, in the order of an optimiser, which nothing tells the names of."""
    return [
        f"averaged weights without names {str(name)[:60]!r}"
        for name, value in content.items()
        if isinstance(name, str) and _AVERAGED.search(name)
        for inner in (value.values() if isinstance(value, dict) else [value])
        if isinstance(inner, list | tuple) and any(isinstance(item, LazyTensor) for item in inner[:1])
    ]


def _mappings(content: Any) -> Iterator[tuple[tuple[str, ...], dict]]:
    """All mappings with tensors in them, outer ones first; a mapping may hold itself."""
    seen, waiting = {id(content)}, collections.deque[tuple[tuple[str, ...], Any]]([((), content)])
    while waiting:
        entries, mapping = waiting.popleft()
        if not isinstance(mapping, dict):
            continue
        if any(isinstance(name, str) and isinstance(value, LazyTensor) for name, value in mapping.items()):
            yield entries, mapping
        for name, value in mapping.items():
            inside = isinstance(name, str) and isinstance(value, dict) and len(entries) < _MAX_DEPTH
            if inside and id(value) not in seen:
                seen.add(id(value))
                waiting.append(((*entries, name), value))


def _candidates(entries: tuple[str, ...], mapping: dict) -> list[_Candidate]:
    """The models in a mapping, one for each prefix; where there is none, all that is in it."""
    tensors: dict[str, str] = {}
    strays = []
    for name, value in mapping.items():
        if isinstance(name, str) and isinstance(value, LazyTensor):
            tensors[name] = _WITHIN.sub("", name)
        else:
            strays.append(name)
    prefixes = sorted(_prefixes(tensors.values()), key=len, reverse=True)
    groups: dict[str | None, dict[str, str]] = collections.defaultdict(dict)
    for name, inner in tensors.items():
        prefix = next((prefix for prefix in prefixes if inner.startswith(prefix)), None)
        groups[prefix][name] = inner[len(prefix or "") :]
    models = {prefix: _recognise(group.values()) for prefix, group in groups.items() if prefix is not None}
    largest = max((len(groups[prefix]) for prefix, found in models.items() if found), default=0)
    models = {prefix: found for prefix, found in models.items() if found and 2 * len(groups[prefix]) > largest}
    if not models or list(models) == [""]:  # a tensor that the model does not know is then an error
        by_name = _by_name({name: _WRAPPER_MODULES.sub("", inner) for name, inner in tensors.items()})
        if any(name != names[0] for name, names in by_name.items()):
            by_name = {name: names for name, names in by_name.items() if name not in _COUNTERS}
        return [_Candidate(entries, "", by_name, _recognise(by_name), strays, [])]
    found = []
    taken = {name for prefix in models for name in groups[prefix]}
    others = {name: inner for name, inner in tensors.items() if name not in taken}
    strays = [name for name in strays if name not in _COUNTERS]
    for prefix, kind in models.items():
        group = groups[prefix] | (others if not prefix else _heads(kind, groups[prefix], others))
        inside, beside = [], [name for name in others if name not in group and name not in _COUNTERS]
        for name in strays:
            (inside if not prefix or (isinstance(name, str) and name.startswith(prefix)) else beside).append(name)
        found.append(_Candidate(entries, prefix, _by_name(group), kind, inside, beside))
    return found


def _heads(found: Found, group: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    """Returns the tensors of the head where it is not behind the prefix, but beside the trunk."""
    heads = tuple(found.dialect.beginnings("classifier", "")) if found.kind == "classifier" else ()
    if not heads or any(name.startswith(heads) for name in group.values()):
        return {}
    return {name: inner for name, inner in others.items() if inner.startswith(heads)}


def _prefixes(names: Iterable[str]) -> set[str]:
    """Returns what is before the names of a dialect."""
    names = list(names)
    prefixes = {match.string[: match.start()] for name in names for match in _starts(name)}
    if len(prefixes) > _MAX_PREFIXES:
        return set()
    return {prefix for prefix in prefixes if not _is_backbone(prefix, names)}


def _is_backbone(prefix: str, names: list[str]) -> bool:
    """Whether what is behind a prefix is the backbone of a model with heads of its own, such as a UPerNet or a Mask R-CNN."""
    outer = prefix.removesuffix(_BACKBONE)
    if outer == prefix:
        return False
    found = _recognise(name.removeprefix(outer) for name in names if name.startswith(outer))
    return found is not None and found.prefix == _BACKBONE


def _starts(name: str) -> Iterator[re.Match]:
    for dialect in DIALECTS:
        if match := dialect.start.search(name):
            yield match
            return


def _recognise(names: Iterable[str]) -> Found | None:
    names = list(names)
    return next((found for dialect in DIALECTS if (found := dialect.recognise(names))), None)


def _by_name(tensors: dict[str, str]) -> dict[str, list[str]]:
    by_name: dict[str, list[str]] = {}
    for name, inner in tensors.items():
        by_name.setdefault(inner, []).append(name)
    return by_name


def more(names: Sequence) -> str:
    """Returns how many entries of a file were left out, with the names of some."""
    return f"{len(names)} more {'entry' if len(names) == 1 else 'entries'} ({_named(names)})"


def _named(names: Iterable) -> str:
    shown = [repr(name)[:60] for name in itertools.islice(names, 6)]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "") if shown else "none"
