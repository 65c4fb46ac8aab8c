"""Checkpoints of a run: the state by Orbax, positions in the data and scores beside it, checksums of all of it."""

from natjax_train.checkpoint.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
