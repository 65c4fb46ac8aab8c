"""Types of arguments that several commands take. What they refuse is wrong usage, which argparse says in one line."""

from __future__ import annotations

import argparse

DTYPES = ("float32", "bfloat16", "float16")
_LARGEST_SIDE = 2**16  # pixels: of larger images no device holds the features


def positive_int(text: str) -> int:
    """Returns an integer of at least 1."""
    value = _int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text!r}")
    return value


def image_side(text: str) -> int:
    """Returns the side of a square image in pixels."""
    side = _int(text)
    if not 1 <= side <= _LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"must be 1 to {_LARGEST_SIDE} pixels; got {text!r}")
    return side


def image_size(text: str) -> tuple[int, int]:
    """Returns height and width of an image in pixels, from N or HEIGHTxWIDTH."""
    sides = text.lower().split("x")
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"must be a number of pixels or HEIGHTxWIDTH; got {text!r}")
    return image_side(sides[0]), image_side(sides[-1])


def positive_seconds(text: str) -> float:
    """Returns a time of more than nothing."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be seconds above 0; got {text!r}")
    return value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # argparse would name the function, which says nothing to a user
        return 0
