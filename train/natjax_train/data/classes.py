"""Which of a model's classes those of a data set are, by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from natjax.labels import composed
from natjax.text import first_few

_NAMED = 3  # classes of either side that a message names
_UNNAMED = re.compile(r"LABEL_\d+")  # what Hugging Face calls classes without names
_WORDNET = re.compile(r"n\d{8}")
_IMAGENETS = (1000, 21841)  # their classes are in the order of their WordNet ids


def match_classes(classes: Sequence[str], names: Sequence[str]) -> tuple[list[int], str | None]:
    """Finds the classes of data among a model's.

    Names count as equal in Unicode's composed form; failing that for any class, whatever their case, with "_" and "-" for
    spaces; failing that, by the first of the synonyms that commas separate. A model whose names say nothing (LABEL_0, ...)
    takes as many classes in their order, and so does one of ImageNet where the data are named by WordNet ids.

    Args:
        classes: of the data, in the order of their numbers.
        names: of the model's classes.

    Returns:
        The number of the model's class for each of the data, and None or a sentence on how they were matched.

    Raises:
        ValueError: the names do not say which class is which.
    """
    if (found := _by_name(classes, names, composed)) is not None:
        return found, None
    if (found := _by_name(classes, names, _plain)) is not None:
        return found, f"classes are matched by name whatever case, '_' and '-' are: {_example(classes, names, found)}"
    if (found := _by_name(classes, names, _first_synonym)) is not None:
        return found, f"classes are matched by the first of their synonyms: {_example(classes, names, found)}"
    if len(classes) == len(names):
        if all(map(_UNNAMED.fullmatch, names)):
            return list(range(len(names))), (
                f"the model's classes have no names of their own ({_beginning(names)}); those of the data are taken in order"
            )
        if len(names) in _IMAGENETS and all(map(_WORDNET.fullmatch, classes)):
            return list(range(len(names))), (
                f"the data's classes are WordNet ids ({_beginning(classes)}) and are taken in order, which is ImageNet's"
            )
    raise ValueError(
        f"The names of the data's {len(classes)} classes ({_beginning(classes)}) are not among those of the model's "
        f"{len(names)} ({_beginning(names)}), so which is which is not known; name the classes of the data as the model's."
    )


def _by_name(classes: Sequence[str], names: Sequence[str], key: Callable[[str], str]) -> list[int] | None:
    """Returns the place of every class among the names, or None where one has none, or several have one."""
    keys = list(map(key, classes))
    if len(classes) == len(names) and keys == list(map(key, names)):
        return list(range(len(names)))  # also where two of ImageNet's classes have one name
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[key(name)].append(place)
    found = [places[one][0] for one in keys if len(places.get(one, ())) == 1]
    return found if len(found) == len(keys) == len(set(keys)) else None


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", composed(composed(name).casefold())).split())


def _first_synonym(name: str) -> str:
    return _plain(name.partition(",")[0])


def _example(classes: Sequence[str], names: Sequence[str], found: Sequence[int]) -> str:
    return next(f"{name} is {names[i]}" for name, i in zip(classes, found, strict=True) if name != names[i])


def _beginning(names: Sequence[str]) -> str:
    return first_few(names, _NAMED, "; ")  # ImageNet's names have commas
