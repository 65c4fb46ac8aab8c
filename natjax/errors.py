"""Errors that natjax raises for what a user handed it. The command line prints their message alone, without a traceback."""

from __future__ import annotations

# A placeholder: the public address is not decided. pyproject.toml has it as well. natjax is on no package index; when it is,
# `install_line` is the only code to change.
REPOSITORY = "https://github.com/natjax/natjax"


class NatjaxError(Exception):
    """Base of natjax's own errors: the message says what was got, what was expected and what to do."""


class CheckpointError(NatjaxError, ValueError):
    """A checkpoint or configuration file is missing, damaged, unsafe, or does not fit the model."""


class ImageError(NatjaxError, ValueError):
    """An image cannot be read or has a shape or type that the processor does not take."""


def install_line(extra: str) -> str:
    """Returns the command that installs natjax with one of its extras: "train", "hub" or "gpu"."""
    return f"pip install 'natjax[{extra}] @ git+{REPOSITORY}' (in a clone: pip install '.[{extra}]')"
