"""Errors that natjax raises for what a user handed it, and words for messages. Users see an error's message alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NatjaxError(Exception):
    """Base of natjax's own errors: the message says what was got, what was expected and what to do."""


class CheckpointError(NatjaxError, ValueError):
    """A checkpoint or configuration file is missing, damaged, unsafe, or does not fit the model."""


class ImageError(NatjaxError, ValueError):
    """An image cannot be read or has a shape or type that the processor does not take."""


def install_line(extra: str) -> str:
    """Returns the command that installs natjax with one of its extras: "train", "hub" or "gpu".

    natjax is on no package index and its public address is not decided, so it is installed from a clone. This is the only code to
    change at release: an address that is somebody else's must never stand here.
    """
    return f"pip install '.[{extra}]' in a clone of natjax"


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
