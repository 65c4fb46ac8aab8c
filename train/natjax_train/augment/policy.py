"""What a recipe's `auto_augment` says, in timm's language; free of Pillow, so that a recipe is checked where it is made."""

from __future__ import annotations

import dataclasses
import functools
import re

LARGEST_MAGNITUDE = 10.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a text such as "rand-m9-mstd0.5-inc1" says.

    Attributes:
        magnitude: 0 to 10.
        deviation: standard deviation of the magnitude.
        layers: operations per image.
        probability: of each of them.
        increasing: whether to take the variants that grow with the magnitude.
    """

    magnitude: float = LARGEST_MAGNITUDE
    deviation: float = 0.0
    layers: int = 2
    probability: float = 0.5
    increasing: bool = False


@functools.cache
def parse(text: str) -> Settings:
    """Reads a text as timm writes it.

    Raises:
        ValueError: it means nothing, or something that natjax does not have.
    """
    kind, *parts = text.split("-")
    names = {"m": "magnitude", "mstd": "deviation", "n": "layers", "p": "probability", "inc": "increasing"}
    values = {}
    for part in parts:
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if not found or found[1] not in names:
            break
        values[names[found[1]]] = float(found[2])
    else:
        if kind == "rand" and values.get("magnitude", 0) <= LARGEST_MAGNITUDE and values.get("probability", 0) <= 1:
            layers, increasing = int(values.pop("layers", 2)), bool(values.pop("increasing", 0))
            return Settings(**values, layers=layers, increasing=increasing)
    raise ValueError(
        "auto_augment must be empty or read like 'rand-m9-mstd0.5-inc1', of m (to 10), mstd, n, p (to 1), inc; "
        f"got {text!r}."
    )
