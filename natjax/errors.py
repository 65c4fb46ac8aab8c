"""Errors that natjax raises for what a user handed it. The command line prints their message alone, without a traceback."""

from __future__ import annotations


class NatjaxError(Exception):
    """Base of natjax's own errors: the message says what was got, what was expected and what to do."""


class CheckpointError(NatjaxError, ValueError):
    """A checkpoint or configuration file is missing, damaged, unsafe, or does not fit the model."""


class ImageError(NatjaxError, ValueError):
    """An image cannot be read or has a shape or type that the processor does not take."""


class MaskError(ImageError):
    """A mask has colours, classes that there are not, another size than its image, or no image."""


class MissingNormsWarning(UserWarning):
    """A checkpoint that is read as a backbone has no norms for its stages, as that of every classifier."""


def install_line(extra: str) -> str:
    """Returns the command that installs natjax with one of its extras: "train", "hub" or "gpu".

    natjax is on no package index and its public address is not decided, so it is installed from a clone. This is the only code to
    change at release: an address that is somebody else's must never stand here.
    """
    return f"pip install '.[{extra}]' in a clone of natjax"
