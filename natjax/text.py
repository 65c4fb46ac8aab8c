"""Words of messages: numbers of things, the first of many names, the nearest one, and names that are safe to print."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def counted(count: int, thing: str) -> str:
    """Returns a number of things: "1 image", "1,200 images", "2 classes"."""
    return f"{count:,} {thing}{'' if count == 1 else 'es' if thing.endswith('s') else 's'}"


def first_few(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Returns the first `most` names and how many more there are: "a, b, c, d, e and 7 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def shortened(text: str, most: int = 200) -> str:
    """Returns a text, of which a long one ends after `most` characters and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns " Did you mean NAME?" with the nearest of some names, or nothing where none is near.

    Args:
        name: what was given. Capitals, and "-" for "_", make no difference.
        names: what there is.
        cutoff: how alike they must be, 0 to 1.
    """
    known = {_plain(known): known for known in names}
    near = difflib.get_close_matches(_plain(name), known, n=1, cutoff=cutoff)
    return f" Did you mean {known[near[0]]}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def printable(text: str) -> str:
    """Returns the text on one line and in UTF-8, with what cannot be printed escaped.

    Names from files must not steer a terminal.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
