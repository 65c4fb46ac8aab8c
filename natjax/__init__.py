"""Neighborhood Attention Transformers (NAT, DiNAT) for JAX and Flax.

The names below load on first use, so that `import natjax` and the command line stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from natjax._version import __version__

if TYPE_CHECKING:
    from natjax.configuration import NatConfig as NatConfig
    from natjax.errors import CheckpointError as CheckpointError
    from natjax.errors import ImageError as ImageError
    from natjax.errors import NatjaxError as NatjaxError

_HOMES = {
    "CheckpointError": "natjax.errors",
    "ImageError": "natjax.errors",
    "NatConfig": "natjax.configuration",
    "NatjaxError": "natjax.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'natjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
