"""Words of messages: numbers of things, and the first of many names."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, thing: str) -> str:
    """Returns a number of things: "1 image", "1,200 images"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def first_few(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Returns the first `most` names and how many more there are: "a, b, c, d, e and 7 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
