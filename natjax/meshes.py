"""Devices in words, as `--mesh data=2,space=4` says them: read here for training and for commands alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SPACE = "space"  # the axis along which images are split by their height


def parse_sizes(text: str, axes: Sequence[str], like: str) -> dict[str, int]:
    """Returns the number of devices along every axis of a mesh, 1 along those that the text leaves out.

    Args:
        text: such as "data=2,space=4".
        axes: those that there may be.
        like: how texts look, for the message.

    Raises:
        ValueError: it is no such text.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, size = (word.strip() for word in part.partition("=")[::2])
        if name not in axes or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh must look like {like}; got {text!r}.")
        if name in sizes:
            raise ValueError(f"mesh must give the devices along {name} once; got {text!r}.")
        sizes[name] = int(size)
    return dict.fromkeys(axes, 1) | sizes


def check_device_count(sizes: Mapping[str, int], count: int) -> None:
    """Checks that a mesh of such sizes has no more devices than there are.

    Raises:
        ValueError: it has.
    """
    needed = math.prod(sizes.values())
    if needed > count:
        text = ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise ValueError(
            f"mesh {text} needs {needed} devices; there {'are' if count > 1 else 'is'} {count}. On a CPU, "
            f"JAX_NUM_CPU_DEVICES={needed} makes as many, for trials."
        )
