"""Errors that natjax raises for what a user handed it. The command line prints their message alone, without a traceback."""


class NatjaxError(Exception):
    """Base of natjax's own errors: the message says what was got, what was expected and what to do."""


class CheckpointError(NatjaxError, ValueError):
    """A checkpoint or configuration file is missing, damaged, unsafe, or does not fit the model."""


class ImageError(NatjaxError, ValueError):
    """An image cannot be read or has a shape or type that the processor does not take."""
